"""Closed formulas against the counts that the sources print, and against the models themselves."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainwell.config.load import load
from trainwell.config.tree import ModelConfig
from trainwell.model.gpt2 import GPT2
from trainwell.model.llama import Llama
from trainwell.optim.groups import parameter_groups
from trainwell.planning.model_size import count_parameters, flops_per_token


def built(model: ModelConfig, vocab_size: int, seq_len: int, num_labels: int | None = None) -> nn.Module:
    """The model of a configuration, without memory for its weights."""
    outer: dict[str, Any] = {"vocab_size": vocab_size, "seq_len": seq_len, "num_labels": num_labels}
    outer |= {"num_layers": model.num_layers, "num_heads": model.num_heads, "width": model.width}
    outer |= {"tie_head": model.tie_head, "qkv_bias": model.has_qkv_bias, "qk_norm": model.qk_norm}
    with torch.device("meta"):
        if model.arch == "gpt2":
            return GPT2(**outer)
        return Llama(
            num_kv_heads=model.kv_heads,
            head_dim=model.size_of_head,
            mlp_width=model.width_of_mlp,
            **outer,
        )


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    """Any shape that either architecture can have, of up to four heads of up to eight."""
    groups, kv_heads, head = draw(st.integers(1, 2)), draw(st.integers(1, 2)), 2 * draw(st.integers(1, 4))
    heads = groups * kv_heads
    common = {
        "num_layers": draw(st.integers(1, 3)),
        "num_heads": heads,
        "tie_head": draw(st.booleans()),
        "qkv_bias": draw(st.sampled_from([None, True, False])),
        "qk_norm": draw(st.booleans()),
    }
    if draw(st.booleans()):
        return ModelConfig.model_validate(common | {"arch": "gpt2", "width": heads * head})
    own_head = draw(st.booleans())
    more = {
        "width": 2 * draw(st.integers(2, 20)) if own_head else heads * head,
        "head_dim": head if own_head else None,
        "num_kv_heads": draw(st.sampled_from([None, kv_heads])),
        "mlp_width": draw(st.sampled_from([None, 8, 20])),
    }
    return ModelConfig.model_validate(common | {"arch": "llama"} | more)


@given(model=shapes(), vocab_size=st.integers(3, 30), seq_len=st.integers(2, 9), labels=st.sampled_from([None, 2, 5]))
@settings(max_examples=60)
def test_the_formulas_count_what_the_models_have(
    model: ModelConfig, vocab_size: int, seq_len: int, labels: int | None
) -> None:
    count = count_parameters(model, vocab_size, seq_len, num_labels=labels)
    made: Any = built(model, vocab_size, seq_len, labels)
    decayed, plain = (group["params"] for group in parameter_groups(made.parameters(), 0.1))
    assert (count.decayed_tensors, count.decayed) == (len(decayed), sum(tensor.numel() for tensor in decayed))
    assert (count.not_decayed_tensors, count.not_decayed) == (len(plain), sum(tensor.numel() for tensor in plain))
    assert count.total == count.decayed + count.not_decayed
    block = list(made.blocks[0].parameters())
    assert count.block_matrices == sum(tensor.numel() for tensor in block if tensor.dim() == 2)
    assert count.block_vectors == sum(tensor.numel() for tensor in block if tensor.dim() == 1)
    assert count.final_norm == sum(tensor.numel() for tensor in made.final_norm.parameters())


@given(model=shapes(), vocab_size=st.integers(3, 30), labels=st.sampled_from([None, 2]))
@settings(max_examples=30)
def test_what_is_multiplied_is_every_linear_layer_and_the_small_change_of_norms_and_biases(
    model: ModelConfig, vocab_size: int, labels: int | None
) -> None:
    made: Any = built(model, vocab_size, 8, labels)
    linear = sum(module.weight.numel() for module in made.modules() if isinstance(module, nn.Linear))
    small = count_parameters(model, vocab_size, 8, num_labels=labels).not_decayed
    attention = 12 * model.num_layers * model.num_heads * model.size_of_head * 8
    assert flops_per_token(model, vocab_size, 8, num_labels=labels) == 6 * (linear + small) + attention


def test_gpt2_124m_has_karpathys_counts() -> None:
    model = load("gpt2-124m").model
    count = count_parameters(model, 50304, 1024)
    assert (count.decayed_tensors, count.decayed) == (50, 124_354_560)
    assert (count.not_decayed_tensors, count.not_decayed) == (98, 121_344)
    assert count_parameters(model, 50257, 1024).total == 124_439_808


def test_the_book_model_has_the_books_count() -> None:
    count = count_parameters(load("book").model, 50257, 256)
    assert count.total == 162_419_712
    assert count.total == count.decayed + count.not_decayed
    assert count.head == 50257 * 768
    assert count.embedding == (2 * 50257 + 256) * 768


LLAMAS: dict[str, tuple[dict[str, Any], int, int]] = {
    "Llama-3.2-1B": (
        {"num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "width": 2048, "mlp_width": 8192},
        128_256,
        1_235_814_400,
    ),
    "TinyLlama-1.1B": (
        {"num_layers": 22, "num_heads": 32, "num_kv_heads": 4, "width": 2048, "mlp_width": 5632} | {"tie_head": False},
        32_000,
        1_100_048_384,
    ),
    "Llama-2-7b": (
        {"num_layers": 32, "num_heads": 32, "width": 4096, "mlp_width": 11008, "tie_head": False},
        32_000,
        6_738_415_616,
    ),
    "Qwen3-0.6B": (
        {"num_layers": 28, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "width": 1024, "mlp_width": 3072}
        | {"qk_norm": True},
        151_936,
        596_049_920,
    ),
    "Qwen2.5-0.5B": (
        {"num_layers": 24, "num_heads": 14, "num_kv_heads": 2, "width": 896, "mlp_width": 4864, "qkv_bias": True},
        151_936,
        494_032_768,
    ),
    "SmolLM2-135M": (
        {"num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "width": 576, "mlp_width": 1536},
        49_152,
        134_515_008,
    ),
}
"""Shapes of published models, their vocabulary, and the number of parameters that their pages name."""


@pytest.mark.parametrize("name", LLAMAS)
def test_published_models_of_the_llama_kind_have_their_counts(name: str) -> None:
    shape, vocab_size, parameters = LLAMAS[name]
    model = ModelConfig.model_validate({"arch": "llama"} | shape)
    assert count_parameters(model, vocab_size, 2048).total == parameters


def test_flops_of_a_token_count_the_vocabulary_once_and_attention_by_its_length() -> None:
    model = load("gpt2-124m").model
    multiplied = 124_439_808 - 1024 * 768
    assert flops_per_token(model, 50257, 1024) == 6 * multiplied + 12 * 12 * 12 * 64 * 1024
    untied = model.model_copy(update={"tie_head": False})
    assert flops_per_token(untied, 50257, 1024) == flops_per_token(model, 50257, 1024)
