"""What is said of a schedule is what it does: formulas are evaluated, joints are where it turns."""

import math
import re
from typing import Any

import pytest

from trainwell.optim.dialects import DIALECTS, END_AT_HORIZON, READ_INITIAL
from trainwell.planning.describe import batch_line, explain, explain_batch, joints, rate, schedule_line, skip_lines
from trainwell.planning.resolve import Plan
from trainwell.planning.summary import summary

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
RAMP: dict[str, object] = {"batch_ramp.from_tokens": 512, "batch_ramp.over": "65536 tokens", "micro_batch": 4}
RAMPED = [
    RAMP | {"batch_ramp.lr_scaling": "sqrt"},
    RAMP | {"batch_ramp.lr_scaling": "sqrt", "batch_ramp.stages": 3, "schedule.dialect": "nanogpt"},
    RAMP | {"schedule.dialect": "gpt3"},
]
MORE = [
    {"schedule.dialect": "torchtitan", "schedule.decay_steps": "50%"},
    {"schedule.dialect": "torchtitan-1-sqrt", "schedule.decay_steps": 100},
    {"schedule.dialect": "nanogpt", "schedule.reach_min": True},
    {"schedule.dialect": "hf-inverse-sqrt", "schedule.warmup": 0},
]
THEIRS = [
    {"schedule.dialect": name} | ({"schedule.initial_lr": "1%"} if name in READ_INITIAL else {}) for name in DIALECTS
]


@pytest.mark.parametrize(
    "flags", OWN + THEIRS + MORE + RAMPED, ids=lambda flags: " ".join(map(str, flags.values())) or "demo"
)
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


@pytest.mark.parametrize("stages", [None, 3])
def test_the_formula_of_a_ramp_with_its_numbers_gives_the_batch(plan_of: Any, stages: int | None) -> None:
    plan = plan_of("demo", RAMP | {"batch_ramp.stages": stages})
    for step in (0, 1, 17, plan.batch.ramp_steps - 1):
        _, numbers, exact, rounded = re.split(
            r" = |: ", explain_batch(plan, step).replace(" tokens, in whole", ": "), maxsplit=3
        )
        computed = eval(numbers.replace(" x ", " * "), {"floor": math.floor})
        assert computed == pytest.approx(float(exact), abs=1)
        assert rounded.endswith(f": {plan.batch.size(step) * 128}")
    assert explain_batch(plan, 500) == f"16 sequences: the climb ended at step {plan.batch.ramp_steps}"
    assert explain_batch(plan_of("demo"), 3) == "every step takes 16 sequences"


def test_a_batch_is_said_in_a_line(plan_of: Any) -> None:
    assert batch_line(plan_of("demo")) == "16 x 128 = 2,048 tokens"
    flags = RAMP | {"batch_ramp.stages": 3, "batch_ramp.lr_scaling": "sqrt"}
    assert batch_line(plan_of("demo", flags)) == (
        "512 tokens, climbing to 2,048 in 3 stages over the first 65.5k tokens (79 steps), "
        "the rate growing with its square root"
    )


def test_what_else_moves_is_said_with_the_schedule(plan_of: Any) -> None:
    line = schedule_line(plan_of("demo", {"schedule.final_weight_decay": 0.01, "schedule.initial_momentum": 0.8}))
    assert line.endswith("at step 1199; weight decay 0.1 to 0.01; momentum 0.8 to 0.9")
    constant = {"schedule.dialect": "flashcard-1", "schedule.initial_lr": "1%"}
    assert schedule_line(plan_of("demo", constant)).endswith("to 3e-3, then constant (dialect flashcard-1)")
    staying = {"schedule.dialect": "torchtitan", "schedule.decay_steps": 200}
    assert "constant up to step 1000, cosine to 3.002e-4" in schedule_line(plan_of("demo", staying))


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


def test_a_dialect_that_stays_at_its_peak_says_when_it_decays(plan_of: Any) -> None:
    flags = {"duration": 1000, "schedule.dialect": "nanochat"}
    assert turns(plan_of("demo", flags))[2:4] == [("decay starts", 350), ("middle of the decay", 675)]
    assert "constant up to step 800, then to" in schedule_line(
        plan_of("demo", flags | {"schedule.dialect": "llm.c-wsd"})
    )


def test_a_ramp_and_a_schedule_over_tokens_have_joints_of_their_own(plan_of: Any) -> None:
    plan = plan_of("gpt3-125m")
    assert [name for name, _ in turns(plan)] == [
        "start",
        "peak",
        "full batch",
        "middle of the decay",
        "end of the horizon",
        "last step",
    ]
    middle = joints(plan)[3]
    assert middle.lr == pytest.approx(3.3e-4, rel=1e-5)
    assert middle.tokens == pytest.approx(130_187_500_000, rel=1e-5)


def test_a_joint_knows_its_rate_tokens_and_epoch(plan_of: Any) -> None:
    joint = joints(plan_of("demo", tokens=1000 * 128 + 1))[-1]
    assert (joint.tokens, joint.lr, joint.batch) == (1199 * 16 * 128, 3e-4, 16)
    assert joint.epoch == pytest.approx(1199 * 16 / 1000)


def test_what_the_data_leaves_out_is_said_in_windows(plan_of: Any) -> None:
    plan = plan_of("demo", {"data.skip": "40+1, 1000+200"}, tokens=1000 * 128 + 1)
    assert skip_lines(plan) == [
        "one batch from step 40 on is left out: 16 windows",
        "200 batches from step 1,000 on are left out: 3,200 windows",
    ]
    assert skip_lines(plan_of("demo")) == []
    assert set(skip_lines(plan)) < set(summary(plan, 1000))
