"""Two schedules compared, against numbers worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwell.config.load import load
from trainwell.planning.resolve import Plan, resolve
from trainwell.report.compare import (
    EXACT_STEPS,
    Comparison,
    Point,
    Side,
    compare,
    config_difference,
    farthest,
    first_apart,
    steps_to_look_at,
)

NUMBERS = {
    "duration": 100,
    "batch_size": 4,
    "micro_batch": 4,
    "data.seq_len": 16,
    "optim.lr": 1.0,
    "schedule.warmup": 10,
    "schedule.min_lr": "10%",
}
"""Peak 1, ten steps of warmup, a horizon of 100, minimum 0.1."""


def plan_of(**changes: object) -> Plan:
    return resolve(load("demo", flags=NUMBERS | {key.replace("__", "."): value for key, value in changes.items()}))


def found(left: Plan, right: Plan) -> Comparison:
    return compare(Side("left", "file", left), Side("right", "file", right))


def parts(point: Point | None) -> tuple[float, float, float]:
    assert point is not None
    return point.step, point.left, point.right


def test_two_systems_with_one_formula_are_identical() -> None:
    same = found(plan_of(schedule__dialect="litgpt"), plan_of(schedule__dialect="hf-cosine-with-min-lr"))
    assert same.identical
    assert (same.first, same.largest, same.first_batch) == (None, None, None)
    assert same.area[0] == same.area[1]
    assert same.config == {"schedule.dialect": ("litgpt", "hf-cosine-with-min-lr")}


def test_rounding_is_no_difference() -> None:
    # Our own warmup is P ((s + 1)/W) and theirs P (s + 1)/W, which may differ in the last bit and in nothing else.
    own, theirs = plan_of(optim__lr=3e-3), plan_of(optim__lr=3e-3, schedule__dialect="hf-cosine-warmup-with-min-lr")
    assert found(own, theirs).first is None


def test_nanogpt_and_build_nanogpt_part_at_step_0_and_most_on_the_last_step_of_the_warmup() -> None:
    # (s + 1)/11 against (s + 1)/10: apart by (s + 1)/110, from 1/110 at step 0 to 10/110 at step 9; equal from 10 on.
    apart = found(plan_of(schedule__dialect="nanogpt"), plan_of(schedule__dialect="build-nanogpt"))
    assert apart.exact
    assert not apart.identical
    assert parts(apart.first) == pytest.approx((0, 1 / 11, 1 / 10))
    assert parts(apart.largest) == pytest.approx((9, 10 / 11, 1.0))
    assert apart.area[1] - apart.area[0] == pytest.approx(sum(range(1, 11)) / 110)


def test_litgpt_and_build_nanogpt_are_a_step_apart_all_through_the_warmup() -> None:
    # s/10 against (s + 1)/10: a tenth at every step of the warmup, one peak in all.
    apart = found(plan_of(schedule__dialect="litgpt"), plan_of(schedule__dialect="build-nanogpt"))
    assert parts(apart.first) == pytest.approx((0, 0, 0.1))
    assert parts(apart.largest)[2] - parts(apart.largest)[1] == pytest.approx(0.1)
    assert apart.area[1] - apart.area[0] == pytest.approx(1.0)


def test_the_area_is_the_sum_of_the_rates() -> None:
    # Constant after warmup: 0.1 + 0.2 + ... + 1 = 5.5, then 90 steps at 1. From 10 on a line: 1 + 99/100 ... no cosine.
    flat = found(plan_of(schedule__decay="constant"), plan_of(schedule__decay="linear"))
    assert flat.area[0] == pytest.approx(95.5)
    # The line is at 0.1 + 0.9 (99 - s)/90 for s from 10 to 99: 90 x 0.1 + 0.9/90 x (89 + 88 + ... + 0) = 9 + 40.05.
    assert flat.area[1] == pytest.approx(5.5 + 9 + 40.05)
    assert flat.first is not None
    assert flat.first.step == 10


def test_runs_of_other_lengths_are_compared_over_the_steps_of_both() -> None:
    short = found(plan_of(schedule__horizon=100, duration=40), plan_of())
    assert short.common_steps == 40
    assert short.first is None
    assert not short.identical
    assert short.tokens == (40 * 64, 100 * 64)
    assert short.curve[-1].step == 39


def test_other_batches_are_found_and_are_no_difference_of_the_rates() -> None:
    other = found(plan_of(), plan_of(batch_size=8))
    assert other.first is None
    assert other.first_batch == Point(0, 4, 8)
    assert not other.identical


def test_a_ramp_parts_from_a_constant_batch_where_it_is_not_full() -> None:
    ramp = plan_of(duration=400, batch_ramp__from_tokens=64, batch_size=8, batch_ramp__over="6400 tokens")
    late = found(ramp, plan_of(duration=400, batch_size=1)).first_batch
    assert late is not None
    assert [ramp.batch.size(step) == 1 for step in range(late.step + 1)] == [*late.step * [True], False]


def test_the_configuration_difference_has_every_key_but_the_name() -> None:
    one, other = load("demo", flags={"name": "a", "seed": 1}), load("demo", flags={"name": "b", "seed": 2})
    assert config_difference(one, other) == {"seed": (1, 2)}


def test_a_long_run_is_looked_at_in_few_places_with_all_its_turns() -> None:
    plan = resolve(load("gpt3-125m"))
    steps = steps_to_look_at(plan, plan)
    assert len(steps) < 4000
    assert {0, 1, 499, 7146, 7147, 7148, 22_565, plan.num_steps - 1} <= set(steps)


def test_up_to_the_limit_every_step_is_looked_at() -> None:
    plan = plan_of(duration=EXACT_STEPS)
    assert steps_to_look_at(plan, plan) == list(range(EXACT_STEPS))


def test_a_long_comparison_finds_what_looking_at_every_step_finds() -> None:
    long: dict[str, object] = {"duration": 60_000, "schedule__warmup": 7001}
    one, other = plan_of(**long, schedule__dialect="litgpt"), plan_of(**long, schedule__decay="linear")
    quick = found(one, other)
    every = [Point(step, one.lr(step), other.lr(step)) for step in range(60_000)]
    assert not quick.exact
    assert quick.first == every[0]
    far = max(every, key=lambda point: abs(point.left - point.right))
    assert quick.largest is not None
    assert abs(quick.largest.left - quick.largest.right) == pytest.approx(abs(far.left - far.right), rel=1e-9)
    assert quick.area[0] == pytest.approx(math.fsum(point.left for point in every), rel=1e-6)
    assert quick.area[1] == pytest.approx(math.fsum(point.right for point in every), rel=1e-6)


def test_a_first_difference_deep_in_a_long_run_is_found_to_the_step() -> None:
    long: dict[str, object] = {"duration": 60_000, "schedule__warmup": 100, "schedule__decay": "wsd"}
    one, other = plan_of(**long, schedule__decay_steps=20_003), plan_of(**long, schedule__decay_steps=9_000)
    first = found(one, other).first
    assert first is not None
    assert first.step == 60_000 - 20_003


@given(first=st.integers(0, 9_999), seen=st.sets(st.integers(0, 9_999), max_size=30))
def test_the_first_difference_lies_between_two_steps_that_were_looked_at(first: int, seen: set[int]) -> None:
    points = [Point(step, 0, 0) for step in sorted({*seen, 9_999})]
    assert first_apart(points, lambda step: step >= first) == first


@given(top=st.integers(0, 5_000), every=st.integers(1, 900))
@settings(max_examples=50)
def test_a_single_hill_is_climbed_to_its_top_from_any_grid(top: int, every: int) -> None:
    def hill(step: int) -> float:
        return -float((step - top) ** 2) + 1e8

    grid = sorted({*range(0, 5_001, every), 5_000})
    best = farthest([Point(step, hill(step), 0.0) for step in grid], hill, lambda _: 0.0)
    assert best.step == top
