"""From times to figures: medians and spreads, rates, orders in which things are measured, and tables of text.

Knows numbers only: no torch, and no contestant.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles and extremes, in the unit of what was measured."""

    median: float
    low: float
    high: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles, extremes and number of the values; all NaN for none."""
    if not values:
        return Spread(*(math.nan,) * 5, 0)
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Spread(median(values), low, high, min(values), max(values), len(values))


def there_and_back(entries: Sequence[_T]) -> list[_T]:
    """A B C C B A: a machine that drifts in a line meets everybody equally."""
    return [*entries, *reversed(entries)]


def utilisation(tokens_per_s: float, flops_per_token: float, ceiling_gflops: float) -> float:
    """Share of the machine's own measured ceiling for products of matrices that training used, in [0, 1]."""
    return tokens_per_s * flops_per_token / (ceiling_gflops * 1e9)


def largest_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Largest absolute difference of two courses of losses over the steps that both have; NaN where there is none."""
    return max((abs(one - other) for one, other in zip(losses, others, strict=False)), default=math.nan)


def stall_s(seconds: Sequence[float], at: Sequence[int], usual: float) -> float:
    """By how much the longest of the steps `at` and of the two after each was longer than `usual`; 0 without any."""
    near = [index for index in next_to(at) if 0 <= index < len(seconds)]
    return max((seconds[index] - usual for index in near), default=0.0)


def next_to(at: Sequence[int]) -> set[int]:
    """Those steps, and the two after each."""
    return {step + after for step in at for after in (0, 1, 2)}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a markdown table that also reads well on a screen: the first column to the left, all others right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        shown = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(shown)} |"

    rule = [("-" * width) if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return [line(head), f"| {' | '.join(rule)} |", *map(line, rows)]


def shown_ms(value: Spread) -> str:
    """A median in milliseconds with its quartiles."""
    digits = 1 if value.median < 0.2 else 0
    low, mid, high = (f"{part * 1000:,.{digits}f}" for part in (value.low, value.median, value.high))
    return f"{mid} ({low}-{high})"


def verdicts(asked: Mapping[str, tuple[float, float, bool]]) -> list[str]:
    """One line for each promise: its value, its bound, and whether it holds; `True` for a bound from below."""
    lines = []
    for name, (value, bound, at_least) in asked.items():
        holds = value >= bound if at_least else value <= bound
        said = "not measured" if math.isnan(value) else ("holds" if holds else "DOES NOT HOLD")
        lines.append(f"- {name}: {value:.3f}, {'at least' if at_least else 'at most'} {bound:g}: {said}")
    return lines
