"""What holds for every architecture: where it looks, what it remembers, where it drops out, how it classifies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.model.gpt2 import init_gpt2, init_torch
from trainwell.model.llama import Llama, init_llama_gpt2, init_llama_torch

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("one_thread")
DRAWS: dict[str, dict[type, Callable[..., None]]] = {
    "gpt2": {Llama: init_llama_gpt2, object: init_gpt2},
    "torch": {Llama: init_llama_torch, object: init_torch},
}


def draw(model: nn.Module, kind: str, seed: int) -> None:
    DRAWS[kind][Llama if isinstance(model, Llama) else object](model, Generator().manual_seed(seed))


def test_its_body_and_its_head_have_the_same_names_everywhere(either_of: Make) -> None:
    model = either_of(dtype=torch.float64, num_layers=3)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        hidden = model.hidden(ids)
        assert hidden.shape == (2, 6, 16)
        assert torch.equal(model.lm_head(hidden), model(ids))
    assert len(model.blocks) == 3
    assert (model.vocab_size, model.seq_len) == (19, 12)
    normed: list[Tensor] = []
    model.final_norm.register_forward_hook(lambda _module, _inputs, output: normed.append(output))
    with torch.no_grad():
        assert model.hidden(ids) is normed[0]


def test_no_logit_depends_on_a_later_token(either_of: Make) -> None:
    model = either_of(dtype=torch.float64)
    ids = torch.randint(19, (1, 12), generator=Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)
        for position in range(12):
            changed = ids.clone()
            changed[0, position] = (ids[0, position] + 1) % 19
            difference = (model(changed) - whole).abs().amax(dim=(0, 2))
            assert difference[:position].sum() < 1e-12
            assert difference[position] > 1e-6


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
@examples(max_examples=30)
def test_reading_in_pieces_with_a_cache_gives_the_logits_of_reading_at_once(
    either_of: Make, pieces: list[int], seed: int
) -> None:
    model = either_of(dtype=torch.float64, seq_len=30)
    ids = torch.randint(19, (2, sum(pieces)), generator=Generator().manual_seed(seed))
    cache = model.new_cache()
    with torch.no_grad():
        logits = torch.cat([model(piece, cache) for piece in ids.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(logits, model(ids), rtol=1e-12, atol=1e-12)
    assert cache.length == ids.shape[1]


def attention_of(model: Any) -> Any:
    return next(module for module in model.blocks[0].modules() if hasattr(module, "resid_dropout"))


def only_embedding(model: Any) -> None:
    model.drop.p = 0.5


def only_attention_weights(model: Any) -> None:
    attention_of(model).dropout = 0.5


def only_attention_branch(model: Any) -> None:
    attention_of(model).resid_dropout.p = 0.5


def only_mlp_branch(model: Any) -> None:
    model.blocks[0].mlp.dropout.p = 0.5


@pytest.mark.parametrize("switch_on", [only_embedding, only_attention_weights, only_attention_branch, only_mlp_branch])
def test_dropout_is_on_the_embedding_the_attention_weights_and_both_branches_and_in_training_only(
    either_of: Make, switch_on: Callable[[Any], None]
) -> None:
    ids = torch.arange(12)[None]
    model = either_of(dropout=0.0).train()
    quiet = model(ids)
    assert torch.equal(quiet, model(ids))
    switch_on(model)
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), quiet)
    everywhere = either_of(dropout=0.5)
    assert {module.p for module in everywhere.modules() if isinstance(module, nn.Dropout)} == {0.5}


def trained(model: Any, recompute: bool, documents: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a forward pass with dropout, the gradients after the backward pass, and what was drawn last."""
    model.recompute = recompute
    model.zero_grad()
    torch.manual_seed(5)
    ids = torch.randint(19, (2, 12), generator=Generator().manual_seed(1))
    loss = model(ids, documents=documents).square().sum()
    loss.backward()
    drawn = {"the generator": torch.get_rng_state()}
    return loss.detach(), drawn | {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("packed", [False, True])
def test_computing_blocks_again_changes_no_bit_of_a_gradient(either_of: Make, dropout: float, packed: bool) -> None:
    model = either_of(dtype=torch.float64, num_layers=3, dropout=dropout).train()
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 12]) if packed else None
    loss, gradients = trained(model, False, documents)
    again, same = trained(model, True, documents)
    assert torch.equal(loss, again)
    assert [name for name in gradients if not torch.equal(gradients[name], same[name])] == []


def numbers_kept(model: Any, ids: Tensor) -> int:
    """How many numbers a forward pass leaves for the backward pass, weights aside, each storage counted once."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(ids)
    return sum(kept[place].numel() for place in kept.keys() - own) if logits.requires_grad else 0


def test_blocks_that_are_computed_again_leave_only_their_inputs(either_of: Make) -> None:
    ids = torch.arange(12).view(2, 6)
    shallow, deep = (either_of(num_layers=layers, dropout=0.1).train() for layers in (1, 4))
    three_blocks = numbers_kept(deep, ids) - numbers_kept(shallow, ids)
    shallow.recompute = deep.recompute = True
    assert numbers_kept(deep, ids) - numbers_kept(shallow, ids) == 3 * 2 * 6 * 16
    assert three_blocks > 8 * 3 * 2 * 6 * 16


def test_nothing_is_computed_again_in_evaluation_or_with_a_cache(either_of: Make) -> None:
    ids = torch.arange(12).view(2, 6)
    model = either_of(dropout=0.0).eval()
    plain = numbers_kept(model, ids)
    model.recompute = True
    assert numbers_kept(model, ids) == plain
    cache = model.train().new_cache()
    torch.testing.assert_close(torch.cat((model(ids[:, :4], cache), model(ids[:, 4:], cache)), dim=1), model(ids))


@pytest.mark.parametrize("norm_eps", [1e-5, 1e-3])
def test_all_norms_add_the_same_to_the_variance(either_of: Make, norm_eps: float) -> None:
    norms = [m for m in either_of(norm_eps=norm_eps).modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)]
    assert len(norms) >= 5
    assert {norm.eps for norm in norms} == {norm_eps}


@pytest.mark.parametrize("kind", DRAWS)
def test_initial_weights_draw_from_their_generator_alone(either_of: Make, kind: str) -> None:
    first, second = either_of(seed=1), either_of(seed=2)
    before = torch.get_rng_state()
    draw(first, kind, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    draw(second, kind, 7)
    assert [name for name, tensor in first.state_dict().items() if not tensor.equal(second.state_dict()[name])] == []
    draw(second, kind, 8)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_a_classifier_has_a_new_head_of_its_own(either_of: Make) -> None:
    model = either_of(num_labels=3, tie_head=True)
    assert model.lm_head.weight.shape == (3, 16)
    assert model(torch.arange(12).view(2, 6)).shape == (2, 6, 3)


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("tie_head", [True, False])
def test_the_number_of_labels_changes_no_weight_but_the_heads(either_of: Make, kind: str, tie_head: bool) -> None:
    two, five = (either_of(num_labels=labels, tie_head=tie_head) for labels in (2, 5))
    for model in (two, five):
        draw(model, kind, 3)
        assert model.lm_head.weight.std() > 0.01
    ours, theirs = two.state_dict(), five.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["lm_head.weight"]
