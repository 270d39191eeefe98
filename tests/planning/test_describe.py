"""What is said of a schedule is what it does: formulas are evaluated, joints are where it turns."""

import math
from typing import Any

import pytest

from trainwell.optim.dialects import DIALECTS, END_AT_HORIZON, READ_INITIAL
from trainwell.planning.describe import explain, joints, rate, schedule_line
from trainwell.planning.resolve import Plan

NAMES = {"cos": math.cos, "sqrt": math.sqrt, "pi": math.pi, "max": max, "int": int, "round": round}
OWN = [
    {},
    {"schedule.warmup": 0},
    {"schedule.initial_lr": "1%"},
    {"schedule.initial_lr": "1%", "schedule.warmup_shape": "exponential"},
    {"schedule.decay": "linear"},
    {"schedule.decay": "constant"},
    {"schedule.decay": "inverse-sqrt", "schedule.min_lr": "50%"},
    {"schedule.decay": "inverse-sqrt", "schedule.warmup": 0, "schedule.min_lr": "0%"},
    {"schedule.decay": "wsd"},
]
THEIRS = [
    {"schedule.dialect": name} | ({"schedule.initial_lr": "1%"} if name in READ_INITIAL else {}) for name in DIALECTS
]


@pytest.mark.parametrize("flags", OWN + THEIRS, ids=lambda flags: " ".join(map(str, flags.values())) or "demo")
def test_the_formula_with_its_numbers_gives_the_rate(plan_of: Any, flags: dict[str, object]) -> None:
    past = 0 if flags.get("schedule.dialect") in END_AT_HORIZON else 50
    plan = plan_of("demo", flags | {"schedule.horizon": 600, "duration": 600 + past})
    minimum = plan.config.schedule.min_lr.of(plan.config.optim.lr)
    for step in {*range(0, 600 + past, 37), 1, 59, 60, 61, 480, 599, 599 + past}:
        *_, numbers, value = explain(plan, step).split(" (past")[0].split(" = ")
        computed = eval(
            numbers.replace(" x ", " * ").replace("^", "**"), NAMES | {"P": plan.config.optim.lr, "m": minimum}
        )
        assert computed == pytest.approx(plan.lr(step), rel=2e-3)
        assert value == rate(plan.lr(step))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e-3, "1e-3"), (6e-4, "6e-4"), (2.5e-5, "2.5e-5"), (1.02094e-5, "1.021e-5"), (1, "1e0")],
)
def test_a_rate_is_written_as_people_write_it(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("recipe", "flags", "line"),
    [
        ("demo", {"optim.lr": 1e-3}, "linear warmup 120 steps to 1e-3, cosine to 1e-4 at step 1199"),
        ("demo", {"schedule.warmup": 0, "schedule.decay": "constant"}, "no warmup, peak 3e-3, then constant"),
        (
            "demo",
            {"schedule.decay": "wsd", "schedule.initial_lr": "1%", "schedule.warmup_shape": "exponential"},
            "exponential warmup 120 steps from 3e-5 to 3e-3, constant up to step 960, linear to 3e-4 at step 1199",
        ),
        (
            "shakespeare-char",
            {"duration": 60},
            "linear warmup 100 steps to 1e-3, cosine to 1e-4 at step 1999 (dialect nanogpt); "
            "this run ends at step 59 with 5.941e-4",
        ),
    ],
)
def test_a_schedule_is_said_in_a_line(plan_of: Any, recipe: str, flags: dict[str, object], line: str) -> None:
    assert schedule_line(plan_of(recipe, flags)) == line


def turns(plan: Plan) -> list[tuple[str, int]]:
    return [(joint.what, joint.step) for joint in joints(plan)]


def test_joints_are_where_the_schedule_turns(plan_of: Any) -> None:
    assert turns(plan_of("demo")) == [("start", 0), ("peak", 119), ("middle of the decay", 659), ("last step", 1199)]
    assert turns(plan_of("shakespeare-char"))[1] == ("peak", 100)
    assert turns(plan_of("demo", {"schedule.decay": "wsd"}))[2:4] == [
        ("decay starts", 960),
        ("middle of the decay", 1080),
    ]
    assert turns(plan_of("demo", {"schedule.horizon": 1000}))[-2:] == [("end of the horizon", 999), ("last step", 1199)]
    assert turns(plan_of("demo", {"duration": 1})) == [("last step", 0)]
    assert turns(plan_of("shakespeare-char", {"duration": 60})) == [("start", 0), ("last step", 59)]


def test_a_joint_knows_its_rate_tokens_and_epoch(plan_of: Any) -> None:
    joint = joints(plan_of("demo", tokens=1000 * 128 + 1))[-1]
    assert (joint.tokens, joint.lr, joint.batch) == (1199 * 16 * 128, 3e-4, 16)
    assert joint.epoch == pytest.approx(1199 * 16 / 1000)
