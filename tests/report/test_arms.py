"""Trials compared: arms by what differs, all read off at the same place, and warned about where it is unfair."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import ConfigError
from trainwell.report.arms import amount, compare_trials, sentence
from trainwell.report.contrast_page import verdict_page
from trainwell.report.trial import Data, Trial

DATA = Data("f" * 64, "bytes", "f" * 64 + ", 0.1 held out", 1_000_000)


def trial(name: str, losses: Mapping[int, float], seed: int = 1, rate: str = "0.001", tokens: int = 100) -> Trial:
    """A run that was evaluated at some steps of `tokens` each, a second long."""
    val = tuple(
        {"step": step, "tokens": step * tokens, "time": float(step), "val/loss": loss, "val/bpb": loss / 2}
        for step, loss in losses.items()
    )
    train = tuple(
        {"step": step, "tokens": (step + 1) * tokens, "time": step + 1.0, "train/loss": 5.0 - 0.01 * step}
        for step in range(max(losses))
    )
    settings = {"optim.lr": rate, "seed": str(seed), "eval.every": "10"}
    return Trial(name, "run", settings, train, val, DATA, "cpu", 10.0, max(losses), ())


def seeds(name: str, rate: str, ends: list[float]) -> list[Trial]:
    return [trial(f"{name}{at}", {0: 5.0, 10: 3.0, 20: end}, at, rate) for at, end in enumerate(ends)]


BETTER = seeds("a", "0.001", [1.50, 1.52, 1.49, 1.51, 1.50])
WORSE = seeds("b", "0.01", [1.80, 1.83, 1.78, 1.81, 1.80])


def test_arms_are_made_of_what_differs_and_paired_by_seed() -> None:
    found = compare_trials([[*WORSE, *BETTER]])
    assert [arm.name for arm in found.arms] == ["optim.lr=0.01", "optim.lr=0.001"]
    contrast = found.contrasts[0]
    assert contrast.difference.paired
    assert contrast.verdict == "better"
    assert contrast.difference.mean == pytest.approx(-0.3)
    said = sentence(contrast, found)
    assert said.startswith("optim.lr=0.001 is better than optim.lr=0.01: 0.3000 nats per token (16.63%) below it")
    assert "5 and 5 runs, paired by seed" in said


def test_along_a_key_the_best_value_is_what_others_are_held_against() -> None:
    found = compare_trials([[*WORSE, *BETTER]], along="optim.lr")
    assert [arm.settings["optim.lr"] for arm in found.arms] == ["0.001", "0.01"]
    assert found.base.settings["optim.lr"] == "0.001"
    assert [each.verdict for each in found.contrasts] == ["worse"]
    with pytest.raises(ConfigError, match=r"keys that differ are: optim\.lr"):
        compare_trials([[*WORSE, *BETTER]], along="model.width")


def test_targets_with_several_runs_are_arms_whatever_differs() -> None:
    other = seeds("c", "0.001", [1.50, 1.53, 1.48, 1.51, 1.49])
    found = compare_trials([BETTER, other])
    assert [len(arm.outcomes) for arm in found.arms] == [5, 5]
    assert found.contrasts[0].verdict == "inside the noise"
    assert "more seeds of each would decide" in sentence(found.contrasts[0], found)


def test_two_runs_decide_nothing_and_say_what_would() -> None:
    found = compare_trials([BETTER[:1], WORSE[:1]])
    assert found.contrasts[0].verdict == "cannot be told"
    assert "train each with several seeds" in sentence(found.contrasts[0], found)


def test_all_are_read_where_the_shortest_ends() -> None:
    long = trial("long", {0: 5.0, 10: 3.0, 20: 2.0, 40: 1.0}, rate="0.002")
    found = compare_trials([[long], [trial("short", {0: 5.0, 20: 2.5, 30: 2.2})]])
    assert found.end == 3000
    assert [arm.outcomes[0].final for arm in found.arms] == [pytest.approx(1.5), 2.2]
    assert [arm.outcomes[0].last for arm in found.arms] == [1.0, 2.2]
    assert any(line.startswith("other lengths: short ends after 3k tokens, long after 4k") for line in found.warnings)
    areas = [arm.outcomes[0].area for arm in found.arms]
    assert areas == [pytest.approx((40 + 25 + 17.5) / 30), pytest.approx((75 + 23.5) / 30)]
    assert found.contrasts[0].area == pytest.approx(areas[1] - areas[0])


def test_the_target_is_reached_between_evaluations() -> None:
    found = compare_trials([BETTER[:1], WORSE[:1]], target_loss=2.4)
    reached = found.arms[0].outcomes[0].target
    assert reached["steps"] == pytest.approx(14)
    assert reached["tokens"] == pytest.approx(1400)
    assert reached["time"] == pytest.approx(14)
    assert reached["flops"] == pytest.approx(14_000)
    assert compare_trials([BETTER[:1], WORSE[:1]], target_loss=1.0).arms[0].outcomes[0].target["tokens"] is None


def test_other_tokenizers_are_compared_in_bits_per_byte() -> None:
    other = replace(WORSE[0], data=replace(DATA, tokenizer="gpt2"))
    found = compare_trials([BETTER[:1], [other]])
    assert (found.key, found.unit) == ("val/bpb", "bits per byte")
    assert found.arms[1].mean == pytest.approx(0.9)
    assert "other tokenizers: bytes; gpt2" in found.warnings


def test_what_makes_a_comparison_unfair_is_said() -> None:
    other = replace(WORSE[0], data=Data("a" * 64, "bytes", "a" * 64 + ", all", 50), device="gpu")
    said = compare_trials([BETTER[:1], [other]], by="time").warnings
    assert any(line.startswith("other data: aaaaaaaaaaaa; ffffffffffff") for line in said)
    assert any(line.startswith("other validation sets: ") for line in said)
    assert any(line.startswith("compared by time, on other machines: cpu; gpu") for line in said)
    close = [replace(each, data=replace(DATA, val_targets=500)) for each in (BETTER[0], replace(BETTER[1], name="x"))]
    assert any(
        "the validation set is small: 500 tokens" in line for line in compare_trials([close[:1], close[1:]]).warnings
    )
    assert compare_trials([BETTER, WORSE]).warnings == ()


def test_the_first_step_that_differs_is_named() -> None:
    other = replace(
        WORSE[0], train=tuple({**row, "train/loss": row["train/loss"] + (row["step"] >= 7)} for row in WORSE[0].train)
    )
    contrast = compare_trials([BETTER[:1], [other]]).contrasts[0]
    assert contrast.first is not None
    assert contrast.first.step == 7
    assert contrast.pair == ("a0", "b0")


def test_a_run_without_evaluations_is_named() -> None:
    with pytest.raises(ConfigError, match="b0 has no evaluation on record"):
        compare_trials([BETTER[:1], [replace(WORSE[0], val=())]])
    silent = replace(WORSE[0], val=tuple({"step": row["step"], "val/loss": row["val/loss"]} for row in WORSE[0].val))
    with pytest.raises(ConfigError, match=r"compare --by steps, or give --tokens-per-step"):
        compare_trials([BETTER[:1], [silent]])
    assert compare_trials([BETTER[:1], [silent]], by="steps").end == 20


def test_of_a_folder_runs_that_are_not_done_are_left_out_and_named() -> None:
    running = replace(BETTER[0], name="late", num_steps=40, notes=("late: running, step 25 of 40",))
    silent = replace(WORSE[0], name="silent", val=())
    found = compare_trials([[*BETTER[1:], running, *WORSE, silent]])
    assert [len(arm.outcomes) for arm in found.arms] == [4, 5]
    assert found.end == 2000
    assert "left out: late: running, step 25 of 40" in found.warnings
    assert "left out: silent has no evaluation" in found.warnings
    assert compare_trials([[running], BETTER]).arms[0].outcomes[0].trial.name == "late"


def test_of_a_folder_in_which_none_is_done_all_are_compared() -> None:
    going = [replace(each, num_steps=40) for each in (*BETTER, *WORSE)]
    assert [len(arm.outcomes) for arm in compare_trials([going]).arms] == [5, 5]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((1.0, 2.0, 3.0), ["the best optim.lr, 0.001, is at the edge of what was tried: try smaller ones"]),
        ((3.0, 2.0, 1.0), ["the best optim.lr, 0.1, is at the edge of what was tried: try larger ones"]),
        ((2.0, 1.0, 3.0), []),
    ],
)
def test_a_best_value_at_the_edge_of_those_tried_is_said(ends: tuple[float, ...], said: list[str]) -> None:
    trials = [
        each for rate, end in zip(("0.001", "0.01", "0.1"), ends, strict=True) for each in seeds("r", rate, [end])
    ]
    assert [*compare_trials([trials], along="optim.lr").warnings] == said


def test_the_page_shows_names_as_text() -> None:
    evil = "<script>alert(1)</script>\u202e"
    named = [replace(each, settings={**each.settings, "extra.x": evil}, name=evil) for each in WORSE]
    page = verdict_page(compare_trials([BETTER, named], along="extra.x"), "extra.x")
    many = [replace(each, settings={**each.settings, "optim.lr": str(at)}) for at, each in enumerate(named)]
    page += verdict_page(compare_trials([many], along="optim.lr"), "optim.lr")
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)" in page


@given(st.permutations(list(range(5))))
def test_the_order_of_runs_does_not_matter(order: list[int]) -> None:
    found = compare_trials([BETTER, [WORSE[at] for at in order]])
    assert found.contrasts[0].difference == compare_trials([BETTER, WORSE]).contrasts[0].difference


def test_amounts_are_said_in_words() -> None:
    assert amount(1.5e6, "tokens") == "1.5M tokens"
    assert amount(90, "time") == "1 min 30 s"
    assert amount(2e15, "flops") == "2e+15 FLOPs"
