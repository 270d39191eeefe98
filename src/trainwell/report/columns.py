"""PURE. Rows of metrics as arrays to draw: a column, smoothed, thinned; and where a step lies on other axes.

Knows numpy and rows, no picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainwell.runs.metrics import Row

Floats = NDArray[np.float64]

_COUNTS = ((1e12, 1e12, "trillions"), (1e9, 1e9, "billions"), (1e6, 1e6, "millions"), (1e3, 1e3, "thousands"))
_TIMES = ((2 * 86400.0, 86400.0, "days"), (7200.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))


def column(rows: Sequence[Row], key: str) -> tuple[Floats, Floats]:
    """Steps and values of the rows that have the key; a value that is missing is NaN."""
    pairs = [(row["step"], np.nan if row[key] is None else float(row[key])) for row in rows if key in row]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def span_of(values: Floats) -> int:
    """Over how many values a curve is smoothed: a twentieth of them."""
    return max(8, len(values) // 20)


def smoothed(values: Floats, span: int) -> Floats:
    """Weighted mean over up to `span` values around each, fewer towards both ends, so that nothing lags; gaps stay out.

    The mean of a mean weighs like a triangle: a spike becomes a hill and not a box.
    """
    return _centred_mean(_centred_mean(values, span // 4), span // 4)


def _centred_mean(values: Floats, most: int) -> Floats:
    """The mean of each value and its neighbours, the same number on both sides, up to `most`."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    half = np.minimum(np.minimum(at, len(values) - 1 - at), most)
    within = counts[at + half + 1] - counts[at - half]
    return np.where(within > 0, (sums[at + half + 1] - sums[at - half]) / np.maximum(within, 1), np.nan)


def range_of(losses: Floats) -> tuple[float, float]:
    """The range of the finite losses with some air; one spike does not squeeze the rest."""
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), max(float(finite[0]), float(np.quantile(finite, 0.98, method="lower")))
    air = 0.06 * (high - low) or 0.5
    return low - air, high + air


def thinned(values: Floats, most: int) -> NDArray[np.int64]:
    """Which at most `most` values to draw of a curve so that it looks the same: of equal stretches the lowest and the
    highest each, and both ends. All of them where they fit.

    A stretch without any number gives one place, so that a gap stays a gap. `most` is at least 4.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    stretches = (most - 2) // 2
    edges = np.linspace(0, count, stretches + 1).astype(np.int64)
    size = int(np.diff(edges).max())
    places = np.minimum(edges[:-1, None] + np.arange(size), edges[1:, None] - 1)  # the last of a stretch repeats
    inside = values[places]
    known = np.isfinite(inside)
    rows = np.arange(stretches)
    lowest = places[rows, np.where(known, inside, np.inf).argmin(axis=1)]
    highest = places[rows, np.where(known, inside, -np.inf).argmax(axis=1)]
    return np.unique(np.concatenate([[0, count - 1], lowest, highest]))


@dataclass(frozen=True)
class Axis:
    """One way to count how far a run is: a label with its unit, and the value at each of some steps."""

    label: str
    values: Floats


def axes_of(
    train: Sequence[Row], planned: Sequence[tuple[int, int]], flops_per_token: float | None, knots: int = 2_000
) -> tuple[Floats, Mapping[str, Axis]]:
    """Some ascending states, and for each axis its value there; between two of them it is a straight line.

    `planned` has states and their tokens from the whole plan, so that what is still to come has a place; its hours go
    on at the mean pace so far. An axis that nothing is known of is left out.
    """
    taken, tokens = column(train, "tokens")
    chosen = thinned(tokens, knots) if len(tokens) else np.arange(0)
    states = np.unique(np.concatenate([[0.0], taken[chosen] + 1, [float(state) for state, _ in planned]]))
    found = {"step": Axis("step", states)}
    if len(taken) or planned:
        known = np.concatenate([[0.0], taken + 1, [float(state) for state, _ in planned]])
        counts = np.concatenate([[0.0], tokens, [float(count) for _, count in planned]])
        at = np.interp(states, *_increasing(known, counts))
        size, unit = _unit(float(at[-1]), _COUNTS)
        found["tokens"] = Axis(f"tokens{unit and f', {unit}'}", at / size)
        if flops_per_token:
            flops = at * flops_per_token
            exponent = 3 * int(np.log10(max(float(flops[-1]), 1.0)) / 3)
            found["flops"] = Axis(f"FLOPs, 10^{exponent}", flops / 10.0**exponent)
    seconds = _seconds(train, states)
    if seconds is not None:
        size, unit = _unit(float(seconds[-1]), _TIMES)
        found["time"] = Axis(f"{unit or 'seconds'} of training", seconds / size)
    return states, found


def _increasing(at: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The points in order of `at`, each place once."""
    places, first = np.unique(at, return_index=True)
    return places, values[first]


def _seconds(train: Sequence[Row], states: Floats) -> Floats | None:
    """Seconds of training at each state, going on at the mean pace past the last one on record."""
    taken, seconds = column(train, "time")
    if len(taken) < 2 or not np.isfinite(seconds).all() or seconds[-1] <= 0:
        return None
    ends = np.concatenate([[0.0], taken + 1])
    pace = seconds[-1] / ends[-1]
    found: Floats = np.interp(states, ends, np.concatenate([[0.0], seconds]))
    found += np.maximum(states - ends[-1], 0.0) * pace
    return found


def _unit(largest: float, units: Sequence[tuple[float, float, str]]) -> tuple[float, str]:
    """Size and name of the first unit whose threshold the largest value reaches; 1 and no name where there is none."""
    return next(((size, name) for threshold, size, name in units if largest >= threshold), (1.0, ""))
