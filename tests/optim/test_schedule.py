"""Our own schedules: exact at both ends, monotone between, and defined for ever."""

import math
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.optim.batch_plan import BatchPlan
from trainwell.optim.schedule import DecayShape, Schedule, as_torch, by_tokens, join, own

SHAPES = get_args(DecayShape)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, float, float, int, int]:
    """A schedule with its peak, minimum, warmup and horizon."""
    peak = draw(st.floats(1e-6, 1.0))
    minimum = peak * draw(st.floats(0.0, 1.0))
    horizon = draw(st.integers(2, 3000))
    warmup = draw(st.integers(0, horizon - 1))
    initial = peak * draw(st.floats(1e-3, 1.0)) if warmup > 1 and draw(st.booleans()) else None
    shape = draw(st.sampled_from(["linear", "exponential"])) if initial else "linear"
    decay_steps = draw(st.integers(1, horizon - warmup))
    schedule = own(
        peak,
        warmup,
        horizon,
        shape=shape,  # type: ignore[arg-type]
        initial_lr=initial,
        decay=draw(st.sampled_from(SHAPES)),
        decay_steps=decay_steps,
        min_lr=minimum,
    )
    return schedule, peak, minimum, warmup, horizon


@given(schedules())
def test_rates_stay_between_nothing_and_the_peak(drawn: tuple[Schedule, float, float, int, int]) -> None:
    schedule, peak, _, _, horizon = drawn
    assert all(0 <= schedule(step) <= peak * (1 + 1e-12) for step in range(horizon + 5))


@given(schedules())
def test_rates_rise_up_to_the_end_of_the_warmup_and_never_after(drawn: tuple[Schedule, float, float, int, int]) -> None:
    schedule, peak, _, warmup, horizon = drawn
    rates = [schedule(step) for step in range(horizon + 5)]
    rising, falling = rates[:warmup], rates[warmup:]
    slack = peak * 1e-12
    assert all(after >= before - slack for before, after in pairwise(rising))
    assert all(after <= before + slack for before, after in pairwise(falling))


@given(schedules())
def test_the_last_step_of_the_warmup_has_exactly_the_peak(drawn: tuple[Schedule, float, float, int, int]) -> None:
    schedule, peak, _, warmup, _ = drawn
    if warmup:
        assert schedule(warmup - 1) == peak


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
def test_the_last_step_of_the_horizon_and_all_after_it_have_exactly_the_minimum(decay: DecayShape) -> None:
    schedule = own(3e-3, 120, 1200, decay=decay, decay_steps=240, min_lr=3e-4)
    assert {schedule(step) for step in (1199, 1200, 10**9)} == {3e-4}
    assert schedule(1198) > 3e-4


def test_the_peak_comes_once_under_cosine() -> None:
    schedule = own(1.0, 10, 100, min_lr=0.1)
    assert [step for step in range(100) if schedule(step) == 1.0] == [9]


def test_cosine_follows_its_formula() -> None:
    schedule = own(1.0, 10, 100, min_lr=0.1)
    assert [schedule(step) for step in (0, 1, 8)] == [0.1, 0.2, 0.9]
    assert schedule(10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 90)) / 2)
    assert schedule(54) == pytest.approx(0.55)


def test_an_initial_rate_is_met_exactly_at_step_0() -> None:
    linear = own(1e-3, 27, 135, initial_lr=1e-5, min_lr=1e-5)
    assert (linear(0), linear(26)) == (1e-5, 1e-3)
    assert linear(13) == pytest.approx((1e-5 + 1e-3) / 2)
    exponential = own(1e-3, 27, 135, shape="exponential", initial_lr=1e-5, min_lr=1e-5)
    assert (exponential(0), exponential(26)) == (1e-5, 1e-3)
    assert exponential(13) == pytest.approx(1e-4)


def test_wsd_stays_at_the_peak_until_its_decay() -> None:
    schedule = own(1.0, 10, 100, decay="wsd", decay_steps=20)
    assert {schedule(step) for step in range(9, 80)} == {1.0}
    assert schedule(80) == pytest.approx(0.95)
    assert schedule(98) == pytest.approx(0.05)


