"""The verdict: each of its rules, with the smallest run that provokes it."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.report.load import load_run
from trainwell.report.verdict import Judgement, judge, verdict
from trainwell.runs.metrics import Row


def train(losses: Sequence[float], clipped: Sequence[bool] | None = None) -> list[Row]:
    marks = clipped or [False] * len(losses)
    return [
        {"step": step, "train/loss": loss, "train/clipped": mark}
        for step, (loss, mark) in enumerate(zip(losses, marks, strict=True))
    ]


def val(losses: Sequence[float], every: int = 100) -> list[Row]:
    return [{"step": every * number, "val/loss": loss} for number, loss in enumerate(losses)]


FALLING = [1 + 4 * math.exp(-step / 60) for step in range(400)]


def judged(losses: Sequence[float], checks: Sequence[float] = ()) -> Judgement:
    return judge(train(losses), val(checks))


def test_a_run_whose_validation_falls_has_learned() -> None:
    found = judged(FALLING, [5.0, 2.0, 1.5, 1.3, 1.2])
    assert found.text == "learned: validation loss 5.000 to 1.200, best 1.200 at step 400, 0% of the steps clipped"
    assert "longer --duration" in found.advice


def test_a_run_that_is_flat_at_the_end_is_not_told_to_run_longer() -> None:
    assert "flat at the end" in judged(FALLING, [5.0, 2.0, 1.5, 1.2, 1.2]).advice


def test_without_validation_the_training_loss_is_judged_and_said_so() -> None:
    assert judged(FALLING).text.startswith("learned: training loss 5.000 to 1.0")


def test_a_validation_loss_that_rises_after_its_best_is_overfitting_since_then() -> None:
    found = judged(FALLING, [5.0, 2.0, 1.5, 1.8, 2.1])
    assert found.text.startswith("overfitting since step 200: validation 1.500 then, 2.100 at the end")
    assert "@200" in found.advice
    assert (found.best_step, found.best_loss) == (200, 1.5)


def test_one_worse_evaluation_is_not_overfitting() -> None:
    assert judged(FALLING, [5.0, 2.0, 1.5, 1.4, 1.6]).kind == "learned"


def test_a_loss_that_stays_where_it_began_is_not_learning() -> None:
    found = judged([5.55] * 300, [5.55, 5.54, 5.5, 5.53])
    assert found.kind == "not learning"
    assert "higher --optim.lr" in found.advice


def test_losses_that_are_no_numbers_at_the_end_are_divergence() -> None:
    found = judged([*FALLING, *[math.nan] * 5])
    assert found.text.startswith("diverged after step 399")
    assert "half of --optim.lr" in found.advice


def test_four_losses_that_are_no_numbers_are_not_yet_divergence() -> None:
    assert judged([*FALLING, *[math.nan] * 4]).kind == "learned"


def test_a_run_without_one_finite_loss_has_diverged() -> None:
    assert judged([math.nan] * 6).kind == "diverged"


def test_a_loss_that_climbs_back_half_of_its_way_has_diverged() -> None:
    assert judged([*FALLING, *(1 + 0.05 * step for step in range(100))]).kind == "diverged"


def test_a_single_spike_is_not_divergence() -> None:
    assert judged([*FALLING[:200], 9.0, *FALLING[200:]]).kind == "learned"


def test_one_step_is_too_early_to_tell() -> None:
    assert judged([]).text == "too early to tell after 0 steps"


@pytest.mark.parametrize(("often", "said"), [(2, "50%"), (4, "25%")])
def test_the_share_of_clipped_steps_is_counted(often: int, said: str) -> None:
    rows = train(FALLING, [step % often == 0 for step in range(len(FALLING))])
    assert f", {said} of the steps clipped" in judge(rows, []).text


def test_when_most_steps_are_clipped_it_says_what_would_clip_less() -> None:
    rows = train(FALLING, [True] * len(FALLING))
    assert "100% of the steps clipped (often: a lower --optim.lr" in judge(rows, []).text


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 0.2))
def test_noise_does_not_turn_a_falling_curve_into_another_verdict(seed: int, noise: float) -> None:
    dice = random.Random(seed)
    assert judged([loss + dice.gauss(0, noise) for loss in FALLING]).kind == "learned"


def test_a_short_run_whose_last_validation_is_its_best_has_not_diverged() -> None:
    train = [{"step": step, "train/loss": loss} for step, loss in enumerate([2.9, 2.5, 3.4, 3.5, 3.6])]
    val = [{"step": 0, "val/loss": 2.97}, {"step": 5, "val/loss": 2.81}]
    assert judge(train, val).kind != "diverged"


@given(losses=st.lists(st.floats()), checks=st.lists(st.floats()))
def test_any_losses_get_a_verdict_of_one_line(losses: list[float], checks: list[float]) -> None:
    assert "\n" not in judged(losses, checks).text


def test_a_run_that_is_not_finished_is_judged_so_far_and_without_advice(make_run: Callable[..., Path]) -> None:
    unfinished, finished = load_run(make_run(taken=700, name="a")), load_run(make_run(name="b"))
    assert verdict(unfinished).startswith("so far learned: ")
    assert "; " not in verdict(unfinished)
    assert verdict(finished).startswith("learned: ")
    assert "; flat at the end" in verdict(finished)
