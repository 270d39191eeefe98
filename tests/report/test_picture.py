"""Words in a picture: inside the frame, not on the curve, not on each other."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from trainwell.errors import StorageError
from trainwell.report.picture import figure_of, label, save


def test_panels_share_their_steps_and_only_the_last_names_them() -> None:
    figure, panels = figure_of("name", "what", 100, (3.6, 1.3))
    assert [axes.get_xlim() for axes in panels] == [(-1.0, 101.0)] * 2
    assert [axes.get_xlabel() for axes in panels] == ["", "step"]
    assert figure.get_size_inches().tolist() == pytest.approx([9, 0.55 + 3.6 + 0.24 + 1.3 + 0.85])


def test_words_cover_neither_each_other_nor_the_curve() -> None:
    figure, (axes,) = figure_of("name", "what", 100)
    steps, values = [0.0, 5.0, 50.0, 99.0], [0.0, 1.0, 0.5, 0.1]
    axes.plot(steps, values)
    axes.set_ylim(0, 1.2)
    label(
        axes, [(step, value, f"step {step}\nwords") for step, value in zip(steps, values, strict=True)], (steps, values)
    )
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # of the words alone, without their lines
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
    at = np.linspace(0, 99, 2000)
    curve = axes.transData.transform(np.stack([at, np.interp(at, steps, values)], axis=1))
    assert not any(box.contains(x, y) for box in boxes for x, y in curve)
    assert all(axes.get_window_extent().contains(*corner) for box in boxes for corner in box.corners())


def test_a_picture_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    figure, _ = figure_of("name", "what", 100)
    with pytest.raises(StorageError, match=r"cannot be written to .*gone"):
        save(figure, tmp_path / "gone" / "a.png", "png")