def test_a_constant_rate_and_the_inverse_square_root_have_no_end() -> None:
    assert own(1.0, 10, 100, decay="constant")(10**6) == 1.0
    root = own(1.0, 100, 1000, decay="inverse-sqrt", min_lr=0.01)
    assert root(399) == 0.5
    assert root(10**9) == 0.01


def test_the_figures_of_the_book_are_drawn() -> None:
    first = own(1e-2, 20, 100, initial_lr=1e-4, decay="constant")
    assert (first(0), first(19), first(99)) == (1e-4, 1e-2, 1e-2)
    second = own(1e-2, 20, 100, initial_lr=1e-4, min_lr=1e-5)
    assert (second(0), second(19), second(99)) == (1e-4, 1e-2, 1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"warmup": 100}, "leaves nothing"),
        ({"initial_lr": 0.1, "warmup": 1}, "at least 2 steps"),
        ({"shape": "exponential"}, "above 0"),
        ({"decay": "wsd", "decay_steps": 0}, "does not fit"),
        ({"decay": "wsd", "decay_steps": 91}, "does not fit"),
    ],
)
def test_numbers_that_no_schedule_has_are_refused(wrong: dict[str, object], words: str) -> None:
    settings = {"warmup": 10} | wrong
    with pytest.raises(ValueError, match=words):
        own(1.0, horizon=100, **settings)  # type: ignore[arg-type]


def test_a_schedule_over_tokens_asks_for_the_tokens_before_the_step() -> None:
    schedule = by_tokens(lambda tokens: tokens / 1e6, BatchPlan(batch_size=512, seq_len=1024))
    assert schedule(0) == 0
    assert schedule(3) == 3 * 524288 / 1e6


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"decay": "cosin"}, "decay 'cosin' is not known; give one of cosine, linear"),
        ({"shape": "exp"}, "shape 'exp' is not known; give one of linear, exponential"),
        ({"peak": -1.0}, "a peak of -1.0, .* do not go together"),
        ({"warmup": -1}, "a warmup of -1 do not go together"),
        ({"min_lr": 2.0}, "a minimum of 2.0 and"),
        ({"initial_lr": -0.1, "shape": "exponential"}, "an initial rate of -0.1"),
    ],
)
def test_a_misspelt_shape_or_an_impossible_rate_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        own(**{"peak": 1.0, "warmup": 10, "horizon": 100} | wrong)  # type: ignore[arg-type]


def test_joined_schedules_each_count_their_own_steps() -> None:
    schedule = join([lambda step: 10 + step, lambda step: 20 + step, lambda step: 30 + step], [3, 5])
    assert [schedule(step) for step in range(7)] == [10, 11, 12, 20, 21, 30, 31]


@pytest.mark.parametrize("boundaries", [[], [3, 3], [5, 3], [0, 3], [1, 2, 3]])
def test_boundaries_that_do_not_fit_are_refused(boundaries: list[int]) -> None:
    with pytest.raises(
        ValueError, match="do not join; give at least one schedule, and 2 steps in rising order above 0"
    ):
        join([lambda step: 0.0] * 3, boundaries)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_schedule_drives_a_loop_of_ones_own_as_torchs_lambda_lr() -> None:
    import torch

    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups: list[dict[str, object]] = [{"params": weights[:1]}, {"params": weights[1:], "lr_scale": 10.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    schedule = own(1e-3, 5, 20)
    scheduler = as_torch(schedule, optimizer)
    for step in range(25):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([schedule(step), 10 * schedule(step)], rel=1e-15)
        optimizer.step()
        scheduler.step()


def test_an_optimizer_made_with_rate_0_cannot_be_scaled() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    with pytest.raises(ValueError, match="lr 0, which LambdaLR cannot scale"):
        as_torch(own(1e-3, 5, 20), optimizer)


def test_only_an_optimizer_can_be_driven() -> None:
    with pytest.raises(ValueError, match="takes a schedule and an optimizer, not int"):
        as_torch(own(1e-3, 5, 20), 3)  # type: ignore[arg-type]
