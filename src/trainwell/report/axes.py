"""A chart with its axes on a terminal, as wide as that is; and how the reports that print look.

Knows numbers and rich, no run and no plan.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from math import exp, log

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from trainwell.report.curve import Cell, Series, chart, y_range

STYLES = ("bright_blue", "bright_yellow")
FAINT = "bright_black"
_LABEL = 9


class Chart:
    """Series over steps with axes, as wide as the terminal up to 100 columns; braille, or plain characters.

    The heading is followed by the series that have a name, each behind the mark of its line. With `log`, values stand
    at their logarithms; all of them must be positive.
    """

    def __init__(
        self,
        heading: str,
        series: Sequence[Series],
        last: int,
        *,
        numbers: str,
        log: bool = False,
        height: int = 11,
    ) -> None:
        self.heading = heading
        self.series = [_logarithmic(line) for line in series] if log else series
        self.last = last
        self.numbers = numbers
        self.log = log
        self.height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for the width at hand."""
        width, last_row = min(options.max_width, 100) - _LABEL - 4, self.height - 1
        ascii = options.ascii_only
        low, high = y_range(self.series)
        values = {row: high - (high - low) * row / last_row for row in (0, self.height // 2, last_row)}
        labels = {row: format(exp(value) if self.log else value, self.numbers) for row, value in values.items()}
        tick, wall, corner, floor = ("|", "|", "+", "-") if ascii else ("┤", "│", "└", "─")
        yield from self._heading(ascii, options.max_width)
        for number, cells in enumerate(chart(self.series, width, self.height, x=(0, self.last), ascii=ascii)):
            label = labels.get(number, "")
            yield _row(f"{label:>{_LABEL}} {tick if label else wall}", cells)
        yield Text(f"{'':{_LABEL}} {corner}{floor * width}", FAINT)
        yield Text(f"{'':{_LABEL + 2}}{_under(self.last, width)}", FAINT)

    def _heading(self, ascii: bool, width: int) -> Iterable[Text]:
        """The heading and the names of the series, in a line if they fit, else in one each."""
        parts = [Text(self.heading, "bold")]
        parts += [
            Text(f"{line.sign(ascii)} {line.name}", STYLES[number])
            for number, line in enumerate(self.series)
            if line.name
        ]
        together = Text("   ").join(parts)
        return [together] if together.cell_len <= width else parts


def heading(name: str, about: str) -> Iterable[RenderableType]:
    """A name in bold, and below it what it is."""
    return Text(name, "bold"), Text(f"{about}\n", FAINT)


def facts() -> Table:
    """A table of two columns: what, and the fact. A long fact is folded: a cut path is no path."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style=FAINT, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _logarithmic(series: Series) -> Series:
    return Series([(at, log(value)) for at, value in series.points], series.mark, series.name, series.dashed)


def _row(axis: str, cells: Sequence[Cell]) -> Text:
    text = Text.assemble((axis, FAINT))
    for series, group in groupby(cells, key=lambda cell: cell.series):
        text.append("".join(cell.char for cell in group), None if series is None else STYLES[series])
    text.rstrip()
    return text


def _under(last: int, width: int) -> str:
    """The first, the middle and the last step, each below its place."""
    left, middle, right = "0", f"{last // 2:,}", f"{last:,}"
    gap = width - len(left) - len(middle) - len(right)
    return f"{left}{' ' * (gap // 2)}{middle}{' ' * (gap - gap // 2)}{right}" if gap > 2 else f"{left} {right}"
