"""The cells of appendix D, as the example has them, print the numbers of the book's own run at its own size."""

import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),  # beside other tests, two threads wait for each other more than they work
    pytest.mark.skipif(
        not (Path(os.environ.get("TRAINWELL_DATA_DIR", "")) / "the-verdict.txt").is_file(),
        reason="TRAINWELL_DATA_DIR does not hold the-verdict.txt",
    ),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "book_appendix_d.py"
STEPS = 16
EVALUATIONS = 3  # before the last step; each takes one batch to evaluate and fetches one more
ROWS = [
    ("Ep 1 (Iter 000000): ", 10.934, 10.939),
    ("Ep 1 (Iter 000005): ", 9.151, 9.461),
    ("Ep 2 (Iter 000010): ", 7.949, 8.184),
    ("Ep 2 (Iter 000015): ", 6.362, 6.876),
]


class EnoughError(Exception):
    """The steps whose numbers are on record are taken."""


class Stops:
    """The loader of the notebook, until STEPS steps are taken."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.fetched = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.fetched == STEPS + 2 * (EVALUATIONS + 1):
                raise EnoughError
            self.fetched += 1
            yield batch


@pytest.fixture(scope="module")
def cells() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture
def loaders(cells: dict[str, Any]) -> Any:
    text = cells["read_corpus"](corpus="verdict").texts[0]
    return cells["make_loaders"](text, cells["GPT_CONFIG_124M"])


def test_the_loaders_are_the_books(loaders: Any) -> None:
    assert [len(loader) for loader in loaders] == [9, 1]


def test_the_highest_gradient_is_the_books_before_and_after_clipping(
    cells: dict[str, Any], loaders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = torch.nn.ParameterList([torch.zeros(1)])  # any model does, as long as it draws nothing here
    for _ in range(2):
        _, batch = cells["visit_rates"](idle, loaders[0], 15, lambda _step: 1e-4)
    cells["clip_gradients"](cells["GPT_CONFIG_124M"], batch, torch.device("cpu"))
    said = capsys.readouterr().out
    assert "before clipping: 0.0411" in said
    assert "after clipping: 0.0185" in said


def test_the_losses_are_the_books(cells: dict[str, Any], loaders: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train_loader, val_loader = loaders
    with pytest.raises(EnoughError):
        cells["train"](cells["GPT_CONFIG_124M"], Stops(train_loader), val_loader, torch.device("cpu"), 15)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Ep")]
    expected = [f"{start}Train loss {train:.3f}, Val loss {val:.3f}" for start, train, val in ROWS]
    assert rows == expected
