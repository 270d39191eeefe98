"""PURE. How far the mean difference between two groups of runs can be told from chance.

With five runs or more on each side the interval is the percentile bootstrap, over pairs where there are such, widened
about the mean as Student's interval is wider than the normal one: the plain percentiles promise too much for so few
(Hesterberg, 2015, What Teachers Should Know About the Bootstrap). The studentised bootstrap was tried and is not used:
of five values two or three are often close together, and resamples of those alone make it several times too wide. With
two to four runs the interval is Student's, in Welch's form where the runs are not paired. All are made for LEVEL, 99 %:
one sentence in a hundred that says "better" of two equal groups is little enough to build on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import atan, cos, inf, isfinite, pi, sin, sqrt
from statistics import NormalDist, fmean, stdev, variance

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.99
_FEWEST_RESAMPLED = 5
_DRAWS = 20_000
_POWER = 0.8
_MOST_RUNS = 1_000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The mean of B minus the mean of A, over pairs of the same seed where there are such."""

    mean: float
    low: float
    high: float
    """The interval; infinite on both sides where one run on a side leaves it open."""
    runs: tuple[int, int]
    paired: bool
    method: str
    """`bootstrap`, `student`, or `none`."""
    more: int | None
    """How many more runs on each side would decide, if the difference is what it seems; None when it is decided, or
    cannot be told."""

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0 <= self.high


def difference(a: Sequence[float], b: Sequence[float], *, paired: bool) -> Difference:
    """Compare two groups; paired ones have equally many, in the order of their pairs."""
    mean = fmean(b) - fmean(a)
    if paired:
        apart = [right - left for left, right in zip(a, b, strict=True)]
        (low, high), method = _of_one(apart)
        noise, free = (stdev(apart), len(apart) - 1) if len(apart) > 1 else (inf, 0)
    else:
        (low, high), method = _of_two(a, b)
        known = min(len(a), len(b)) > 1
        noise, free = (sqrt(variance(a) + variance(b)), len(a) + len(b) - 2) if known else (inf, 0)
    made = Difference(mean, low, high, (len(a), len(b)), paired, method, None)
    if made.decided or not free or not mean:
        return made
    return replace(made, more=_more(mean, noise, min(len(a), len(b)), paired))


@cache
def quantile(share: float, free: float) -> float:
    """Of Student's distribution with `free` degrees of freedom, which may be a fraction: the value below which `share`
    of it lies, for shares above a half.
    """
    whole = max(1, int(free))
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        below = _student(middle, whole)
        low, high = (middle, high) if below < share else (low, middle)
    return (low + high) / 2


def _student(value: float, free: int) -> float:
    """The share of Student's distribution below a positive value (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = atan(value / sqrt(free))
    if free % 2:
        terms = [1.0] if free > 1 else []
        for number in range(3, free - 1, 2):
            terms.append(terms[-1] * (number - 1) / number)
        total = sum(term * cos(angle) ** (2 * place + 1) for place, term in enumerate(terms))
        inside = (2 / pi) * (angle + sin(angle) * total)
    else:
        terms = [1.0]
        for number in range(2, free - 1, 2):
            terms.append(terms[-1] * (number - 1) / number)
        inside = sin(angle) * sum(term * cos(angle) ** (2 * place) for place, term in enumerate(terms))
    return (1 + inside) / 2


def _of_one(values: Sequence[float]) -> tuple[tuple[float, float], str]:
    """The interval of the mean of one group."""
    count = len(values)
    if count < 2:
        return (-inf, inf), "none"
    mean, error = fmean(values), stdev(values) / sqrt(count)
    if not error:
        return (mean, mean), "student"
    if count < _FEWEST_RESAMPLED:
        width = quantile((1 + LEVEL) / 2, count - 1) * error
        return (mean - width, mean + width), "student"
    drawn = np.array(values)[_resamples(count)]
    return _widened(mean, error, count - 1, drawn.mean(1)), "bootstrap"


def _of_two(a: Sequence[float], b: Sequence[float]) -> tuple[tuple[float, float], str]:
    """The interval of the difference between the means of two groups that have nothing in common."""
    counts = len(a), len(b)
    if min(counts) < 2:
        return (-inf, inf), "none"
    mean, parts = fmean(b) - fmean(a), (variance(a) / len(a), variance(b) / len(b))
    error = sqrt(sum(parts))
    if not error:
        return (mean, mean), "student"
    free = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    if min(counts) < _FEWEST_RESAMPLED:
        width = quantile((1 + LEVEL) / 2, free) * error
        return (mean - width, mean + width), "student"
    dice = np.random.default_rng(0)
    left, right = (np.array(group)[dice.integers(0, len(group), (_DRAWS, len(group)))] for group in (a, b))
    return _widened(mean, error, free, right.mean(1) - left.mean(1)), "bootstrap"


def _resamples(count: int) -> NDArray[np.int64]:
    """Every way to draw `count` of as many with replacement, where they are few; else a fixed sample of them."""
    if count**count <= _DRAWS:
        return np.array(list(product(range(count), repeat=count)))
    return np.random.default_rng(0).integers(0, count, (_DRAWS, count))


def _widened(mean: float, error: float, free: float, means: Floats) -> tuple[float, float]:
    """The percentiles of resampled means, as far again from the mean as so few values make Student's interval wider.

    Resampled means vary less than the mean does, by n - 1 in n; `error` is without that bias.
    """
    share = (1 + LEVEL) / 2
    wider = quantile(share, free) / NormalDist().inv_cdf(share) * error / float(means.std())
    low, high = np.quantile(means, [1 - share, share])
    return mean - wider * (mean - float(low)), mean + wider * (float(high) - mean)


def _more(mean: float, noise: float, runs: int, paired: bool) -> int | None:
    """How many more runs on each side give the interval a fair chance (four in five) to leave zero out."""
    if not isfinite(noise):
        return None
    chance = NormalDist().inv_cdf(_POWER)
    for count in range(runs + 1, runs + _MOST_RUNS):
        free = count - 1 if paired else 2 * count - 2
        if (quantile((1 + LEVEL) / 2, min(free, 200)) + chance) * noise / sqrt(count) < abs(mean):
            return count - runs
    return _MOST_RUNS
