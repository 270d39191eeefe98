"""How a picture looks: its size, its colours, its axes, and how it becomes a file.

Knows matplotlib and numbers, no run and no plan. matplotlib is imported when a picture is drawn; no display is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainwell.errors import ConfigError, StorageError
from trainwell.runs.console import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey.
TRAIN, VAL, MARK, SPIKE, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333", "#B8B8B8"
ARMS = (
    (TRAIN, "solid"), (VAL, "dashed"), (MARK, "solid"), (SPIKE, "dashed"), (INK, "dotted"),
    (TRAIN, "dotdash"), (VAL, "dotted"), (MARK, "dotdash"),
)  # fmt: skip
"""How to tell things apart that are drawn in one chart: by colour, and by the line as well."""
FAINT = "#555555"
_LEFT, _WIDTH, _BOTTOM, _TOP, _GAP = 0.1, 0.87, 0.55, 0.85, 0.24
"""The frame: shares of the width, then inches."""


def figure_of(title: str, what: str, end: int, heights: Sequence[float] = (3.6,)) -> tuple[Figure, list[Axes]]:
    """A picture of panels one below another over the same steps 0 to `end`, each as high as `heights` says, in inches.

    The layout is fixed, since working one out takes a second.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = _BOTTOM + sum(heights) + _GAP * (len(heights) - 1) + _TOP
    figure = Figure(figsize=(9, tall), dpi=150)
    FigureCanvasAgg(figure)
    panels, top = list[Any](), tall - _TOP
    for height in heights:
        panels.append(figure.add_axes((_LEFT, (top - height) / tall, _WIDTH, height / tall)))
        top -= height + _GAP
    for axes in panels:
        _style(axes, end)
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[0].set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=12)
    panels[0].set_title(what, loc="right", fontsize=11, color="#666666", pad=12)
    panels[-1].set_xlabel("step", color=INK)
    return figure, panels


def save_as(figure: Figure, files: Mapping[str, Path | None]) -> None:
    """Write a picture as each kind, `png` or `svg`, that a file is named for."""
    for kind, path in files.items():
        if path is not None:
            save(figure, path, kind)


def save(figure: Figure, path: Path, kind: str) -> None:
    """Write a picture as `png` or `svg`, the same bytes for the same picture; StorageError when that fails.

    The text of an SVG stays text, which can be searched and read aloud.
    """
    import matplotlib

    if path.suffix.lower().lstrip(".") in {"png", "svg", "pdf", "jpg", "jpeg"} - {kind}:
        raise ConfigError(f"--{kind} {path}: the picture would be {kind.upper()}; name a file that ends in .{kind}")
    settings: dict[Any, str] = {"svg.hashsalt": "trainwell", "svg.fonttype": "none"}
    try:
        with matplotlib.rc_context(settings):  # these two can be said nowhere else
            figure.savefig(path, format=kind, metadata={"Date": None, "Creator": None} if kind == "svg" else None)
    except OSError as error:
        raise StorageError(
            f"the picture cannot be written to {path}: {error.strerror}; name a file in a folder that exists"
        ) from None


def label(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    curve: tuple[Sequence[float], Sequence[float]],
    *,
    below_legend: bool = False,
) -> None:
    """A dot at each point and its words beside it, where they cover neither the curve nor other words.

    The limits of both axes must be set before. Where there is no such place, words lie on the curve.
    """
    to_points = _in_points(axes)
    line = _dense(to_points(np.array(curve, dtype=np.float64).T))
    width, height = _size(axes)
    taken = [(width - 110, height - 40, 110.0, 40.0)] if below_legend else []
    for x, y, said in points:
        axes.plot([x], [y], "o", color=INK, ms=4.5, zorder=4)
        at = to_points(np.array([[x, y]]))[0]
        size = (5.1 * max(map(len, said.split("\n"))), 12.5 * (said.count("\n") + 1))
        boxes = [(at[0] + dx, at[1] + dy, *size) for dx, dy in _sides(*size)]
        free = [box for box in boxes if _is_free(box, at, line, taken, (width, height))]
        free += [box for box in boxes if _is_free(box, at, line[:0], taken, (width, height))] + boxes[:1]
        taken.append(free[0])
        line = np.concatenate([line, _leader(free[0], at)])
        start = (_leader(free[0], at)[0] - free[0][:2]) / size
        axes.annotate(
            said,
            (x, y),
            xytext=(free[0][0] - at[0], free[0][1] - at[1]),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            linespacing=1.3,
            zorder=5,
            arrowprops={
                "arrowstyle": "-",
                "color": PALE,
                "lw": 0.8,
                "shrinkA": 0,
                "shrinkB": 3,
                "relpos": tuple(start),
            },
        )


