"""A stop that all ranks make after the same step, whoever was asked for it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainwell.distributed.world import ALONE, World
from trainwell.stopping import Stop
from trainwell.trainer import StepResult

TWO = World(rank=0, size=2)


def result(step: int, stop: float | None) -> StepResult:
    """A step of which only the wish matters."""
    zero = torch.zeros(())
    wish = None if stop is None else torch.tensor(stop)
    return StepResult(step, zero, zero, 0.1, torch.tensor(1), torch.tensor(False), stop=wish)


def test_alone_a_stop_is_agreed_after_the_step_in_which_it_is_asked_for() -> None:
    stop = Stop(ALONE, "cpu")
    assert not stop.after(result(0, None))
    stop.asked = True
    assert not stop.agreed
    assert stop.after(result(1, None))
    stop.asked = False
    assert stop.after(result(2, None)), "what is agreed stays so"


def test_alone_a_stop_between_steps_is_agreed_at_once() -> None:
    stop = Stop(ALONE, "cpu")
    assert not stop.now()
    stop.asked = True
    assert stop.now()
    assert stop.agreed


def test_among_several_the_own_wish_counts_only_once_it_has_travelled() -> None:
    stop = Stop(TWO, "cpu")
    stop.asked = True
    assert not stop.after(result(0, 0.0))
    assert stop.after(result(1, 1.0))


def test_a_step_whose_numbers_did_not_travel_agrees_to_nothing() -> None:
    stop = Stop(TWO, "cpu")
    stop.asked = True
    assert not stop.after(result(0, None))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(wishes=st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0]), max_size=20))
def test_all_ranks_stop_after_the_same_step_the_first_that_anyone_asks_in_and_on_a_gpu_four_later(
    device: str, wishes: list[float]
) -> None:
    ranks = [Stop(World(rank=rank, size=2), device) for rank in range(2)]
    behind = 4 if device == "cuda" else 0  # the numbers lie in the host's memory here: only when they are read differs
    asked = next((step for step, wish in enumerate(wishes) if wish), None)
    for step, wish in enumerate(wishes):
        expected = asked is not None and step >= asked + behind
        assert [stop.after(result(step, wish)) for stop in ranks] == [expected] * 2
