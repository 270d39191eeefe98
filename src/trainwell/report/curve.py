"""PURE. A line chart as text: braille dots, two columns and four rows of them in every character.

Knows numbers and characters, no run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800
_STARS = ("*", "o")
_LINES = ("⠒⠒⠒⠒", "⠒⠒  ⠒⠒")


@dataclass(frozen=True)
class Series:
    """Points to draw: joined by a line of dots, or, where `mark` is given, each by that character.

    A dashed line leaves gaps through which the one below it is seen, also where there are no colours.
    """

    points: Sequence[tuple[float, float]]
    mark: str = ""
    name: str = ""
    dashed: bool = False

    def sign(self, ascii: bool) -> str:
        """How the series looks, for a legend."""
        if self.mark:
            return self.mark
        return _STARS[self.dashed] * 2 if ascii else _LINES[self.dashed]


@dataclass(frozen=True)
class Cell:
    """One character of the chart, and the number of the series that drew it (None for blank)."""

    char: str
    series: int | None = None


def chart(
    series: Sequence[Series], width: int, height: int, *, x: tuple[float, float], ascii: bool = False
) -> list[list[Cell]]:
    """Draw all series into `height` rows of `width` characters over the same ranges: `x`, and `y_range` of them all.

    A later series draws over an earlier one. With `ascii`, every character that holds a dot is a star, or an o in a
    dashed line.
    """
    grid = [[Cell(" ") for _ in range(width)] for _ in range(height)]
    low, high = y_range(series)
    for number, line in enumerate(series):
        scale = (1, 1) if line.mark else (2, 4)
        columns, rows = width * scale[0], height * scale[1]
        placed = [
            (_place(at, *x, columns), rows - 1 - _place(value, low, high, rows))
            for at, value in line.points
            if isfinite(value)
        ]
        if line.mark:
            for column, row in placed:
                grid[row][column] = Cell(line.mark, number)
        else:
            _draw(grid, placed, number, (line.dashed, ascii))
    return grid


def y_range(series: Iterable[Series]) -> tuple[float, float]:
    """The lowest and the highest finite value; a range of one for a flat line."""
    values = [value for line in series for _, value in line.points if isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _place(value: float, low: float, high: float, count: int) -> int:
    share = (value - low) / (high - low) if high > low else 0.0
    return min(count - 1, max(0, round(share * (count - 1))))


def _draw(grid: list[list[Cell]], dots: Sequence[tuple[int, int]], number: int, style: tuple[bool, bool]) -> None:
    dashed, ascii = style
    for column, row in _joined(dots):
        across, down = column // 2, row // 4
        if dashed and (across + down) % 4 > 1:  # slanting gaps: a line straight up has some too
            continue
        cell = grid[down][across]
        before = ord(cell.char) - _EMPTY if cell.series == number and not ascii else 0
        char = _STARS[dashed] if ascii else chr(_EMPTY + (before | _DOTS[column % 2][row % 4]))
        grid[down][across] = Cell(char, number)


def _joined(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots, and those of the straight lines between neighbours."""
    out = list(dots[:1])
    for (column, row), (next_column, next_row) in pairwise(dots):
        count = max(abs(next_column - column), abs(next_row - row))
        out += [
            (column + round((next_column - column) * i / count), row + round((next_row - row) * i / count))
            for i in range(1, count + 1)
        ]
    return out
