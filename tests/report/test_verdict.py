"""The verdict: each of its rules, with the smallest run that provokes it."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.tree import RunConfig
from trainwell.report.load import load_run
from trainwell.report.verdict import Judgement, judge, judge_run, verdict
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


def normed(norms: Sequence[float], stuck: bool = True) -> list[Row]:
    """Rows whose gradients are clipped to 1, of a loss that falls for 20 steps, and then too unless it is `stuck`."""
    losses = [1 + 4 * math.exp(-min(step, 20 if stuck else 400) / 60) for step in range(len(norms))]
    rows = train(losses, [norm > 1 for norm in norms])
    return [row | {"train/grad_norm": norm} for row, norm in zip(rows, norms, strict=True)]


def test_that_most_steps_are_clipped_is_no_reason_for_advice() -> None:
    assert judge(normed([3.0] * 400), []).text.endswith(", 100% of the steps clipped")
    assert judge(train(FALLING, [True] * 400), []).text.endswith(", 100% of the steps clipped")


GROWING = [5.0] * 20 + [1.5 + step / 100 for step in range(380)]


def test_when_most_steps_are_clipped_and_norms_grow_for_nothing_it_says_what_to_try() -> None:
    assert judge(normed(GROWING), []).text.endswith(
        ", 100% of the steps clipped (norms grew from 1.9 to 5.1 and the loss did not fall: try a lower --optim.lr "
        "or a longer --schedule.warmup)"
    )


def test_norms_that_grow_while_the_loss_falls_are_those_of_a_model_that_learns() -> None:
    assert judge(normed(GROWING, stuck=False), []).text.endswith(", 100% of the steps clipped")


def test_gradients_that_grow_below_the_clip_need_no_advice() -> None:
    assert judge(normed([0.1 + step / 1000 for step in range(400)]), []).text.endswith(", 0% of the steps clipped")


@pytest.mark.parametrize("keys", [{"task": "instruct"}, {"task": "classify"}, {"init_from": "runs/demo"}])
def test_a_fine_tune_is_clipped_most_of_the_time_and_not_told_so(keys: dict[str, Any]) -> None:
    grown = normed(GROWING)
    assert "(norms grew" in judge(grown, [], RunConfig()).text
    assert "(" not in judge(grown, [], RunConfig.model_validate(keys)).text


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 0.3))
def test_noisy_norms_do_not_grow(seed: int, noise: float) -> None:
    dice = random.Random(seed)
    assert "(" not in judge(normed([2 * math.exp(dice.gauss(0, noise)) for _ in range(200)]), []).text


def marked(losses: Sequence[float], **signs: Sequence[int]) -> list[Row]:
    """Rows in which the steps named for each sign carry it: `spike=[3]`."""
    return [
        row | {f"train/{sign}": True for sign, steps in signs.items() if row["step"] in steps} for row in train(losses)
    ]


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ({"spike": [50]}, "1 spike"),
        ({"spike": [50, 90, 200]}, "3 spikes"),
        ({"skipped": [50]}, "1 skipped step"),
        ({"spike": [50, 90], "skipped": [50, 90, 91]}, "2 spikes and 3 skipped steps"),
    ],
)
def test_spikes_and_skipped_steps_are_counted(signs: dict[str, list[int]], said: str) -> None:
    found = judge(marked(FALLING, **signs), [])
    assert found.text.endswith(f", {said}")
    assert (found.spikes, found.skipped) == (len(signs.get("spike", [])), len(signs.get("skipped", [])))


@pytest.mark.parametrize("signs", [{"spike": range(50, 55)}, {"skipped": [50]}, {"spike": [50], "skipped": [50]}])
def test_against_many_spikes_and_any_skipped_step_a_lower_rate_comes_first(signs: dict[str, Sequence[int]]) -> None:
    assert judge(marked(FALLING, **signs), []).advice == (
        "flat at the end: try a larger model or more text; to be steadier, try a lower --optim.lr or a longer "
        "--schedule.warmup"
    )


def test_a_spike_in_a_hundred_steps_is_no_reason_for_advice() -> None:
    assert "steadier" not in judge(marked(FALLING, spike=[50, 90, 200, 300]), []).advice


def test_a_steady_run_is_told_nothing_of_it() -> None:
    found = judge(train(FALLING), [], RunConfig.model_validate({"optim": {"max_grad_norm": None}}))
    assert (found.spikes, found.skipped) == (0, 0)
    assert "steadier" not in found.advice
    assert "spike" not in found.text


SPIKY = marked(FALLING, spike=range(50, 60))


def advised(rows: Sequence[Row], **keys: Any) -> str:
    return judge(rows, [], RunConfig.model_validate(keys)).advice.partition("--schedule.warmup")[2]


def test_what_is_off_and_would_steady_a_run_is_named_in_its_order() -> None:
    assert advised(SPIKY) == ", then --model.qk_norm true, --optim.z_loss 1e-4 or --guard.policy skip"
    assert advised(SPIKY, optim={"max_grad_norm": None}).startswith(", then --optim.max_grad_norm 1.0, --model.qk_norm")


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        ({"model": {"qk_norm": True}}, ", then --optim.z_loss 1e-4 or --guard.policy skip"),
        ({"optim": {"z_loss": 1e-4}}, ", then --model.qk_norm true or --guard.policy skip"),
        ({"guard": {"policy": "skip"}}, ", then --model.qk_norm true or --optim.z_loss 1e-4"),
        ({"init_from": "runs/demo"}, ", then --optim.z_loss 1e-4 or --guard.policy skip"),
        ({"task": "classify"}, ", then --model.qk_norm true or --guard.policy skip"),
        ({"custom": {"model": "MyModel", "loss": "my_loss"}}, ", then --guard.policy skip"),
        ({"model": {"qk_norm": True}, "optim": {"z_loss": 1e-4}, "guard": {"policy": "stop"}}, ""),
    ],
)
def test_what_is_on_already_or_cannot_be_switched_on_is_not_named(keys: dict[str, Any], left: str) -> None:
    assert advised(SPIKY, **keys) == left


def test_skipped_steps_in_half_precision_ask_for_a_wider_one() -> None:
    skipping = marked(FALLING, skipped=[50])
    assert advised(skipping, precision="fp16").startswith(", then --precision bf16 or fp32, --model.qk_norm true")
    assert "--precision" not in advised(skipping, precision="bf16")
    assert "--precision" not in advised(SPIKY, precision="fp16")
    assert "--guard.policy" not in advised(skipping), "what is not finite is skipped whatever the policy"


def test_a_run_that_is_unsteady_and_does_not_learn_is_not_told_to_raise_its_rate() -> None:
    found = judge(marked([5.55] * 300, spike=[20, 40]), [])
    assert found.kind == "not learning"
    assert found.advice == "try a lower --optim.lr or a longer --schedule.warmup"


def test_a_run_that_diverged_is_told_the_same_after_half_the_rate() -> None:
    found = judge(marked([*FALLING, *[math.nan] * 5], skipped=range(400, 405)), [], RunConfig())
    assert found.text == "diverged after step 399, 0% of the steps clipped, 5 skipped steps"
    assert found.advice == (
        "try half of --optim.lr or a longer --schedule.warmup, then --model.qk_norm true or --optim.z_loss 1e-4"
    )


def test_five_skipped_steps_in_a_row_at_the_end_are_divergence_whatever_their_loss() -> None:
    assert judge(marked(FALLING, skipped=range(395, 400)), []).text.startswith("diverged after step 394")
    assert judge(marked(FALLING, skipped=range(390, 395)), []).kind == "learned"


def test_a_run_is_judged_by_the_precision_that_it_trained_in(make_run: Callable[..., Path]) -> None:
    run = load_run(make_run())
    rows = tuple(row | {"train/skipped": row["step"] == 9} for row in run.train)
    for precision, asks in (("fp16", True), ("fp32", False)):
        trained = replace(run, train=rows, env=run.env | {"settings": {"precision": precision}})
        assert ("--precision bf16" in verdict(trained)) is asks
        assert verdict(trained).endswith(judge_run(trained).advice)


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
