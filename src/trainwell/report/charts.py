"""The interactive charts of a run, made with Bokeh: loss, rate, gradient norm, batch, speed, utilisation, memory.

Every source that has a column `x` is over steps here; the page's script moves it to another axis. No text of a run's
files is drawn: what they say is hostile until it is escaped, and labels here are our own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    FixedTicker,
    GlyphRenderer,
    HoverTool,
    Legend,
    NumeralTickFormatter,
    PanTool,
    PrintfTickFormatter,
    Range1d,
    ResetTool,
    SaveTool,
    Span,
    WheelZoomTool,
)
from bokeh.plotting import figure

from trainwell.planning.bands import Band
from trainwell.report.columns import Floats, column, range_of, smoothed, span_of, thinned
from trainwell.report.course import course
from trainwell.report.load import RunData
from trainwell.report.picture import INK, MARK, PALE, SPIKE, TRAIN, VAL
from trainwell.runs.metrics import Row

MOST_POINTS = 10_000
"""Of a curve that is drawn; of one with more, the lowest and highest of each stretch."""
_FEW_POINTS = 2_000
_MOST_EPOCHS = 60
_TALL, _LOW = 340, 190


@dataclass
class Chart:
    """One chart: its place on the page, its heading, what it shows, and the figure, or one for each kind of y axis."""

    name: str
    title: str
    about: str
    figures: dict[str, Any] = field(default_factory=dict)
    """By kind of axis: `linear`, `log`."""


def charts(run: RunData, rows: Sequence[Row], val: Sequence[Row], marks: "Marks") -> list[Chart]:
    """The charts of the rows of a run, in reading order; what is nowhere on record has none."""
    if not rows and not val:
        return []
    start, end = whole_of(run)
    x_range = Range1d(start, end, name="steps", bounds=None)
    speeds = [
        _simple(rows, x_range, "train/tokens_per_sec", "speed", "Speed", "tokens a second", "tokens/s", "0,0"),
        _simple(rows, x_range, "train/mfu", "mfu", "Utilisation", "share of the device's peak", "MFU", "0.0%"),
        _simple(rows, x_range, "mem/peak_gb", "memory", "Memory", "most that was allocated", "GB", "0.00"),
    ]
    made = [
        _loss(run, rows, val, x_range, marks),
        _accuracy(rows, val, x_range),
        _rate(run, rows, x_range),
        _norm(run, rows, x_range),
        _batch(run, rows, x_range),
        *speeds,
    ]
    return [chart for chart in made if chart is not None]


def with_air(low: float, high: float) -> tuple[float, float]:
    """A range with room on both sides."""
    air = 0.06 * (high - low) or 0.5
    return low - air, high + air


def whole_of(run: RunData) -> tuple[float, float]:
    """From the first state of a run to its last, as planned, with room for what is drawn there."""
    end = float(max(run.num_steps or 0, run.steps_done, 1))
    return -0.004 * end, 1.01 * end


@dataclass(frozen=True)
class Marks:
    """Steps of a run at which something happened."""

    checkpoints: Sequence[int] = ()
    resumes: Sequence[int] = ()
    epochs: Sequence[int] = ()
    spikes: Sequence[int] = ()
    skipped: Sequence[int] = ()
    bands: Sequence[tuple[float, Band]] = ()
    """The losses that the recipe usually gives, each at its state."""


def epoch_starts(rows: Sequence[Row]) -> list[int]:
    """The steps with which a new pass over the data begins; none where there are too many to read."""
    starts = [
        int(after["step"])
        for before, after in pairwise(row for row in rows if row.get("epoch") is not None)
        if int(after["epoch"]) > int(before["epoch"])
    ]
    return starts if len(starts) <= _MOST_EPOCHS else []


def _loss(run: RunData, rows: Sequence[Row], val: Sequence[Row], x_range: Range1d, marks: Marks) -> Chart | None:
    steps, losses = column(rows, "train/loss")
    states, checked = column(val, "val/loss")
    if not np.isfinite(losses).any() and not np.isfinite(checked).any():
        return None
    everything = np.concatenate([losses, checked])
    low, high = range_of(everything)
    sources = _loss_sources(steps, losses, states, checked, marks, high - 0.02 * (high - low))
    chart = Chart("loss", "Loss", f"{run.loss_unit}; the smoothed line is a mean over a twentieth of the steps")
    positive = bool((everything[np.isfinite(everything)] > 0).all())
    for kind in ("linear", "log") if positive else ("linear",):
        lowest = float(np.nanmin(everything))
        y_range = Range1d(0.97 * lowest, high) if kind == "log" else Range1d(low, high)
        made = framed(x_range, run.loss_unit, _TALL, y_range, kind)
        _draw_loss(made, sources, kind, marks)
        chart.figures[kind] = made
    return chart


def _loss_sources(
    steps: Floats, losses: Floats, states: Floats, checked: Floats, marks: Marks, top: float
) -> Mapping[str, ColumnDataSource]:
    """What is drawn; a mark of a loss above `top` stands there, and says its own value."""
    at = {int(step): loss for step, loss in zip(steps, losses, strict=True)}

    def points(chosen: Sequence[int]) -> ColumnDataSource:
        found = [(step, at[step]) for step in chosen if isfinite(at.get(step, float("nan")))]
        source = point_source([step for step, _ in found], [loss for _, loss in found])
        source.data["place"] = np.minimum(source.data["y"], top)
        return source

    best = int(np.nanargmin(checked)) if np.isfinite(checked).any() else None
    return {
        "raw": curve_source(steps, losses),
        "smooth": curve_source(steps, smoothed(losses, span_of(losses)), _FEW_POINTS),
        "val": point_source(states, checked),
        "best": point_source([] if best is None else [states[best]], [] if best is None else [checked[best]]),
        "spikes": points(marks.spikes),
        "skipped": points(marks.skipped),
        "epochs": point_source(marks.epochs),
        "resumes": point_source(marks.resumes),
        "checkpoints": point_source(marks.checkpoints),
        "band": ColumnDataSource(
            {
                "x": np.array([state for state, _ in marks.bands]),
                "low": np.array([band.low for _, band in marks.bands]),
                "high": np.array([band.high for _, band in marks.bands]),
            }
        ),
    }


def _draw_loss(made: Any, sources: Mapping[str, ColumnDataSource], kind: str, marks: Marks) -> None:
    at_bottom = made.y_range.start * (1.015 if kind == "log" else 1) + (
        0 if kind == "log" else 0.03 * (made.y_range.end - made.y_range.start)
    )
    _vertical(made, sources["epochs"], "new epoch", "dotted", MARK)
    _vertical(made, sources["resumes"], "resumed", "dashed", SPIKE)
    if marks.bands:
        usual = {"x": "x", "y1": "low", "y2": "high", "source": sources["band"]}
        made.varea(**usual, fill_color=MARK, fill_alpha=0.25, legend_label="usual for this recipe")
    raw = {"source": sources["raw"], "color": TRAIN, "line_width": 1, "alpha": 0.3}
    made.line("x", "y", **raw, legend_label="training")
    smooth = {"source": sources["smooth"], "color": TRAIN, "line_width": 2.2}
    line = made.line("x", "y", **smooth, legend_label="training, smoothed")
    hovered = [line]
    if len(sources["val"].data["x"]):
        made.line("x", "y", source=sources["val"], color=VAL, line_width=1.6, legend_label="validation")
        dots = {"source": sources["val"], "size": 7, "fill_color": VAL, "line_color": None}
        hovered.append(made.scatter("x", "y", **dots, legend_label="validation"))
        best = {"source": sources["best"], "size": 14, "fill_color": None, "line_color": VAL, "line_width": 1.6}
        made.scatter("x", "y", **best, legend_label="best validation")
    for name, marker, color in (("spikes", "diamond", SPIKE), ("skipped", "x", INK)):
        if len(sources[name].data["x"]):
            label = {"spikes": "spike", "skipped": "skipped step"}[name]
            dots = {"source": sources[name], "size": 11, "marker": marker, "color": color, "line_width": 2}
            hovered.append(made.scatter("x", "place", **dots, legend_label=label))
    if len(sources["checkpoints"].data["x"]):
        made.scatter(
            "x", at_bottom, source=sources["checkpoints"], marker="triangle", size=9, color=INK, alpha=0.6,
            legend_label="checkpoint",
        )  # fmt: skip
    hover(made, hovered, "loss", "0.0000")
    place_legend(made)


def _accuracy(rows: Sequence[Row], val: Sequence[Row], x_range: Range1d) -> Chart | None:
    steps, shares = column(rows, "train/accuracy")
    states, checked = column(val, "val/accuracy")
    if not len(checked) and not len(shares):
        return None
    made = framed(x_range, "share labelled right", _LOW, Range1d(0, 1.02))
    made.line(
        "x", "y", source=curve_source(steps, shares), color=TRAIN, line_width=1, alpha=0.3, legend_label="training"
    )
    smooth = curve_source(steps, smoothed(shares, span_of(shares)), _FEW_POINTS)
    line = made.line("x", "y", source=smooth, color=TRAIN, line_width=2.2, legend_label="training, smoothed")
    found = point_source(states, checked)
    made.line("x", "y", source=found, color=VAL, line_width=1.6, legend_label="validation")
    dots = made.scatter("x", "y", source=found, size=7, color=VAL, legend_label="validation")
    hover(made, [line, dots], "accuracy", "0.0%")
    place_legend(made, "bottom_right")
    return Chart("accuracy", "Accuracy", "share of examples labelled right", {"linear": made})


def _rate(run: RunData, rows: Sequence[Row], x_range: Range1d) -> Chart | None:
    steps, rates = column(rows, "train/lr")
    planned = [] if run.plan is None else [(moment.step, moment.lr) for moment in course(run.plan)]
    if not planned and not len(rates):
        return None
    top = max([*rates[np.isfinite(rates)].tolist(), *(rate for _, rate in planned), 1e-12])
    made = framed(x_range, "learning rate", _LOW, Range1d(0, 1.08 * top))
    used = made.line("x", "y", source=curve_source(steps, rates), color=TRAIN, line_width=3, legend_label="used")
    hovered = [used]
    if planned:
        source = point_source([step for step, _ in planned], [rate for _, rate in planned])
        look = {"color": VAL, "line_width": 1.6, "line_dash": "dashed", "legend_label": "planned"}
        hovered.append(made.line("x", "y", source=source, **look))
    hover(made, hovered, "rate", "0.000e+0")
    place_legend(made)
    return Chart("rate", "Learning rate", "as planned, and as each step was taken with", {"linear": made})


def _norm(run: RunData, rows: Sequence[Row], x_range: Range1d) -> Chart | None:
    steps, norms = column(rows, "train/grad_norm")
    if not (norms > 0).any():
        return None
    positive = np.where(norms > 0, norms, np.nan)
    threshold = run.config.optim.max_grad_norm
    known = positive[np.isfinite(positive)]
    low, high = float(known.min()), float(known.max())
    low, high = min(low, threshold or low) / 1.15, max(high, threshold or high) * 1.15
    made = framed(x_range, "L2 norm", _LOW + 40, Range1d(low, high), "log")
    made.line(
        "x", "y", source=curve_source(steps, positive), color=TRAIN, line_width=1, alpha=0.35, legend_label="each step"
    )
    _, clipped = column(rows, "train/clipped")
    if threshold and len(clipped) == len(positive):
        over = np.flatnonzero(clipped == 1)
        over = over[thinned(positive[over], _FEW_POINTS)] if len(over) else over
        dots = {"source": point_source(steps[over], positive[over]), "size": 3, "color": VAL, "alpha": 0.6}
        made.scatter("x", "y", **dots, legend_label="clipped")
        made.add_layout(Span(location=threshold, dimension="width", line_color=INK, line_dash="dashed", line_width=1.2))
    # on a logarithmic axis the typical norm is the geometric mean: one spike does not lift the line for long
    typical = np.exp(smoothed(np.log(positive), span_of(positive)))
    source = curve_source(steps, typical, _FEW_POINTS)
    line = made.line("x", "y", source=source, color=TRAIN, line_width=2.2, legend_label="smoothed")
    hover(made, [line], "norm", "0.000")
    place_legend(made)
    about = "before clipping, over all trained tensors"
    if threshold:
        share = f"; {np.nanmean(clipped):.0%} of the steps were clipped" if len(clipped) else ""
        about += f"; the dashed line is the threshold {threshold:g}{share}"
    return Chart("norm", "Gradient norm", about, {"log": made})


def _batch(run: RunData, rows: Sequence[Row], x_range: Range1d) -> Chart | None:
    if run.plan is None:
        return None
    moments = course(run.plan)
    source = point_source([moment.step for moment in moments], [moment.batch_size for moment in moments])
    most = max(moment.batch_size for moment in moments)
    made = framed(x_range, "sequences", 130 if run.plan.batch.ramp is None else _LOW, Range1d(0, 1.15 * most))
    line = made.step("x", "y", source=source, mode="after", color=TRAIN, line_width=2.2)
    hover(made, [line], "sequences", "0,0")
    about = f"sequences of {run.plan.seq_len:,} tokens in a step, planned"
    return Chart("batch", "Batch size", about, {"linear": made})


def _simple(
    rows: Sequence[Row], x_range: Range1d, key: str, name: str, title: str, about: str, unit: str, numbers: str
) -> Chart | None:
    """One measured number over steps, raw and smoothed, from zero."""
    steps, values = column(rows, key)
    known = values[np.isfinite(values)]
    if not len(known) or not known.any():
        return None
    # one step that took no time must not squeeze the rest
    made = framed(x_range, unit, _LOW, Range1d(0, 1.2 * float(np.quantile(known, 0.99))))
    if numbers.endswith("%"):
        made.yaxis.formatter = NumeralTickFormatter(format="0.[0]%")
    made.line("x", "y", source=curve_source(steps, values, 2 * _FEW_POINTS), color=TRAIN, line_width=1, alpha=0.35)
    source = curve_source(steps, smoothed(values, span_of(values)), _FEW_POINTS)
    line = made.line("x", "y", source=source, color=TRAIN, line_width=2.2)
    hover(made, [line], title.lower(), numbers)
    return Chart(name, title, about, {"linear": made})


def point_source(steps: Any, values: Any = None) -> ColumnDataSource:
    """Points over steps, all of them."""
    columns = {"x": np.asarray(steps, dtype=np.float64)}
    if values is not None:
        columns["y"] = np.asarray(values, dtype=np.float64)
    return ColumnDataSource(columns)


def curve_source(steps: Floats, values: Floats, most: int = MOST_POINTS) -> ColumnDataSource:
    """A curve with as many points as can be told apart; in 32 bits, since nobody sees the others."""
    chosen = thinned(values, most)
    return ColumnDataSource({"x": steps[chosen].astype(np.int32), "y": values[chosen].astype(np.float32)})


def framed(
    x_range: Range1d, label: str, height: int, y_range: Range1d, kind: str = "linear", x_kind: str = "linear"
) -> Any:
    """An empty figure as all of a page look, over a range that others share."""
    made = figure(
        height=height, sizing_mode="stretch_width", x_range=x_range, y_range=y_range, y_axis_type=kind,
        x_axis_type=x_kind,
        tools=[PanTool(), BoxZoomTool(), WheelZoomTool(dimensions="width"), ResetTool(), SaveTool()],
        background_fill_color=None, border_fill_color=None, outline_line_color=None,
        min_border_left=70, min_border_right=12,
    )  # fmt: skip
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.toolbar.active_drag = made.toolbar.tools[1]
    made.xaxis.axis_label = "step"
    made.yaxis.axis_label = label
    if x_kind == "linear":
        made.xaxis.formatter.use_scientific = False
    if kind == "log" or 0 < y_range.end < 0.1:
        made.yaxis.formatter = PrintfTickFormatter(format="%.3g")
    elif y_range.end > 2_000:
        made.yaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    for axis in (*made.xaxis, *made.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = PALE
        axis.minor_tick_line_color = None
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
    made.xgrid.grid_line_color = None
    made.ygrid.grid_line_color = PALE
    made.ygrid.grid_line_alpha = 0.35
    if kind == "log":
        _few_decades(made, y_range)
    return made


def _few_decades(made: Any, y_range: Range1d) -> None:
    """Label 1, 2 and 5 of each decade when few are in view, so that a flat curve still has readable marks."""
    low, high = np.log10(y_range.start), np.log10(y_range.end)
    if high - low > 2.5:
        return
    steps = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ticks = [float(f"{part * 10.0**decade:.6g}") for decade in decades for part in steps]
    made.yaxis.ticker = FixedTicker(ticks=ticks)
    made.ygrid.ticker = made.yaxis.ticker
    made.yaxis.major_label_overrides = {tick: f"{tick:g}" for tick in ticks}


def _vertical(made: Any, source: ColumnDataSource, label: str, dash: str, color: str) -> None:
    if len(source.data["x"]):
        made.vspan(x="x", source=source, line_color=color, line_dash=dash, line_width=1.2, legend_label=label)


def hover(made: Any, renderers: Sequence[GlyphRenderer], name: str, numbers: str, of: str = "step") -> None:
    """Say where a curve is, under the pointer; `step` is added to every source by the page's script."""
    tooltips = [(of, "@step{0,0}"), (name, f"@y{{{numbers}}}")]
    made.add_tools(HoverTool(renderers=list(renderers), mode="vline", tooltips=tooltips))


def place_legend(made: Any, place: str = "top_right") -> None:
    """Make a legend plain, with entries that switch their curve off and on."""
    for legend in made.select(Legend):
        legend.location = place
        legend.click_policy = "hide"
        legend.label_text_font_size = "12px"
        legend.label_text_color = INK
        legend.background_fill_alpha = 0
        legend.border_line_color = None
        legend.spacing = 0
        legend.glyph_height = 16
