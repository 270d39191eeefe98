"""Losses and the highest gradient, against the book's own to the last bit."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from trainwell.book import calc_loss_batch, calc_loss_loader, evaluate_model, find_highest_gradient
from trainwell.gradients import largest_gradient

pytestmark = pytest.mark.usefixtures("one_thread")


def batches_of(*rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    dice = torch.Generator().manual_seed(7)
    return [tuple(torch.randint(19, (2, count, 12), generator=dice).unbind()) for count in rows]  # type: ignore[misc]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_loss_of_a_batch_and_its_gradients_are_the_books(theirs: Any, gpt2_of: Any, rows: int) -> None:
    outcomes = []
    for function in (theirs.calc_loss_batch, calc_loss_batch):
        model = gpt2_of()
        loss = function(*batches_of(rows)[0], model, "cpu")
        loss.backward()
        outcomes.append((loss.item(), [tensor.grad.tolist() for tensor in model.parameters()]))
    assert outcomes[0] == outcomes[1]


def test_targets_of_minus_100_do_not_count(theirs: Any, gpt2_of: Any) -> None:
    inputs, targets = batches_of(2)[0]
    targets[0, :5] = -100
    model = gpt2_of()
    assert calc_loss_batch(inputs, targets, model, "cpu") == theirs.calc_loss_batch(inputs, targets, model, "cpu")


@pytest.mark.parametrize("num_batches", [None, 1, 2, 3, 9])
def test_the_loss_of_a_loader_is_the_books(theirs: Any, gpt2_of: Any, num_batches: int | None) -> None:
    model, loader = gpt2_of(), batches_of(2, 2, 1)
    with torch.no_grad():
        found = calc_loss_loader(loader, model, "cpu", num_batches)
        assert found == theirs.calc_loss_loader(loader, model, "cpu", num_batches)


def test_the_loss_of_no_batch_is_not_a_number(gpt2_of: Any) -> None:
    assert math.isnan(calc_loss_loader([], gpt2_of(), "cpu"))


def test_evaluating_switches_dropout_off_and_ends_in_training_mode(theirs: Any, gpt2_of: Any) -> None:
    loader = batches_of(2, 2)
    model = gpt2_of(dropout=0.5)
    found = evaluate_model(model, loader, loader[1:], "cpu", 2)
    assert found == theirs.evaluate_model(model, loader, loader[1:], "cpu", 2)
    assert model.training


def test_the_highest_gradient_is_the_books_and_misses_what_is_negative(theirs: Any) -> None:
    model = nn.ParameterList([torch.zeros(2), torch.zeros(2), torch.zeros(1)])
    assert find_highest_gradient(model) is None
    model[0].grad, model[1].grad = torch.tensor([0.25, -9.0]), torch.tensor([0.5, 0.0])
    assert find_highest_gradient(model) == theirs.find_highest_gradient(model) == 0.5
    assert largest_gradient(model) == 9.0