Box = tuple[float, float, float, float]
"""Left, bottom, width, height, in points."""


def _size(axes: Axes) -> tuple[float, float]:
    """Width and height of a panel in points."""
    figure, place = axes.get_figure(root=True), axes.get_position()
    assert figure is not None, "every panel is made in a figure"
    inches = figure.get_size_inches()
    return 72 * float(inches[0]) * place.width, 72 * float(inches[1]) * place.height


def _in_points(axes: Axes) -> Callable[[Any], Any]:
    """From data, shape (n, 2), to points from the lower left of the panel."""
    (left, right), (low, high), size = axes.get_xlim(), axes.get_ylim(), _size(axes)
    return lambda data: (data - [left, low]) / [right - left, high - low] * size


def _dense(line: Any) -> Any:
    """The same line with nine more points between any two, so that a steep one has no gaps."""
    if len(line) < 2:
        return line
    at = np.linspace(0, len(line) - 1, 10 * (len(line) - 1) + 1)
    return np.stack([np.interp(at, np.arange(len(line)), line[:, column]) for column in (0, 1)], axis=1)


def _sides(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where words of this size may begin as seen from their dot, nearest first."""
    for away in (7, 22, 48, 76, 110, 150):
        for across in (9, -9 - width, 30, -30 - width, -width, -0.7 * width):
            yield from ((across, away), (across, -away - height))


def _leader(box: Box, at: Any) -> Any:
    """The line from words to their dot, from the nearest place of their frame; twenty points, shape (20, 2)."""
    left, bottom, width, height = box
    start = np.clip(at, [left, bottom], [left + width, bottom + height])
    return np.linspace(start, at, 20)


def _is_free(box: Box, at: Any, line: Any, taken: Sequence[Box], panel: tuple[float, float]) -> bool:
    """Whether a box lies in the panel, off the line and other boxes, and the way to its dot through none of these."""
    left, bottom, width, height = box
    if left < 2 or bottom < 2 or left + width > panel[0] or bottom + height > panel[1]:
        return False
    way = _leader(box, at)
    if any(_inside(way, other, 1).any() for other in taken):
        return False
    apart = all(
        left > other[0] + other[2]
        or other[0] > left + width
        or bottom > other[1] + other[3]
        or other[1] > bottom + height
        for other in taken
    )
    return apart and not bool(_inside(line, box, 3).any())


def _inside(points: Any, box: Box, air: float) -> Any:
    """Which of the points, shape (n, 2), lie in a box with some air around it."""
    left, bottom, width, height = box
    low, high = [left - air, bottom - air], [left + width + air, bottom + height + air]
    return ((points > low) & (points < high)).all(axis=1)


def legend(axes: Axes, where: Literal["upper right", "upper left"] = "upper right") -> None:
    """Over a white ground, so that marks of epochs do not run through the words."""
    axes.legend(loc=where, facecolor="white", edgecolor="none", framealpha=1, labelcolor=INK, fontsize=10)


def tokens_on_top(axes: Axes, steps: Sequence[float], tokens: Sequence[float], said: str) -> None:
    """A second x axis: the tokens at those steps, in between by lines, and past the last at the mean rate so far."""
    slope = tokens[-1] / steps[-1]

    def to_tokens(at: Any) -> Any:
        return np.where(np.asarray(at) > steps[-1], np.asarray(at) * slope, np.interp(at, steps, tokens))

    def to_steps(at: Any) -> Any:
        return np.where(np.asarray(at) > tokens[-1], np.asarray(at) / slope, np.interp(at, tokens, steps))

    top = axes.secondary_xaxis("top", functions=(to_tokens, to_steps))
    top.set_xlabel(said, fontsize=9, color=FAINT)
    top.xaxis.set_major_formatter(lambda value, _: short_count(value))
    top.tick_params(colors=FAINT, labelsize=9)
    top.spines["top"].set_color(PALE)


def _style(axes: Axes, end: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.01 * end, 1.01 * end)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
