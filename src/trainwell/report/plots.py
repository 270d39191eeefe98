"""The three pictures of a run: its learning rate, its losses, its gradient norms, as PNG files in `plots/`.

Draws what is on record and the plan behind it. matplotlib is imported when a picture is drawn, and only its objects are
used: no global state, no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainwell.report.load import RunData
from trainwell.runs.console import short_count
from trainwell.runs.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey.
TRAIN, VAL, MARK, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#333333", "#B8B8B8"
_MOST_EPOCHS = 24

Floats = NDArray[np.float64]


def write_plots(run: RunData) -> list[Path]:
    """Draw lr.png, loss.png and grad_norm.png of a run that has taken a step; return the files written."""
    if not run.train:
        return []
    run.dir.plots.mkdir(exist_ok=True)
    written = []
    for name, draw in (("lr", _draw_lr), ("loss", _draw_loss), ("grad_norm", _draw_norm)):
        path = run.dir.plots / f"{name}.png"
        draw(run).savefig(path)
        written.append(path)
    return written


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


def _span(values: Floats) -> int:
    return max(8, len(values) // 20)


def _draw_lr(run: RunData) -> Figure:
    figure, axes = _figure(run, "learning rate")
    steps, rates = _column(run.train, "train/lr")
    if run.plan:
        ahead = np.unique(np.linspace(0, run.plan.num_steps - 1, 2000).astype(int))
        axes.plot(ahead, [run.plan.lr(int(step)) for step in ahead], color=PALE, lw=1.5, zorder=1)
        for step, what in _joints(run):
            _mark(axes, step, run.plan.lr(step), what)
    axes.plot(steps, rates, color=TRAIN, lw=2.2, zorder=2)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.14)
    axes.set_ylabel("learning rate", color=INK)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
    return figure


def _joints(run: RunData) -> list[tuple[int, str]]:
    """Where the rate turns: its first, its peak and its last step."""
    assert run.plan is not None
    places = {0: "step 0", run.plan.warmup: "warmup ends", run.plan.num_steps - 1: "last step"}
    places |= {run.plan.horizon - 1: "horizon ends"} if run.plan.horizon < run.plan.num_steps else {}
    return sorted((step, what) for step, what in places.items() if 0 <= step < run.plan.num_steps)


def _mark(axes: Axes, step: int, rate: float, what: str) -> None:
    axes.plot([step], [rate], "o", color=INK, ms=4.5, zorder=3)
    right = step > axes.get_xlim()[1] * 0.8
    axes.annotate(
        f"{what}\n{rate:.2e}",
        (step, rate),
        xytext=(-8 if right else 8, 8),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=9,
        color=INK,
        linespacing=1.3,
    )


def _draw_loss(run: RunData) -> Figure:
    figure, axes = _figure(run, "loss")
    steps, losses = _column(run.train, "train/loss")
    axes.plot(steps, losses, color=TRAIN, lw=0.7, alpha=0.3)
    smooth = smoothed(losses, _span(losses))
    axes.plot(steps, smooth, color=TRAIN, lw=2, label="training, smoothed")
    states, checked = _column(run.val, "val/loss")
    if np.isfinite(checked).any():
        best = int(np.nanargmin(checked))
        label = f"validation, best {checked[best]:.3f} at step {int(states[best])}"
        axes.plot(states, checked, "o-", color=VAL, lw=1.6, ms=5, mec="white", mew=0.8, label=label, clip_on=False)
        axes.plot(states[best], checked[best], "o", ms=11, mfc="none", mec=VAL, mew=1.4, clip_on=False)
    axes.set_ylim(_range_of(np.concatenate([losses, checked])))
    axes.set_ylabel("loss, nats per token", color=INK)
    _legend(axes)
    _mark_epochs(run, axes)
    _tokens_on_top(run, axes)
    return figure


def _draw_norm(run: RunData) -> Figure:
    figure, axes = _figure(run, "gradient norm, before clipping")
    steps, norms = _column(run.train, "train/grad_norm")
    threshold = run.config.optim.max_grad_norm
    axes.set_yscale("log")
    axes.plot(steps, norms, color=TRAIN, lw=0.7, alpha=0.35)
    # On a logarithmic axis the typical norm is the geometric mean: one spike does not lift the line for long.
    typical = np.exp(smoothed(np.log(np.where(norms > 0, norms, np.nan)), _span(norms)))
    axes.plot(steps, typical, color=TRAIN, lw=2, label="global L2 norm, smoothed")
    if threshold:
        _, clipped = _column(run.train, "train/clipped")
        share = f", {np.nanmean(clipped):.0%} of the steps clipped" if len(clipped) else ""
        axes.axhline(threshold, color=VAL, lw=1.4, ls=(0, (5, 3)), label=f"threshold {threshold:g}{share}")
    axes.set_ylabel("gradient norm (log)", color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _few_log_ticks(axes)
    _legend(axes)
    _mark_epochs(run, axes)
    return figure


def _few_log_ticks(axes: Axes) -> None:
    """Label 1, 2 and 5 of each decade when few decades are in view, so that a flat curve still has readable marks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    few = log10(high / low) < 2.5
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    """Over a white ground, so that marks of epochs do not run through the words."""
    axes.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1, labelcolor=INK, fontsize=10)


