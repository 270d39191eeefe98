"""The book's two plots, drawn without a display or global state; a notebook shows the figures they return."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainwell.report.picture import INK, TRAIN, VAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

LOSS_PLOT = "loss-plot.pdf"


def plot_losses(
    epochs_seen: Sequence[float] | Tensor,
    tokens_seen: Sequence[int],
    train_losses: Sequence[float],
    val_losses: Sequence[float],
) -> Figure:
    """Draw both losses over epochs, with tokens on top; write loss-plot.pdf into the working folder, as the book does.

    Returns the figure; as the last line of a cell it is shown.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure()
    axes = figure.subplots()
    epochs = [float(epoch) for epoch in epochs_seen]
    axes.plot(epochs, train_losses, color=TRAIN, label="Training loss")
    axes.plot(epochs, val_losses, "-.", color=VAL, label="Validation loss")
    axes.set_xlabel("Epochs", color=INK)
    axes.set_ylabel("Loss", color=INK)
    axes.legend(loc="upper right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = axes.twiny()
    top.plot(tokens_seen, train_losses, alpha=0)  # invisible: it only lines the two scales up
    top.set_xlabel("Tokens seen", color=INK)
    figure.tight_layout()
    figure.savefig(LOSS_PLOT)
    return figure


def plot_lrs(track_lrs: Sequence[float]) -> Figure:
    """Draw the rate of every step, as appendix D's notebook does. Returns the figure."""
    figure = _figure()
    axes = figure.subplots()
    axes.plot(range(len(track_lrs)), track_lrs, color=TRAIN)
    axes.set_xlabel("Step", color=INK)
    axes.set_ylabel("Learning rate", color=INK)
    figure.tight_layout()
    return figure


def _figure() -> Figure:
    """A figure: pyplot's current one where a notebook has imported it, so that its own plt lines go on with it."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        made: Figure = pyplot.figure(figsize=(5, 3))
        return made
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that shows itself in a notebook, whether or not pyplot has been set up there."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    figure = Picture(figsize=(5, 3))
    FigureCanvasAgg(figure)
    return figure
