"""The loss is a sum over targets, so that how rows are put together cannot change it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from trainwell.model.loss import token_loss, with_parts

IDS = 7


@dataclass
class Rows:
    inputs: Tensor
    targets: Tensor


class Lookup(nn.Module):
    """A model whose logits are rows of a table: what follows an id depends on that id alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


class WithLogits(Lookup):
    """The same, with the logits in an object as Hugging Face models have them."""

    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(ids), loss="not this one")


def drawn(seed: int, rows: int, length: int, share_ignored: float) -> Rows:
    generator = Generator().manual_seed(seed)
    inputs, targets = torch.randint(IDS, (2, rows, length), generator=generator)
    targets[torch.rand((rows, length), generator=generator) < share_ignored] = -100
    return Rows(inputs, targets)


def table(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((IDS, IDS), generator=Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ROWS = st.builds(
    drawn, st.integers(0, 999), st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.9, 1.0])
)


@given(ROWS)
@examples(max_examples=25)
def test_the_loss_is_the_sum_of_surprises_at_the_targets_that_count(rows: Rows) -> None:
    log_probabilities = table().log_softmax(dim=1)
    pairs = zip(rows.inputs.flatten().tolist(), rows.targets.flatten().tolist(), strict=True)
    surprise = -sum(log_probabilities[given, asked].item() for given, asked in pairs if asked != -100)
    assert token_loss(Lookup(table()), rows).item() == pytest.approx(surprise, rel=1e-12, abs=1e-12)


@given(ROWS, st.data())
@examples(max_examples=25)
def test_cutting_rows_apart_changes_nothing(rows: Rows, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows.inputs)))
    model = Lookup(table())
    parts = [Rows(rows.inputs[cut], rows.targets[cut]) for cut in (slice(at), slice(at, None))]
    cut_apart = sum((token_loss(model, part) for part in parts), torch.zeros(()))
    torch.testing.assert_close(cut_apart, token_loss(model, rows), rtol=1e-12, atol=1e-12)


@given(ROWS)
@examples(max_examples=30)
def test_gradients_are_those_of_torchs_mean_times_the_number_of_targets(rows: Rows) -> None:
    ours, torchs = Lookup(table()), Lookup(table())
    token_loss(ours, rows).backward()
    count = (rows.targets != -100).sum()
    if count == 0:
        assert ours.table.grad is not None
        assert not ours.table.grad.any()
        return
    logits = torchs(rows.inputs)
    (cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), ignore_index=-100) * count).backward()
    torch.testing.assert_close(ours.table.grad, torchs.table.grad, rtol=1e-12, atol=1e-12)


def test_rows_without_a_target_cost_nothing_and_are_not_nan() -> None:
    loss = token_loss(Lookup(table()), Rows(torch.zeros((2, 3), dtype=torch.int64), torch.full((2, 3), -100)))
    assert loss.item() == 0.0


def test_logits_may_come_in_an_object() -> None:
    rows = drawn(1, 3, 4, 0.2)
    assert torch.equal(token_loss(WithLogits(table()), rows), token_loss(Lookup(table()), rows))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_widened_before_the_sum(narrow: torch.dtype) -> None:
    rows = drawn(2, 5, 40, 0.1)
    loss = token_loss(Lookup(table(dtype=narrow)), rows)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, token_loss(Lookup(table(dtype=narrow).float()), rows))


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_wide_logits_keep_their_type(wide: torch.dtype) -> None:
    assert token_loss(Lookup(table(dtype=wide)), drawn(3, 2, 3, 0.0)).dtype == wide


def test_a_loss_without_parts_has_none() -> None:
    value = torch.ones(())
    parts = {"ce": torch.zeros(())}
    assert with_parts(value) == (value, {})
    assert with_parts((value, parts)) == (value, parts)
