"""Counting what was skipped, and moving the loss scale, against the same rules in plain Python and torch's scaler."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from trainwell.errors import DivergedError
from trainwell.optim.guard import IN_A_ROW, Guard, LossScale

CPU = torch.device("cpu")
SKIPS = st.lists(st.booleans(), max_size=30)


def flag(value: bool) -> Tensor:
    return torch.tensor(value)


def longest_tail(skips: list[bool]) -> int:
    return len(skips) - max((place + 1 for place, skip in enumerate(skips) if not skip), default=0)


@given(SKIPS)
def test_the_guard_counts_skips_in_all_and_without_a_break(skips: list[bool]) -> None:
    guard = Guard(CPU)
    for skip in skips:
        guard.count(flag(skip))
    assert guard.state_dict() == {"skipped": sum(skips), "in_a_row": longest_tail(skips)}


@given(SKIPS)
def test_the_guard_raises_exactly_when_five_steps_in_a_row_were_skipped(skips: list[bool]) -> None:
    guard = Guard(CPU)
    for step, skip in enumerate(skips):
        guard.count(flag(skip))
        if longest_tail(skips[: step + 1]) < 5:
            guard.check(step)
        else:
            with pytest.raises(DivergedError):
                guard.check(step)


def test_a_good_step_starts_the_count_anew() -> None:
    guard = Guard(CPU)
    for skip in (True,) * 4 + (False,) + (True,) * 4:
        guard.count(flag(skip))
        guard.check(0)
    assert int(guard.skipped) == 8


def test_divergence_says_where_it_is_and_what_to_change() -> None:
    guard = Guard(CPU)
    for _ in range(IN_A_ROW):
        guard.count(flag(True))
    with pytest.raises(DivergedError, match=r"^5 steps in a row up to step 41 .* Lower optim\.lr, lengthen") as raised:
        guard.check(41)
    assert raised.value.exit_code == 70


@given(SKIPS, SKIPS)
def test_a_restored_guard_counts_on(before: list[bool], after: list[bool]) -> None:
    one, other = Guard(CPU), Guard(CPU)
    for skip in before:
        one.count(flag(skip))
    other.load_state_dict(one.state_dict())
    for guard in (one, other):
        for skip in after:
            guard.count(flag(skip))
    assert (
        other.state_dict()
        == one.state_dict()
        == {
            "skipped": sum(before + after),
            "in_a_row": longest_tail(before + after),
        }
    )


GOOD, OVERFLOW, NAN = (False, 1.0), (True, 1.0), (True, float("nan"))
"""Steps as (skipped, loss): a skip with a finite loss is an overflow of the gradients alone."""
STEPS = st.lists(st.sampled_from([GOOD, OVERFLOW, NAN]), max_size=40)


def take(scale: LossScale, step: tuple[bool, float]) -> bool:
    return bool(scale.adjust(flag(step[0]), torch.tensor(step[1])))


def test_an_overflow_halves_the_scale_and_is_no_skip_for_the_guard() -> None:
    scale = LossScale(CPU, initial=8.0)
    assert not take(scale, OVERFLOW)
    assert float(scale.value) == 4.0
    assert int(scale.overflows) == 1


def test_a_loss_that_is_not_finite_is_a_skip_and_leaves_the_scale() -> None:
    scale = LossScale(CPU, initial=8.0)
    assert take(scale, NAN)
    assert float(scale.value) == 8.0
    assert int(scale.overflows) == 0


def test_at_a_scale_of_one_there_is_nothing_left_to_lower_so_an_overflow_is_a_skip() -> None:
    scale = LossScale(CPU, initial=2.0)
    assert not take(scale, OVERFLOW)
    assert float(scale.value) == 1.0
    assert take(scale, OVERFLOW)
    assert float(scale.value) == 1.0
    assert int(scale.overflows) == 1


def test_the_scale_doubles_after_so_many_good_steps_in_a_row() -> None:
    scale = LossScale(CPU, initial=8.0, patience=3)
    seen = []
    for step in (GOOD, GOOD, NAN, GOOD, GOOD, GOOD, GOOD, GOOD, OVERFLOW, GOOD, GOOD, GOOD):
        take(scale, step)
        seen.append(float(scale.value))
    assert seen == [8, 8, 8, 8, 8, 16, 16, 16, 8, 8, 8, 16]


@given(STEPS, st.integers(1, 4), st.integers(0, 6))
def test_every_skip_is_either_an_overflow_or_told_to_the_guard(
    steps: list[tuple[bool, float]], patience: int, exponent: int
) -> None:
    scale = LossScale(CPU, initial=2.0**exponent, patience=patience)
    told = sum(take(scale, step) for step in steps)
    assert told + int(scale.overflows) == sum(step[0] for step in steps)
    assert float(scale.value) >= 1
    assert float(scale.value).hex().startswith("0x1.0000000000000p")  # scaling by powers of two rounds nothing


@given(st.lists(st.sampled_from([GOOD, OVERFLOW]), max_size=12), st.integers(1, 4))
@examples(max_examples=30)
def test_the_scale_moves_as_torchs_own_does(steps: list[tuple[bool, float]], patience: int) -> None:
    ours = LossScale(CPU, patience=patience)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight])
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=patience)
    for step in steps:
        take(ours, step)
        torchs.scale(weight.sum()).backward()
        weight.grad = torch.full((1,), float("inf") if step[0] else 1.0)
        torchs.step(optimizer)
        torchs.update()
        assert float(ours.value) == torchs.get_scale()


@given(STEPS, STEPS)
def test_a_restored_scale_moves_on(before: list[tuple[bool, float]], after: list[tuple[bool, float]]) -> None:
    one, other = LossScale(CPU, patience=3), LossScale(CPU, patience=3)
    for step in before:
        take(one, step)
    other.load_state_dict(one.state_dict())
    for step in after:
        assert take(one, step) == take(other, step)
    assert other.state_dict() == one.state_dict()
