"""PURE. What two runs have on record at the steps of both: their losses side by side, a branch's behind its parent's.

Says what was measured, and draws no conclusion about which is better: that takes more than one run of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean

from trainwell.report.load import Joined
from trainwell.runs.metrics import Row

_STRETCHES = 200
"""Of a curve that is drawn."""
_ROWS = 6
"""Of a table, at the most."""

Line = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Loss:
    """A step, and the loss of either run there; one that was not finite is nan."""

    step: int
    left: float
    right: float


@dataclass(frozen=True)
class Interval:
    """A stretch of common steps, and the state it leads to."""

    state: int
    steps: int
    """How many they are."""
    train: tuple[float, float]
    """The mean training loss of each side."""
    val: Loss | None
    """What both evaluated at the state; None where not both did."""


@dataclass(frozen=True)
class Measured:
    """The losses of two runs."""

    sides: tuple[Joined, Joined]
    train: tuple[Loss, ...]
    """Of every step that both took."""
    val: tuple[Loss, ...]
    """Of every state that both evaluated."""
    first: Loss | None
    """The first common step whose training losses are not the same to the bit."""

    @property
    def last(self) -> int:
        """The last step on record."""
        return max(int(row["step"]) for side in self.sides for row in (*side.train[-1:], *side.val[-1:]))

    @property
    def lines(self) -> tuple[Line, Line]:
        """The training loss of each side as some 200 means over stretches of equally many steps, each at its middle."""
        size = self.last // _STRETCHES + 1
        return _means(self.sides[0].train, size), _means(self.sides[1].train, size)

    @property
    def marks(self) -> tuple[Line, Line]:
        """Every finite validation loss of each side."""
        return _evaluated(self.sides[0]), _evaluated(self.sides[1])

    def intervals(self) -> list[Interval]:
        """At most six states, the common evaluations where there are any: for a table."""
        ends = [loss.step for loss in self.val if loss.step > 0]
        ends = ends or [loss.step + 1 for loss in self.train]
        chosen = sorted({ends[round(part * (len(ends) - 1) / (_ROWS - 1))] for part in range(_ROWS)}) if ends else []
        found, before = list[Interval](), 0
        for state in chosen:
            inside = [loss for loss in self.train if before <= loss.step < state]
            means = (_mean([loss.left for loss in inside]), _mean([loss.right for loss in inside]))
            found.append(Interval(state, len(inside), means, next((at for at in self.val if at.step == state), None)))
            before = state
        return found


def measured(left: Joined, right: Joined) -> Measured | None:
    """Compare what is on record; None where one side has nothing."""
    if not (left.train or left.val) or not (right.train or right.val):
        return None
    train = _common(left.train, right.train, "train/loss")
    return Measured((left, right), train, _common(left.val, right.val, "val/loss"), _first_apart(train))


def first_apart(left: Sequence[Row], right: Sequence[Row]) -> Loss | None:
    """The first step of both whose training losses are not the same to the bit."""
    return _first_apart(_common(left, right, "train/loss"))


def _first_apart(losses: Sequence[Loss]) -> Loss | None:
    return next((loss for loss in losses if not _same(loss)), None)


def _common(left: Sequence[Row], right: Sequence[Row], key: str) -> tuple[Loss, ...]:
    there = {row["step"]: row for row in right if key in row}
    return tuple(
        Loss(row["step"], _number(row[key]), _number(there[row["step"]][key]))
        for row in left
        if key in row and row["step"] in there
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and isfinite(value) else nan


def _same(loss: Loss) -> bool:
    return loss.left == loss.right or not (isfinite(loss.left) or isfinite(loss.right))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if isfinite(value)]
    return fmean(known) if known else nan


def _means(rows: Sequence[Row], size: int) -> Line:
    stretches: dict[int, list[float]] = {}
    for row in rows:
        stretches.setdefault(row["step"] // size, []).append(_number(row.get("train/loss")))
    middles = ((number * size + (size - 1) / 2, _mean(values)) for number, values in sorted(stretches.items()))
    return tuple((middle, mean) for middle, mean in middles if isfinite(mean))


def _evaluated(side: Joined) -> Line:
    losses = ((float(row["step"]), _number(row.get("val/loss"))) for row in side.val)
    return tuple((step, loss) for step, loss in losses if isfinite(loss))
