"""Other systems' rates against golden values that anyone can reproduce with those systems."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.tree import Dialect
from trainwell.optim.batch_plan import BatchPlan, Ramp
from trainwell.optim.dialects import (
    AT_MINIMUM_LAST,
    DIALECTS,
    END_AT_HORIZON,
    FORMULAS,
    IN_TOKENS,
    NEED_INITIAL,
    NO_END,
    OWN_DECAY,
    OWN_MINIMUM,
    READ_INITIAL,
    TAKE_DECAY_STEPS,
)
from trainwell.optim.schedule import by_tokens

RISE_AGAIN = {"hf-cosine", "hf-cosine-with-min-lr", "hf-cosine-warmup-with-min-lr"}
"""Those with nothing to stop their cosine at the horizon."""
STEPS = (0, 1, 9, 10, 11, 55, 98, 99)
FROM_ONE_STEP = (0.1, 0.2, 1, 1, 0.999726, 0.55, 0.101096, 0.100274)
FROM_ZERO = (0, 0.1, 0.9, 1, 0.999726, 0.55, 0.101096, 0.100274)
ONE_AHEAD = (0.1, 0.2, 1, 0.999726, 0.998904, 0.534295, 0.100274, 0.1)
GOLDEN = {
    "book": (0.01, 0.109, 0.901, 1, 0.999726, 0.55, 0.101096, 0.100274),
    "build-nanogpt": FROM_ONE_STEP,
    "llm.c": FROM_ONE_STEP,
    "torchtitan": FROM_ONE_STEP,
    "nanogpt": (0.090909, 0.181818, 0.909091, 1, 0.999726, 0.55, 0.101096, 0.100274),
    "litgpt": FROM_ZERO,
    "hf-cosine-with-min-lr": FROM_ZERO,
    "composer": FROM_ZERO,
    "nanotron": FROM_ZERO,
    "hf-cosine-warmup-with-min-lr": ONE_AHEAD,
    "olmo-core": ONE_AHEAD,
    "hf-cosine": (0, 0.1, 0.9, 1, 0.999695, 0.5, 0.001218, 0.000305),
    "hf-linear": (0, 0.1, 0.9, 1, 0.988889, 0.5, 0.022222, 0.011111),
    "hf-inverse-sqrt": (0, 0.1, 0.9, 1, 0.953463, 0.426401, 0.319438, 0.317821),
    "nanochat": (0.1, 0.2, 1, 1, 1, 0.707692, 0.079231, 0.064615),
    "torchtitan-linear": (0.1, 0.2, 1, 1, 0.99, 0.55, 0.12, 0.11),
    "torchtitan-1-sqrt": (0.1, 0.2, 1, 1, 0.905132, 0.363604, 0.1100562, 0.1050142),
    "exponential": (0.01, 0.0158489, 0.630957, 1, 0.999726, 0.55, 0.101096, 0.100274),
    "flashcard-1": (0.01, 0.109, 0.901, 1, 1, 1, 1, 1),
    "gpt3": FROM_ZERO,
    "llm.c-wsd": (0.1, 0.2, 1, 1, 1, 1, 0.146185, 0.122789),
}


def test_every_dialect_has_a_place_in_the_configuration() -> None:
    assert set(get_args(Dialect)) == DIALECTS.keys()


def test_every_dialect_has_golden_values_and_a_formula() -> None:
    assert GOLDEN.keys() == DIALECTS.keys() == FORMULAS.keys()
    assert DIALECTS.keys() >= READ_INITIAL | OWN_MINIMUM | END_AT_HORIZON | RISE_AGAIN | NO_END | AT_MINIMUM_LAST
    assert DIALECTS.keys() >= IN_TOKENS | TAKE_DECAY_STEPS
    assert NEED_INITIAL <= READ_INITIAL


@pytest.mark.parametrize("name", GOLDEN)
def test_a_dialect_gives_its_golden_values(name: str) -> None:
    schedule = DIALECTS[name](1.0, 0.01 if name in NEED_INITIAL else None, 0.1, 10, 100)
    assert [schedule(step) for step in STEPS] == pytest.approx(GOLDEN[name], abs=6e-7)


@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - END_AT_HORIZON - RISE_AGAIN - OWN_MINIMUM))
def test_past_the_horizon_a_dialect_stays_at_its_minimum(name: str) -> None:
    schedule = DIALECTS[name](1.0, None, 0.1, 10, 100)
    assert {schedule(step) for step in (100, 101, 10**6)} == {0.1}


@pytest.mark.parametrize("name", sorted(RISE_AGAIN))
def test_the_cosines_of_hugging_face_rise_again(name: str) -> None:
    schedule = DIALECTS[name](1.0, None, 0.1, 10, 100)
    assert schedule(150) > schedule(100)


def test_the_books_final_call_gives_the_books_rates() -> None:
    schedule = DIALECTS["book"](1e-3, 1e-5, 1e-5, 27, 135)
    rates = [schedule(step) for step in (0, 1, 26, 27, 28, 81, 134)]
    assert rates == pytest.approx([1e-5, 4.66667e-5, 9.63333e-4, 1e-3, 9.99791e-4, 5.05e-4, 1.02094e-5], rel=1e-5)


def test_karpathys_run_prints_karpathys_rates() -> None:
    schedule = DIALECTS["build-nanogpt"](6e-4, None, 6e-5, 10, 50)
    printed = [f"{schedule(step):.4e}" for step in (0, 9, 10, 11, 49)]
    assert printed == ["6.0000e-05", "6.0000e-04", "6.0000e-04", "5.9917e-04", "6.0832e-05"]


def test_gpt3_gives_its_rates_at_tokens_exactly() -> None:
    rate = DIALECTS["gpt3"](6e-4, None, 6e-5, 375_000_000, 260_000_000_000)
    at = [rate(tokens) for tokens in (187_500_000, 375_000_000, 130_187_500_000, 260_000_000_000, 300_000_000_000)]
    assert at == pytest.approx([3e-4, 6e-4, 3.3e-4, 6e-5, 6e-5], rel=1e-15)


def test_gpt3s_steps_are_counted_from_its_tokens() -> None:
    plan = BatchPlan(256, 2048)
    steps = [float(plan.position(Fraction(tokens, 2048))) for tokens in (375_000_000, 260_000_000_000, 300_000_000_000)]
    assert steps == pytest.approx([715.26, 495_910.64, 572_204.59], abs=0.005)


def test_gpt3_over_a_ramp_follows_the_tokens_and_not_the_steps() -> None:
    ramped = BatchPlan(256, 2048, Ramp(32_768, 524_288, 4_000_000_000), 16)
    rate = DIALECTS["gpt3"](6e-4, None, 6e-5, 375_000_000, 260_000_000_000)
    schedule = by_tokens(rate, ramped)
    assert schedule(1) == pytest.approx(6e-4 * 32_768 / 375e6)  # sixteen times less than without the ramp
    assert schedule(200_000) == rate(ramped.tokens_before(200_000))


def test_the_first_flashcards_rates_are_the_flashcards() -> None:
    assert DIALECTS["flashcard-1"](1e-4, 1e-7, 0.0, 1000, 2000)(500) == pytest.approx(5.005e-5)
    line = DIALECTS["flashcard-1"](1e-2, 1e-4, 0.0, 20, 100)
    assert [line(step) for step in (0, 10, 20, 99)] == pytest.approx([1e-4, 5.05e-3, 1e-2, 1e-2])  # figure D.1


def test_torchtitan_stays_at_the_peak_until_its_decay() -> None:
    for name in TAKE_DECAY_STEPS:
        schedule = DIALECTS[name](1.0, None, 0.1, 10, 100, decay_steps=20)
        assert [schedule(step) for step in (9, 10, 79, 80)] == [1, 1, 1, 1]
        assert 0.1 < schedule(99) < schedule(90) < schedule(81) < 1
        assert schedule(100) == 0.1
    half = {name: DIALECTS[name](1.0, None, 0.0, 10, 100, decay_steps=20)(90) for name in TAKE_DECAY_STEPS}
    assert half == pytest.approx({"torchtitan": 0.5, "torchtitan-linear": 0.5, "torchtitan-1-sqrt": 1 - math.sqrt(0.5)})


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[str, float, float, float, int, int]:
    """A dialect with peak, initial rate, minimum, warmup and horizon, no warmup reaching into a decay of its own."""
    name, horizon = draw(st.sampled_from(sorted(DIALECTS))), draw(st.integers(10, 2000))
    room = horizon - OWN_DECAY[name](horizon) if name in OWN_DECAY else horizon - 2
    peak = draw(st.floats(1e-6, 1.0))
    initial, minimum = peak * draw(st.floats(1e-3, 1.0)), peak * draw(st.floats(0.0, 1.0))
    return name, peak, initial, minimum, draw(st.integers(1, room)), horizon


@given(laid_out())
def test_a_dialect_rises_to_its_peak_and_falls_to_its_horizon_between_its_bounds(
    drawn: tuple[str, float, float, float, int, int],
) -> None:
    name, peak, initial, minimum, warmup, horizon = drawn
    schedule = DIALECTS[name](peak, initial, minimum, warmup, horizon)
    rates = [schedule(step) for step in range(horizon)]
    slack = peak * 1e-12
    low = 0.0 if name in OWN_MINIMUM else min(minimum, *rates[:warmup])
    assert all(low - slack <= rate <= peak + slack for rate in rates)
    assert all(after >= before - slack for before, after in pairwise(rates[:warmup]))
    assert all(after <= before + slack for before, after in pairwise(rates[warmup:]))
    assert max(rates) == pytest.approx(peak, rel=0.5 if name in AT_MINIMUM_LAST and horizon < 100 else 1e-2)


@given(laid_out())
def test_the_joint_of_warmup_and_decay_is_no_jump(drawn: tuple[str, float, float, float, int, int]) -> None:
    name, peak, initial, minimum, warmup, horizon = drawn
    schedule = DIALECTS[name](peak, initial, minimum, warmup, horizon)
    rise = schedule(warmup - 1) if warmup == 1 else schedule(warmup - 1) - schedule(warmup - 2)
    fall = abs(schedule(warmup) - schedule(warmup + 1))
    grows = max(1.0, schedule(1) / schedule(0)) if schedule(0) else 1.0  # an exponential rise ends in its largest step
    assert abs(schedule(warmup) - schedule(warmup - 1)) <= peak / warmup + rise * grows + fall + peak * 1e-9


@given(laid_out())
def test_a_dialect_starts_where_it_says(drawn: tuple[str, float, float, float, int, int]) -> None:
    name, peak, initial, minimum, warmup, horizon = drawn
    first = DIALECTS[name](peak, initial, minimum, warmup, horizon)(0)
    if name in NEED_INITIAL:
        assert first == pytest.approx(initial, rel=1e-12)
    elif name == "nanogpt":
        assert first == peak / (warmup + 1)
    elif name != "olmo-core":  # which starts one step above its initial rate
        assert first in (0.0, peak * 1 / warmup)


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_the_last_step_is_at_the_minimum_or_one_short_of_it(name: str) -> None:
    schedule = DIALECTS[name](1.0, 0.01, 0.1, 10, 1000)
    end = {"hf-cosine": 0.0, "hf-linear": 0.0, "nanochat": 0.05}.get(name, 0.1)
    if name in AT_MINIMUM_LAST:
        assert schedule(999) == pytest.approx(end, abs=1e-12)
    elif name not in NO_END:
        assert end < schedule(999) < end + 0.01
        shorter = DIALECTS[name](1.0, 0.01, 0.1, 10, 999)  # how a decay reaches its end: laid out over a step less
        assert shorter(999) == pytest.approx(end, abs=1e-12)


@pytest.mark.slow
def test_hugging_faces_own_schedules_give_these_rates() -> None:
    import torch
    from transformers import optimization

    args: dict[str, object] = {"num_warmup_steps": 10, "num_training_steps": 100}
    theirs: dict[str, tuple[str, dict[str, object]]] = {
        "hf-cosine": ("get_cosine_schedule_with_warmup", args),
        "hf-cosine-with-min-lr": ("get_cosine_with_min_lr_schedule_with_warmup", args | {"min_lr": 0.1}),
        "hf-cosine-warmup-with-min-lr": (
            "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
            args | {"min_lr": 0.1},
        ),
        "hf-linear": ("get_linear_schedule_with_warmup", args),
        "hf-inverse-sqrt": ("get_inverse_sqrt_schedule", {"num_warmup_steps": 10}),
    }
    for name, (function, settings) in theirs.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = getattr(optimization, function)(optimizer, **settings)
        ours, length = DIALECTS[name](1.0, None, 0.1, 10, 100), 130 if name in RISE_AGAIN | NO_END else 100
        for step in range(length):
            assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), f"{name} at step {step}"
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_dialect_without_warmup_starts_where_its_decay_starts(name: str) -> None:
    schedule = DIALECTS[name](1.0, None, 0.1, 0, 100)
    assert schedule(0) == pytest.approx(1.0, abs=1e-3)
