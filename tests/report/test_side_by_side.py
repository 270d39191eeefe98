"""What `compare` prints, read as a person would."""

import io

import pytest
from rich.console import Console

from trainwell.config.load import load
from trainwell.planning.resolve import Plan, resolve
from trainwell.report.compare import Side, compare
from trainwell.report.load import Joined
from trainwell.report.side_by_side import show_comparison

NUMBERS = {"duration": 100, "batch_size": 4, "micro_batch": 4, "data.seq_len": 16, "optim.lr": 1.0}


def plan_of(**changes: object) -> Plan:
    below = NUMBERS | {"schedule.warmup": 10}
    return resolve(load("demo", flags=below | {key.replace("__", "."): value for key, value in changes.items()}))


def printed(left: Plan, right: Plan, width: int = 100, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    what = show_comparison(compare(Side("one", "file", left), Side("other", "file", right)), ["\x1bassumed"])
    Console(file=stream, width=width, highlight=False).print(what, markup=False)
    stream.seek(0)
    return stream.read()


def test_both_schedules_the_differences_and_the_settings_are_said() -> None:
    text = printed(plan_of(schedule__dialect="nanogpt"), plan_of(schedule__dialect="build-nanogpt", seed=1))
    for part in (
        "one    linear warmup 10 steps to 1e0",
        "first difference    step 0: 9.090909e-02 | 1.000000e-01",
        "largest difference  step 9: 9.090909e-01 | 1.000000e+00, +9.091e-2 (+10% of the left)",
        "the same: 4 x 16 = 64 tokens",
        "schedule.dialect  nanogpt  build-nanogpt",
        "seed              1337     1",
        "note: \\x1bassumed",
    ):
        assert part in text
    assert "identical" not in text


def test_identical_schedules_are_called_so() -> None:
    text = printed(plan_of(schedule__dialect="litgpt"), plan_of(schedule__dialect="nanotron"))
    assert "identical" in text
    assert "the right is 100% of the left" in text


def test_the_same_configuration_is_called_so() -> None:
    assert "the configurations are the same" in printed(plan_of(), plan_of())


def test_other_lengths_and_batches_are_said() -> None:
    text = printed(plan_of(), plan_of(duration=50, batch_size=8, micro_batch=8))
    assert "100 | 50: rates are compared over the 50 of both" in text
    assert "4 x 16 = 64 tokens | 8 x 16 = 128 tokens" in text
    assert "first other at step 0: 4 | 8 sequences" in text


@pytest.mark.parametrize(("width", "encoding"), [(60, "utf-8"), (100, "utf-8"), (60, "ascii")])
def test_a_comparison_fits_the_terminal(width: int, encoding: str) -> None:
    ramp = {"batch_ramp__from_tokens": 16, "batch_ramp__over": "1000 tokens"}
    text = printed(plan_of(), plan_of(**ramp), width, encoding)
    assert "sequences a step" in text
    assert max(map(len, text.splitlines())) <= width


def with_rows(parts: tuple[tuple[str, int], ...], train: float, val: float) -> Joined:
    return Joined(
        tuple({"step": step, "train/loss": 3.0 if step < 40 else train} for step in range(100)),
        tuple({"step": step, "val/loss": val} for step in (0, 50, 100)),
        parts,
    )


def of_runs(left: Joined, right: Joined, width: int = 100) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sides = (Side("runs/a", "run", plan_of(), left), Side("runs/b", "run", plan_of(), right))
    Console(file=stream, width=width, highlight=False).print(show_comparison(compare(*sides)), markup=False)
    stream.seek(0)
    return stream.read()


def test_of_two_runs_the_losses_are_drawn_and_put_side_by_side() -> None:
    text = of_runs(with_rows((("runs/a", 0),), 2.0, 2.5), with_rows((("runs/\x1ba", 0), ("runs/b", 40)), 1.0, 1.5))
    assert "training loss, logarithmic, over steps" in text
    assert "joined         runs/\\x1ba up to step 40, then runs/b" in text
    assert "training loss  first other at step 40: 2.000000 | 1.000000" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "50 2.8000 2.6000 2.5000 1.5000" in lines  # 40 steps of 3 and 10 of 2, or of 1
    assert "100 2.0000 1.0000 2.5000 1.5000" in lines


def test_runs_with_the_same_losses_are_said_to_be_the_same_to_the_bit() -> None:
    same = with_rows((("runs/a", 0),), 2.0, 2.5)
    assert "the same to the bit at all 100 common steps" in of_runs(same, same)


def test_runs_without_a_common_step_say_so() -> None:
    late = Joined(({"step": 200, "train/loss": 1.0},), (), (("runs/b", 200),))
    assert "no step is on record in both" in of_runs(with_rows((("runs/a", 0),), 2.0, 2.5), late)


def test_losses_fit_the_terminal() -> None:
    text = of_runs(with_rows((("runs/a", 0),), 2.0, 2.5), with_rows((("runs/b", 0),), 1.0, 1.5), 60)
    assert max(map(len, text.splitlines())) <= 60
