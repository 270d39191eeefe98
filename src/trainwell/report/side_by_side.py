"""A comparison on a terminal: both curves in one chart, where they part, and the settings that make the difference.

Returns what rich prints, and prints nothing itself. What is compared, and how exactly, is said in `compare`.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwell.config.syntax import dump_yaml
from trainwell.planning.describe import batch_line, rate, schedule_line
from trainwell.report.axes import FAINT, STYLES, Chart, facts
from trainwell.report.compare import Comparison, Point, Side
from trainwell.report.course import batch_changes, course
from trainwell.report.curve import Series
from trainwell.report.measured import Interval, Measured
from trainwell.runs.console import safe, short_count


def show_comparison(found: Comparison, notes: Sequence[str] = ()) -> RenderableType:
    """Both sides in a line each, their curves, what is the same and what is not; `notes` say what was assumed."""
    sides = (found.left, found.right)
    lines = facts()
    for number, side in enumerate(sides):
        lines.add_row(Text(safe(side.name), STYLES[number]), schedule_line(side.plan))
    return Group(
        lines,
        *(Text(f"note: {safe(line)}", "yellow") for line in notes),
        Text(),
        *_charts(sides),
        Text(),
        _findings(found),
        *([] if found.measured is None else _measured(found.measured, sides)),
        *_settings(found),
    )


def _charts(sides: tuple[Side, Side]) -> Iterable[RenderableType]:
    courses = [course(side.plan) for side in sides]
    last = max(side.plan.num_steps for side in sides) - 1

    def lines(what: str) -> list[Series]:
        return [
            Series(
                [(moment.step, getattr(moment, what)) for moment in courses[number]],
                name=safe(sides[number].name),
                dashed=number == 1,
            )
            for number in (0, 1)
        ]

    yield Chart("learning rate over steps", lines("lr"), last, numbers=".2e")
    if any(batch_changes(side.plan) for side in sides):
        yield Text()
        yield Chart("sequences a step, over steps", lines("exact_size"), last, numbers=",.0f", height=7)


def _findings(found: Comparison) -> Table:
    table, one, other = facts(), found.left.plan, found.right.plan
    if found.identical:
        table.add_row("identical", f"all {found.common_steps:,} steps have the same rate and the same batch")
    if one.num_steps != other.num_steps:
        over = f"{one.num_steps:,} | {other.num_steps:,}: rates are compared over the {found.common_steps:,} of both"
        table.add_row("steps", over)
    if found.first is None or found.largest is None:
        table.add_row("rates", f"the same at every one of {found.common_steps:,} steps{_about(found)}")
    else:
        table.add_row("first difference", f"step {found.first.step:,}: {_both(found.first)}")
        table.add_row(
            "largest difference", f"step {found.largest.step:,}: {_both(found.largest)}{_apart(found.largest)}"
        )
    left, right = found.area
    ratio = f", the right is {100 * right / left:.6g}% of the left" if left else ""
    table.add_row("sum of rates", f"{left:.6g} | {right:.6g}{ratio}{_about(found)}")
    if found.first_batch is None:
        table.add_row("a step", f"the same: {batch_line(one)}")
    else:
        table.add_row("a step", f"{batch_line(one)} | {batch_line(other)}")
        sizes = f"{found.first_batch.left:,.0f} | {found.first_batch.right:,.0f} sequences"
        table.add_row("", f"first other at step {found.first_batch.step:,}: {sizes}")
    tokens = [short_count(count) for count in found.tokens]
    same = found.tokens[0] == found.tokens[1]
    table.add_row("tokens", f"the same: {tokens[0]}" if same else f"{tokens[0]} | {tokens[1]}")
    return table


def _measured(found: Measured, sides: tuple[Side, Side]) -> Iterable[RenderableType]:
    """The training losses in a chart, and both losses in a table; what either curve is put together from."""
    lines = [Series(found.lines[number], name=safe(sides[number].name), dashed=number == 1) for number in (0, 1)]
    log = all(loss > 0 for line in found.lines for _, loss in line)
    if all(found.lines):
        what = f"training loss{', logarithmic' if log else ''}, over steps"
        yield from (Text(), Chart(what, lines, found.last, numbers=".3g", log=log), Text())
    table = facts()
    for side in found.sides:
        if len(side.runs) > 1:
            parts = [f"{name} up to step {after:,}" for (name, _), (_, after) in pairwise(side.runs)]
            table.add_row("joined", safe(f"{', '.join(parts)}, then {side.runs[-1][0]}"))
    if not found.train:
        table.add_row("training loss", "no step is on record in both")
    elif found.first is None:
        table.add_row("training loss", f"the same to the bit at all {len(found.train):,} common steps")
    else:
        first = found.first
        values = f"{first.left:.6f} | {first.right:.6f}"
        table.add_row("training loss", f"first other at step {first.step:,}: {values}")
    yield table
    intervals = found.intervals()
    if intervals:
        yield from (Text(), _losses(intervals, sides))


def _losses(intervals: Sequence[Interval], sides: tuple[Side, Side]) -> Table:
    """Mean training losses between some states, and the validation losses there."""
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("up to step", justify="right")
    for what in ("training, mean", *(["validation"] if any(at.val for at in intervals) else [])):
        for number, side in enumerate(sides):
            table.add_column(f"{what}\n{safe(side.name)}", justify="right", header_style=STYLES[number])
    for at in intervals:
        cells = [f"{loss:.4f}" for loss in at.train]
        cells += [] if at.val is None else [f"{at.val.left:.4f}", f"{at.val.right:.4f}"]
        table.add_row(f"{at.state:,}", *cells)
    return table


def _both(point: Point) -> str:
    return f"{point.left:.6e} | {point.right:.6e}"


def _apart(point: Point) -> str:
    """How far the right is from the left, also as a share of it where there is one."""
    far = point.right - point.left
    share = f" ({100 * far / point.left:+.3g}% of the left)" if point.left else ""
    return f", {'+' if far > 0 else '-'}{rate(abs(far))}{share}"


def _about(found: Comparison) -> str:
    return "" if found.exact else f" (looked at in {found.looked_at:,} places)"


def _settings(found: Comparison) -> Iterable[RenderableType]:
    """The table of other settings; a line where there are none."""
    if not found.config:
        return [Text("\nthe configurations are the same", FAINT)]
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("setting", no_wrap=True)
    for number, side in enumerate((found.left, found.right)):
        table.add_column(safe(side.name), overflow="fold", header_style=STYLES[number])
    for key, (left, right) in found.config.items():
        table.add_row(key, _value(left), _value(right))
    return [Text(), table]


def _value(value: Any) -> Text:
    return Text(safe(str(value) if isinstance(value, str) else dump_yaml(value, flow=True)))
