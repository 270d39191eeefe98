"""The book's plots without a display: what is in them, and that nothing else is touched."""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from trainwell.book import plot_losses, plot_lrs


@pytest.fixture
def without_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody has imported pyplot, although the oracle of other tests may have."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)


@pytest.fixture
def figure(own_folders: Path, without_pyplot: None) -> Any:
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


def test_rates_are_drawn_over_steps(own_folders: Path, without_pyplot: None) -> None:
    figure: Any = plot_lrs([1e-5, 1e-3, 1e-5])
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2]
    assert list(axes.lines[0].get_ydata()) == [1e-5, 1e-3, 1e-5]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Step", "Learning rate")
    assert list(own_folders.iterdir()) == []


def test_a_notebook_shows_the_figure_that_is_returned(figure: Any) -> None:
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_notebooks_own_lines_go_on_with_the_figure(own_folders: Path) -> None:
    matplotlib.use("agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure: Any = plot_losses(torch.linspace(0, 1, 2), [512, 1024], [9.0, 7.0], [9.5, 8.0])
    assert pyplot.gcf() is figure
    pyplot.savefig("3.pdf")
    pyplot.close(figure)
    assert len((own_folders / "3.pdf").read_bytes()) > 5000