def _figure(run: RunData, what: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.11, 0.895, 0.72))  # fixed, since working a layout out takes a second
    axes.set_title(run.dir.name, loc="left", fontsize=13, fontweight="bold", color=INK, pad=12)
    axes.set_title(what, loc="right", fontsize=11, color="#666666", pad=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors="#555555", labelsize=9)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    end = run.num_steps or run.steps_done
    axes.set_xlim(-0.01 * end, 1.01 * end)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, axes


def _mark_epochs(run: RunData, axes: Axes) -> None:
    """A thin line where each new pass over the data begins; none when there are too many to read."""
    starts = [
        (after["step"], int(after["epoch"]))
        for before, after in pairwise(row for row in run.train if row.get("epoch") is not None)
        if int(after["epoch"]) > int(before["epoch"])
    ]
    if len(starts) > _MOST_EPOCHS:
        return
    for step, epoch in starts:
        axes.axvline(step, color=MARK, lw=0.9, ls=(0, (1, 2)), zorder=0)
        axes.annotate(
            f"epoch {epoch}" if len(starts) <= 8 else str(epoch),
            (step, 0.01),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8,
            color=MARK,
        )


def _tokens_on_top(run: RunData, axes: Axes) -> None:
    """A second x axis: tokens seen by then, by the recorded counts and therefore right for any batch plan."""
    steps, tokens = _column(run.train, "tokens")
    if not len(steps):
        return
    steps, tokens = np.append(0.0, steps + 1), np.append(0.0, tokens)
    slope = tokens[-1] / steps[-1]

    def to_tokens(at: Any) -> Any:
        return np.where(np.asarray(at) > steps[-1], np.asarray(at) * slope, np.interp(at, steps, tokens))

    def to_steps(at: Any) -> Any:
        return np.where(np.asarray(at) > tokens[-1], np.asarray(at) / slope, np.interp(at, tokens, steps))

    top = axes.secondary_xaxis("top", functions=(to_tokens, to_steps))
    top.set_xlabel("tokens seen", fontsize=9, color="#555555")
    top.xaxis.set_major_formatter(lambda value, _: short_count(value))
    top.tick_params(colors="#555555", labelsize=9)
    top.spines["top"].set_color(PALE)


def _range_of(losses: Floats) -> tuple[float, float]:
    """The range of the finite losses with some air; one spike does not squeeze the rest."""
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), max(float(finite[0]), float(np.quantile(finite, 0.98, method="lower")))
    air = 0.06 * (high - low) or 0.5
    return low - air, high + air


def _column(rows: Sequence[Row], key: str) -> tuple[Floats, Floats]:
    """Steps and values of the rows that have the key; a value that is missing is NaN."""
    pairs = [(row["step"], np.nan if row[key] is None else float(row[key])) for row in rows if key in row]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
