"""Which tensors decay, against the counts that Karpathy's run prints, and which ones Muon takes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainwell.model.gpt2 import GPT2
from trainwell.optim.groups import describe_groups, hidden_matrices, parameter_groups
from trainwell.optim.together import Together


def on_meta(vocab_size: int = 50304, num_layers: int = 12, width: int = 768, *, tie_head: bool = True) -> GPT2:
    with torch.device("meta"):
        return GPT2(
            vocab_size=vocab_size, seq_len=1024, num_layers=num_layers, num_heads=12, width=width, tie_head=tie_head
        )


def tensor(shape: tuple[int, ...], trained: bool) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=trained)


TENSORS = st.lists(st.builds(tensor, st.lists(st.integers(1, 4), max_size=4).map(tuple), st.booleans()), max_size=8)


def test_karpathys_run_decays_50_tensors_and_leaves_98() -> None:
    optimizer = torch.optim.AdamW(parameter_groups(on_meta().parameters(), 0.1))
    assert describe_groups(optimizer) == [
        "num decayed parameter tensors: 50, with 124,354,560 parameters",
        "num non-decayed parameter tensors: 98, with 121,344 parameters",
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_groups_are_described_over_several_optimizers_and_without_a_weight_decay() -> None:
    matrix, vector, other = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (5,)))
    decayed = torch.optim.SGD([matrix], lr=0.1, weight_decay=0.5)
    knows_no_decay = torch.optim.Rprop([other])
    together = Together(decayed, torch.optim.SGD([vector], lr=0.1), knows_no_decay)
    assert describe_groups(together) == [
        "num decayed parameter tensors: 1, with 6 parameters",
        "num non-decayed parameter tensors: 2, with 9 parameters",
    ]


@given(TENSORS, st.sampled_from(["matrices", "all"]), st.floats(0.01, 1))
def test_every_trained_tensor_is_in_exactly_one_group(tensors: list[Tensor], decay: str, weight_decay: float) -> None:
    groups = parameter_groups(tensors, weight_decay, decay)  # type: ignore[arg-type]
    assert all(group["params"] for group in groups)
    grouped = [id(member) for group in groups for member in group["params"]]
    assert sorted(grouped) == sorted(id(member) for member in tensors if member.requires_grad)
    for group in groups:
        for member in group["params"]:
            assert group["weight_decay"] == (weight_decay if decay == "all" or member.dim() >= 2 else 0.0)


def test_the_book_decays_everything() -> None:
    (group,) = parameter_groups(on_meta(tie_head=False).parameters(), 0.1, "all")
    assert len(group["params"]) == 149
    assert group["weight_decay"] == 0.1


def test_muon_takes_the_four_matrices_of_every_block() -> None:
    model = on_meta(num_layers=3)
    names = {id(weight): name for name, weight in model.named_parameters()}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert [names[id(matrix)] for matrix in hidden_matrices(model, 50304)] == [
        f"h.{block}.{layer}.weight" for block in range(3) for layer in layers
    ]


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("vocab_size", [36, 48])
def test_a_hidden_layer_as_wide_as_the_vocabulary_is_not_the_head(vocab_size: int, tie_head: bool) -> None:
    model = on_meta(vocab_size, num_layers=2, width=12, tie_head=tie_head)
    matrices = hidden_matrices(model, vocab_size)
    assert len(matrices) == 8
    assert not any(matrix is model.lm_head.weight for matrix in matrices)


def test_muon_takes_no_matrix_that_is_not_trained() -> None:
    model = on_meta(num_layers=2)
    for block in model.h:
        block.requires_grad_(False)
    model.h[1].mlp.requires_grad_(True)
    assert sum(math.prod(matrix.shape) for matrix in hidden_matrices(model, 50304)) == 2 * 4 * 768 * 768
