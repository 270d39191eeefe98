"""The three pictures of a run: its learning rate, its losses, its gradient norms, as PNG files in `plots/`.

Draws what is on record and the plan behind it. matplotlib is imported when a picture is drawn; no display is used.
"""

from __future__ import annotations

from itertools import pairwise
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainwell.report.columns import column, range_of, smoothed, span_of
from trainwell.report.load import RunData
from trainwell.report.picture import INK, MARK, TRAIN, VAL, figure_of, legend, save, tokens_on_top
from trainwell.report.schedule_plot import draw_plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_EPOCHS = 24
_NO_ROOM = 0.02
"""Share of a run in which an epoch that begins is not marked: its name would leave the picture."""


def write_plots(run: RunData) -> list[Path]:
    """Draw lr.png, loss.png and grad_norm.png of a run that has taken a step, and accuracy.png of one with classes."""
    if not run.train:
        return []
    run.dir.plots.mkdir(exist_ok=True)
    written = []
    pictures = [("lr", rate_picture), ("loss", loss_picture), ("grad_norm", _draw_norm)]
    if any("val/accuracy" in row for row in run.val):
        pictures.append(("accuracy", _draw_accuracy))
    for name, draw in pictures:
        path = run.dir.plots / f"{name}.png"
        save(draw(run), path, "png")
        written.append(path)
    return written


def rate_picture(run: RunData) -> Figure:
    """The rate on record, over the planned one where that is known."""
    steps, rates = column(run.train, "train/lr")
    recorded = steps.tolist(), rates.tolist()
    if run.plan:
        return draw_plan(run.plan, run.dir.name, recorded)
    figure, axes = _figure(run, "learning rate")
    axes.plot(*recorded, color=TRAIN, lw=2.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate", color=INK)
    return figure


def loss_picture(run: RunData) -> Figure:
    """The losses of training and validation."""
    figure, axes = _figure(run, "loss")
    steps, losses = column(run.train, "train/loss")
    axes.plot(steps, losses, color=TRAIN, lw=0.7, alpha=0.3)
    smooth = smoothed(losses, span_of(losses))
    axes.plot(steps, smooth, color=TRAIN, lw=2, label="training, smoothed")
    states, checked = column(run.val, "val/loss")
    if np.isfinite(checked).any():
        best = int(np.nanargmin(checked))
        label = f"validation, best {checked[best]:.3f} at step {int(states[best])}"
        axes.plot(states, checked, "o-", color=VAL, lw=1.6, ms=5, mec="white", mew=0.8, label=label, clip_on=False)
        axes.plot(states[best], checked[best], "o", ms=11, mfc="none", mec=VAL, mew=1.4, clip_on=False)
    axes.set_ylim(range_of(np.concatenate([losses, checked])))
    axes.set_ylabel(f"loss, {run.loss_unit}", color=INK)
    legend(axes)
    _mark_epochs(run, axes)
    _tokens_on_top(run, axes)
    return figure


def _draw_accuracy(run: RunData) -> Figure:
    figure, axes = _figure(run, "accuracy")
    steps, shares = column(run.train, "train/accuracy")
    axes.plot(steps, shares, color=TRAIN, lw=0.7, alpha=0.3)
    axes.plot(steps, smoothed(shares, span_of(shares)), color=TRAIN, lw=2, label="training, smoothed")
    states, checked = column(run.val, "val/accuracy")
    label = f"validation, {checked[-1]:.1%} at the end"
    axes.plot(states, checked, "o-", color=VAL, lw=1.6, ms=5, mec="white", mew=0.8, label=label, clip_on=False)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("share of examples labelled right", color=INK)
    legend(axes, "upper left")
    _mark_epochs(run, axes)
    _tokens_on_top(run, axes)
    return figure


def _draw_norm(run: RunData) -> Figure:
    figure, axes = _figure(run, "gradient norm, before clipping")
    steps, norms = column(run.train, "train/grad_norm")
    threshold = run.config.optim.max_grad_norm
    axes.set_yscale("log")
    axes.plot(steps, norms, color=TRAIN, lw=0.7, alpha=0.35)
    # On a logarithmic axis the typical norm is the geometric mean: one spike does not lift the line for long.
    typical = np.exp(smoothed(np.log(np.where(norms > 0, norms, np.nan)), span_of(norms)))
    axes.plot(steps, typical, color=TRAIN, lw=2, label="global L2 norm, smoothed")
    if threshold:
        _, clipped = column(run.train, "train/clipped")
        share = f", {np.nanmean(clipped):.0%} of the steps clipped" if len(clipped) else ""
        axes.axhline(threshold, color=VAL, lw=1.4, ls=(0, (5, 3)), label=f"threshold {threshold:g}{share}")
    axes.set_ylabel("gradient norm (log)", color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _few_log_ticks(axes)
    legend(axes)
    _mark_epochs(run, axes)
    return figure


def _few_log_ticks(axes: Axes) -> None:
    """Label 1, 2 and 5 of each decade when few decades are in view, so that a flat curve still has readable marks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    few = log10(high / low) < 2.5
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _figure(run: RunData, what: str) -> tuple[Figure, Axes]:
    figure, (axes,) = figure_of(run.dir.name, what, run.num_steps or run.steps_done)
    return figure, axes


def _mark_epochs(run: RunData, axes: Axes) -> None:
    """A thin line where each new pass over the data begins; none when there are too many to read."""
    starts = [
        (after["step"], int(after["epoch"]))
        for before, after in pairwise(row for row in run.train if row.get("epoch") is not None)
        if int(after["epoch"]) > int(before["epoch"])
    ]
    last = run.num_steps or run.steps_done
    starts = [(step, epoch) for step, epoch in starts if step < (1 - _NO_ROOM) * last]
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
    steps, tokens = column(run.train, "tokens")
    if not len(steps):
        return
    tokens_on_top(axes, [0.0, *(steps + 1).tolist()], [0.0, *tokens.tolist()], "tokens seen")
