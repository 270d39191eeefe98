"""Llama against transformers' Llama, Qwen2 and Qwen3, which share its weights, on random small configurations."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.generate import generate
from trainwell.model.llama import Llama, Rope, Rotation, init_llama_gpt2, init_llama_torch

Make = Callable[..., Llama]

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB = 29


@dataclass(frozen=True)
class Shape:
    """A configuration that all of a family's code paths can be drawn from."""

    family: str
    num_layers: int
    groups: int
    num_kv_heads: int
    half_head: int
    mlp_width: int
    rope: Rope
    tie_head: bool
    norm_eps: float
    seed: int

    @property
    def num_heads(self) -> int:
        return self.groups * self.num_kv_heads

    @property
    def width(self) -> int:
        """In Qwen2 the heads share it out; elsewhere it only has to be a multiple of their number."""
        return self.num_heads * 2 * self.half_head if self.family == "qwen2" else 36


ROPES = st.one_of(
    st.builds(Rope, theta=st.sampled_from([100.0, 10000.0, 500000.0])),
    st.builds(Rope, theta=st.just(10000.0), scaling=st.just("linear"), factor=st.floats(1, 8)),
    st.builds(
        Rope,
        theta=st.sampled_from([100.0, 500000.0]),
        scaling=st.just("llama3"),
        factor=st.floats(1, 32),
        original_context=st.integers(8, 60),
    ),
)
SHAPES = st.builds(
    Shape,
    family=st.sampled_from(["llama", "qwen2", "qwen3"]),
    num_layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    num_kv_heads=st.integers(1, 3),
    half_head=st.integers(1, 4),
    mlp_width=st.integers(1, 40),
    rope=ROPES,
    tie_head=st.booleans(),
    norm_eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
    seed=st.integers(0, 999),
)


@cache
def families() -> dict[str, tuple[Any, Any]]:
    """Configuration and model of each family; transformers is imported when the first test asks."""
    from transformers import models

    return {
        "llama": (models.llama.LlamaConfig, models.llama.LlamaForCausalLM),
        "qwen2": (models.qwen2.Qwen2Config, models.qwen2.Qwen2ForCausalLM),
        "qwen3": (models.qwen3.Qwen3Config, models.qwen3.Qwen3ForCausalLM),
    }


def their_rope(rope: Rope) -> dict[str, Any]:
    scaled: dict[str, Any] = {"rope_type": rope.scaling or "default", "rope_theta": rope.theta}
    if rope.scaling is not None:
        scaled["factor"] = rope.factor
    if rope.scaling == "llama3":
        scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaled["original_max_position_embeddings"] = rope.original_context
    return scaled


def theirs(shape: Shape) -> nn.Module:
    """Transformers' model of this shape with drawn weights, norms and biases drawn too."""
    config, model = families()[shape.family]
    heads = {} if shape.family == "qwen2" else {"head_dim": 2 * shape.half_head}
    found: nn.Module = model(
        config(
            vocab_size=VOCAB,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=64,
            rms_norm_eps=shape.norm_eps,
            rope_parameters=their_rope(shape.rope),
            tie_word_embeddings=shape.tie_head,
            attn_implementation="sdpa",  # their eager attention takes its softmax in float32
            **heads,
        )
    ).eval()
    generator = Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    return found


def ours(shape: Shape) -> Llama:
    return Llama(
        vocab_size=VOCAB,
        seq_len=64,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        width=shape.width,
        num_kv_heads=shape.num_kv_heads,
        head_dim=2 * shape.half_head,
        mlp_width=shape.mlp_width,
        norm_eps=shape.norm_eps,
        rope=shape.rope,
        qk_norm=shape.family == "qwen3",
        qkv_bias=shape.family == "qwen2",
        tie_head=shape.tie_head,
    ).eval()


def in_our_names(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}


