"""PURE. Two plans side by side: where their rates and batches part, by how much, and which settings they differ in.

Of two runs, what both have measured stands beside it, see `measured`.

What is exact: up to EXACT_STEPS common steps every step is looked at, and everything here is exact. Of a longer run
some 3,000 steps are: the first 500, an even grid, and every turn of either plan with its neighbours. From them
- the largest difference is narrowed down to one step between the grid's neighbours of the largest one seen: it is exact
  where the difference has one hill between two neighbours, and never more than the true one;
- the first difference is found by bisection between the last step seen as equal and the first seen to differ: it is
  exact unless the plans part and meet again within one gap of the grid;
- areas are sums over straight lines from one looked-at step to the next, good to about a millionth for smooth curves.
Rates that differ by less than 1e-12 of the larger peak are rounding and count as the same.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from typing import Any

from trainwell.config.tree import RunConfig
from trainwell.optim.schedule import Schedule
from trainwell.planning.resolve import Plan
from trainwell.planning.target import flat
from trainwell.report.course import grid, turns
from trainwell.report.load import Joined
from trainwell.report.measured import Measured, measured

EXACT_STEPS = 20_000
"""The most common steps of which every one is looked at."""

_GRID, _HEAD, _CURVE = 2_500, 500, 200
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Side:
    """One of the two, and what to call it; `kind` is recipe, file, run or dialect. A run has `rows` on record."""

    name: str
    kind: str
    plan: Plan
    rows: Joined | None = None


@dataclass(frozen=True)
class Point:
    """A step, and what either side has there."""

    step: int
    left: float
    right: float


@dataclass(frozen=True)
class Comparison:
    """Everything that two plans differ in. Rates are compared over `common_steps`, those that both have."""

    left: Side
    right: Side
    common_steps: int
    looked_at: int
    """How many of them were looked at."""
    largest: Point | None
    """The step whose rates differ most; None where no two differ."""
    first: Point | None
    """The first step whose rates differ."""
    area: tuple[float, float]
    """The sum of the rates over the common steps, which is their mean times the number of steps."""
    first_batch: Point | None
    """The first step whose batches differ, in sequences."""
    tokens: tuple[int, int]
    """Tokens of the whole run, each."""
    config: dict[str, tuple[Any, Any]]
    """Keys with other values left and right; the name is none."""
    curve: tuple[Point, ...]
    """Some 200 steps with both rates."""
    measured: Measured | None
    """The losses of two runs; None where one side is none, or has not begun."""

    @property
    def exact(self) -> bool:
        """Whether every common step was looked at."""
        return self.looked_at == self.common_steps

    @property
    def identical(self) -> bool:
        """Whether both take the same steps: as many, each with the same rate and the same batch."""
        parted = self.first or self.first_batch
        return parted is None and self.left.plan.num_steps == self.right.plan.num_steps and len({*self.tokens}) == 1


def compare(left: Side, right: Side) -> Comparison:
    """Compare two plans over the steps that both have; see above for what is exact."""
    one, other = left.plan, right.plan
    common = min(one.num_steps, other.num_steps)
    looked_at = steps_to_look_at(one, other)
    rates = [Point(step, one.lr(step), other.lr(step)) for step in looked_at]
    slack = _ROUNDING * max(one.config.optim.lr, other.config.optim.lr)
    largest = farthest(rates, one.lr, other.lr)
    first = first_apart(rates, lambda step: abs(one.lr(step) - other.lr(step)) > slack)
    return Comparison(
        left=left,
        right=right,
        common_steps=common,
        looked_at=len(looked_at),
        largest=largest if first is not None else None,
        first=None if first is None else Point(first, one.lr(first), other.lr(first)),
        area=(_area(rates, "left"), _area(rates, "right")),
        first_batch=_first_batch(one, other, looked_at),
        tokens=(one.batch.tokens_before(one.num_steps), other.batch.tokens_before(other.num_steps)),
        config=config_difference(one.config, other.config),
        curve=tuple(
            Point(step, one.lr(step), other.lr(step))
            for step in sorted({*grid(common, _CURVE), *(at for at in (*turns(one), *turns(other)) if at < common)})
        ),
        measured=measured(left.rows, right.rows) if left.rows and right.rows else None,
    )


def steps_to_look_at(one: Plan, other: Plan) -> list[int]:
    """All common steps of short plans; of long ones the head, a grid, and the turns of both, in order."""
    common = min(one.num_steps, other.num_steps)
    if common <= EXACT_STEPS:
        return list(range(common))
    chosen = {*range(_HEAD), *grid(common, _GRID), *turns(one), *turns(other)}
    return sorted(step for step in chosen if step < common)


def farthest(points: Sequence[Point], one: Schedule, other: Schedule) -> Point:
    """The point where the two are farthest apart, narrowed down between its neighbours; the earliest of equals."""
    number = max(range(len(points)), key=lambda index: _distance(points[index]))
    best = points[number]
    low, high = points[max(0, number - 1)].step, points[min(len(points) - 1, number + 1)].step
    while high - low > 2:
        inside = sorted({low + round((high - low) * part / 8) for part in range(9)})
        tried = [Point(step, one(step), other(step)) for step in inside]
        place = max(range(len(tried)), key=lambda index: _distance(tried[index]))
        best = max(best, tried[place], key=_distance)
        low, high = inside[max(0, place - 1)], inside[min(len(inside) - 1, place + 1)]
    return best


def first_apart(points: Sequence[Point], differ: Callable[[int], bool]) -> int | None:
    """The first step that differs: the first of `points` that does, or one between it and the point before."""
    for before, after in pairwise([Point(-1, 0.0, 0.0), *points]):
        if differ(after.step):
            between = range(before.step + 1, after.step + 1)
            return between[bisect_left(between, True, key=differ)]
    return None


def config_difference(left: RunConfig, right: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Every key with its dots that has other values left and right, but for the name of the run."""
    one, other = flat(left), flat(right)
    return {key: (one[key], other[key]) for key in one if one[key] != other[key] and key != "name"}


def _distance(point: Point) -> float:
    return abs(point.left - point.right)


def _first_batch(one: Plan, other: Plan, looked_at: Sequence[int]) -> Point | None:
    """The first step that takes another number of sequences."""
    if one.batch == other.batch:
        return None
    points = [Point(step, one.batch.size(step), other.batch.size(step)) for step in looked_at]
    first = first_apart(points, lambda step: one.batch.size(step) != other.batch.size(step))
    return None if first is None else Point(first, one.batch.size(first), other.batch.size(first))


def _area(points: Sequence[Point], side: str) -> float:
    """The sum over all steps from the first point to the last, those between two points on the line that joins them.

    From a to b, b left out, that is the mean of both ends for each step, less half of what the line rises.
    """
    values = [(point.step, getattr(point, side)) for point in points]
    parts = [(after - step) * (a + b) / 2 - (b - a) / 2 for (step, a), (after, b) in pairwise(values)]
    return fsum([*parts, values[-1][1]])
