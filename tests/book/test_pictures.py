"""The book's plots without a display: what is in them, and that nothing else is touched."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwell.book import plot_losses, plot_lrs


@pytest.fixture
def figure(own_folders: Path) -> Any:
    """As the book calls it: epochs from torch.linspace."""
    return plot_losses(torch.linspace(0, 3, 4), [512, 1024, 1536, 2048], [9.0, 7.0, 6.0, 5.0], [9.5, 8.0, 7.5, 7.0])


def test_losses_are_drawn_over_epochs_with_tokens_on_top(figure: Any) -> None:
    axes, top = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[9.0, 7.0, 6.0, 5.0], [9.5, 8.0, 7.5, 7.0]]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Training loss", "Validation loss"]
    assert (axes.get_xlabel(), axes.get_ylabel(), top.get_xlabel()) == ("Epochs", "Loss", "Tokens seen")
    assert list(top.lines[0].get_xdata()) == [512, 1024, 1536, 2048]


def test_the_loss_plot_is_saved_as_the_book_saves_it(figure: Any, own_folders: Path) -> None:
    assert (own_folders / "loss-plot.pdf").read_bytes().startswith(b"%PDF")


def test_rates_are_drawn_over_steps(own_folders: Path) -> None:
    figure: Any = plot_lrs([1e-5, 1e-3, 1e-5])
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2]
    assert list(axes.lines[0].get_ydata()) == [1e-5, 1e-3, 1e-5]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Step", "Learning rate")
    assert list(own_folders.iterdir()) == []


def test_a_notebook_shows_the_figure_that_is_returned(figure: Any) -> None:
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_no_global_figure_is_left_behind(figure: Any) -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