def with_wide_norms(model: nn.Module) -> nn.Module:
    """Their RMSNorms compute in float32 even in a float64 model: torch's own, with their weights, in their place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, child.variance_epsilon)  # type: ignore[arg-type]
                norm.weight = child.weight  # type: ignore[assignment]
                setattr(parent, name, norm)
    return model


@given(shape=SHAPES, rows=st.integers(1, 3), length=st.integers(1, 40))
@examples(max_examples=40)
def test_logits_are_those_of_transformers(shape: Shape, rows: int, length: int) -> None:
    their_model = with_wide_norms(theirs(shape).double())
    model = ours(shape).double()
    model.load_state_dict(in_our_names(their_model))
    ids = torch.randint(VOCAB, (rows, length), generator=Generator().manual_seed(shape.seed))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), their_model(ids).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_in_float32_logits_are_those_of_transformers_as_it_comes(family: str) -> None:
    shape = Shape(family, 2, 2, 2, 4, 40, Rope(500.0, "llama3", 8.0, 16), False, 1e-6, 3)
    their_model, model = theirs(shape), ours(shape)
    model.load_state_dict(in_our_names(their_model))
    ids = torch.randint(VOCAB, (2, 40), generator=Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), their_model(ids).logits, rtol=1e-5, atol=2e-5)


PUBLISHED: dict[
    int, dict[str, Any]
] = {  # Llama 3.2 1B, SmolLM 135M, Qwen2.5 0.5B, Qwen3 0.6B as their files count them
    1_235_814_400: {"vocab_size": 128256, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64}
    | {"width": 2048, "mlp_width": 8192},
    134_515_008: {"vocab_size": 49152, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64}
    | {"width": 576, "mlp_width": 1536},
    494_032_768: {"vocab_size": 151936, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64}
    | {"width": 896, "mlp_width": 4864, "qkv_bias": True},
    596_049_920: {"vocab_size": 151936, "num_layers": 28, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128}
    | {"width": 1024, "mlp_width": 3072, "qk_norm": True},
}


@pytest.mark.parametrize(("published", "shape"), PUBLISHED.items(), ids=str)
def test_published_models_have_the_published_number_of_weights(published: int, shape: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = Llama(seq_len=64, **shape)
    assert sum(tensor.numel() for tensor in model.parameters()) == published


@given(st.floats(1, 16), st.integers(0, 500))
@examples(max_examples=20)
def test_linear_scaling_reads_a_long_text_at_the_positions_of_a_short_one(factor: float, position: int) -> None:
    device = torch.device("cpu")
    scaled, plain = Rope(scaling="linear", factor=factor).frequencies(8, device), Rope().frequencies(8, device)
    torch.testing.assert_close(scaled * (position * factor), plain * position)


def test_llama3_scaling_slows_what_turns_slowly_and_leaves_what_turns_fast() -> None:
    plain = Rope(theta=500000.0).frequencies(128, torch.device("cpu"))
    scaled = Rope(500000.0, "llama3", 8.0, 8192).frequencies(128, torch.device("cpu"))
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (scaled / plain)[(turns > 1) & (turns < 4)]
    assert len(between) > 3
    assert ((between > 1 / 8) & (between < 1)).all()
    assert (between.diff() < 0).all()


@given(st.integers(0, 900), st.integers(0, 900), st.integers(0, 99))
@examples(max_examples=30)
def test_a_score_depends_on_how_far_apart_two_tokens_are_and_not_on_where(far: int, shift: int, seed: int) -> None:
    query, key = torch.randn((2, 1, 1, 1, 8), dtype=torch.float64, generator=Generator().manual_seed(seed))
    frequencies = Rope().frequencies(8, torch.device("cpu"))

    def score(of_query: int, of_key: int) -> Tensor:
        at = [Rotation.at(torch.tensor([place]), frequencies, torch.float64) for place in (of_query, of_key)]
        return (at[0].rotate(query) * at[1].rotate(key)).sum()

    torch.testing.assert_close(score(far, 0), score(far + shift, shift), rtol=0, atol=5e-3)  # angles are float32
    torch.testing.assert_close(score(far, far), (query * key).sum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_with_the_cache_gives_the_ids_of_generation_without(llama_of: Make, temperature: float) -> None:
    for seed in range(3):
        model = llama_of(seed=seed, seq_len=10)  # 20 tokens: the window moves on
        with_cache, without = (
            list(generate(model, [1, 2, 3], 20, temperature=temperature, cache=cache)) for cache in (True, False)
        )
        assert with_cache == without


def test_under_autocast_queries_turn_in_float32_and_are_kept_narrow(llama_of: Make) -> None:
    model = llama_of().eval()
    ids = torch.randint(19, (2, 12), generator=Generator().manual_seed(1))
    held = model.new_cache()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        narrow = model(ids, held)
    none = torch.empty((2, 2, 0, 6), dtype=torch.bfloat16)  # would be widened if the cache held anything wider
    assert {kept.dtype for kept in held.extend(0, none, none)} == {torch.bfloat16}
    with torch.no_grad():
        wide = model(ids)
    assert (narrow - wide).norm() / wide.norm() < 0.02


@pytest.mark.parametrize("tie_head", [True, False])
def test_gpt2s_draws_have_its_deviations(llama_of: Make, tie_head: bool) -> None:
    model = llama_of(vocab_size=400, width=200, mlp_width=300, head_dim=20, num_layers=8, tie_head=tie_head)
    init_llama_gpt2(model, Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(weight, torch.full_like(weight, "norm" in name))
            continue
        expected = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert abs(weight.mean().item()) < 0.03 * expected
        assert weight.std().item() == pytest.approx(expected, rel=0.03)


def test_torchs_draws_are_those_of_its_modules(llama_of: Make) -> None:
    model = llama_of(vocab_size=400, width=200, mlp_width=300, head_dim=20, tie_head=False)
    init_llama_torch(model, Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            assert 0.9 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)  # a bias is 40 draws
        elif isinstance(module, nn.RMSNorm):
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert weight.std().item() == pytest.approx(1, rel=0.03)
