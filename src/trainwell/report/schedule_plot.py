"""Pictures of schedules: one plan with its joints and what is on record, or two laid over each other.

Of two runs their losses are drawn too.

Draws what `planning` and `report.compare` say, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainwell.planning.describe import joints, rate
from trainwell.planning.resolve import Plan
from trainwell.report.compare import Comparison
from trainwell.report.course import Moment, batch_changes, course
from trainwell.report.measured import Measured
from trainwell.report.picture import FAINT, INK, MARK, PALE, TRAIN, VAL, figure_of, label, legend, tokens_on_top
from trainwell.runs.console import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 1000


def draw_plan(plan: Plan, title: str, recorded: tuple[Sequence[float], Sequence[float]] | None = None) -> Figure:
    """The rate over steps with its joints, tokens on top, and the batch size below where it changes.

    `recorded` are steps and rates on record, over which the plan is drawn as a dashed line.
    """
    moments, grows = course(plan, _POINTS), batch_changes(plan)
    figure, panels = figure_of(title, "learning rate", plan.num_steps, (3.6, 1.3) if grows else (3.6,))
    _rate_axis(panels[0])
    _line(panels[0], moments, "lr", VAL if recorded else TRAIN, "planned", dashed=recorded is not None)
    if recorded is not None:
        panels[0].plot(*recorded, color=TRAIN, lw=2.2, zorder=2, label="recorded")
        legend(panels[0])
    _joints(panels[0], plan, moments, below_legend=recorded is not None)
    if plan.num_steps > 1:
        steps, tokens = [moment.step for moment in moments], [moment.tokens for moment in moments]
        tokens_on_top(panels[0], steps, tokens, "tokens before the step")
    if grows:
        _batch_panel(panels[1])
        _line(panels[1], moments, "exact_size", MARK, "")
    return figure


def draw_comparison(found: Comparison) -> Figure:
    """Both rates, the difference below them, both batch sizes where they are not the same, the losses of two runs."""
    names, plans = (found.left.name, found.right.name), (found.left.plan, found.right.plan)
    courses = [course(plan, _POINTS) for plan in plans]
    batches = found.first_batch is not None
    end = max(plan.num_steps for plan in plans)
    heights = [3.6, 1.3, *([1.3] if batches else []), *([2.8] if found.measured else [])]
    figure, panels = figure_of(" | ".join(names), "learning rate", end, heights)
    _rate_axis(panels[0])
    for number, moments in enumerate(courses):
        _line(panels[0], moments, "lr", (TRAIN, VAL)[number], names[number], dashed=number == 1)
    legend(panels[0])
    _difference(panels[1], found)
    longest = max(courses, key=lambda moments: moments[-1].step)
    if not batches and end > 1:
        tokens_on_top(panels[0], [at.step for at in longest], [at.tokens for at in longest], "tokens before the step")
    if batches:
        _batch_panel(panels[2])
        for number, moments in enumerate(courses):
            _line(panels[2], moments, "exact_size", (TRAIN, VAL)[number], "", dashed=number == 1)
    if found.measured is not None:
        _losses(panels[-1], found.measured)
    return figure


def _losses(axes: Axes, found: Measured) -> None:
    """The training loss of both as lines, validation losses as dots on them, and where a branch begins."""
    axes.set_ylabel("loss", color=INK)
    for number, (line, marks) in enumerate(zip(found.lines, found.marks, strict=True)):
        color = (TRAIN, VAL)[number]
        style = (0, (4, 3)) if number else "-"
        said = "training" if number == 0 else None
        axes.plot(*_columns(line), color=color, lw=1.6 if number else 2.2, ls=style, zorder=2 + number, label=said)
        said = "validation" if number == 0 else None
        axes.plot(*_columns(marks), "o", color=color, ms=5, mec="white", mew=0.8, zorder=4, label=said)
    for begins in {after for side in found.sides for _, after in side.runs[1:]}:
        axes.axvline(begins, color=PALE, lw=1, zorder=0)
        late = begins > sum(axes.get_xlim()) / 2  # then the text goes to the left, under the legend
        axes.annotate(
            f"branch, step {begins:,}",
            (begins, 0.7 if late else 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0) if late else (4, -10),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=9,
            color=FAINT,
        )
    legend(axes)


def _columns(line: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [step for step, _ in line], [loss for _, loss in line]


def _rate_axis(axes: Axes) -> None:
    axes.set_ylabel("learning rate", color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: rate(value))


def _difference(axes: Axes, found: Comparison) -> None:
    """The right rate less the left, its farthest step with its value."""
    steps = [point.step for point in found.curve]
    apart = [point.right - point.left for point in found.curve]
    axes.plot(steps, apart, color=INK, lw=1.6)
    axes.axhline(0, color=TRAIN, lw=1, zorder=0)
    axes.set_ylabel("right - left", color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: _signed(value))
    axes.margins(y=0.5)
    axes.set_ylim(axes.get_ylim())
    if found.largest is not None:
        far = found.largest.right - found.largest.left
        label(axes, [(found.largest.step, far, f"{_signed(far)} at step {found.largest.step:,}")], (steps, apart))
    else:
        axes.set_ylim(-1, 1)
        axes.set_yticks([0], ["0"])


def _signed(value: float) -> str:
    return rate(value) if value <= 0 else f"+{rate(value)}"


def _batch_panel(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylabel("sequences a step", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(y=0.15)


def _line(axes: Axes, moments: Sequence[Moment], what: str, color: str, name: str, *, dashed: bool = False) -> None:
    steps, values = [moment.step for moment in moments], [getattr(moment, what) for moment in moments]
    style = (0, (4, 3)) if dashed else "-"
    width, order = (1.6, 3) if dashed else (2.2, 2)
    axes.plot(steps, values, color=color, lw=width, ls=style, zorder=order, label=name)


def _joints(axes: Axes, plan: Plan, moments: Sequence[Moment], *, below_legend: bool) -> None:
    """A dot at each joint and what it is, with air above the highest rate for the words."""
    rates = [moment.lr for moment in moments]
    axes.set_ylim(0, 1.2 * max(rates))
    points = [
        (
            float(joint.step),
            joint.lr,
            f"{joint.what}{'' if 'step' in joint.what else ', step'} {joint.step:,}\n"
            f"{rate(joint.lr)}, {short_count(joint.tokens)} tokens",
        )
        for joint in joints(plan)
    ]
    label(axes, points, ([moment.step for moment in moments], rates), below_legend=below_legend)
