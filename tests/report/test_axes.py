"""The chart with its axes: it fits, it says what its lines are, and it can be told apart without colours."""

import io

import pytest
from rich.console import Console

from trainwell.report.axes import Chart
from trainwell.report.curve import Series

RISE = [(0.0, 0.0), (50.0, 1.0), (99.0, 2.0)]


def drawn(chart: Chart, width: int = 60, *, ascii: bool = False) -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if ascii else "utf-8")
    Console(file=stream, width=width).print(chart)
    stream.seek(0)
    return stream.read().splitlines()


def test_a_chart_has_a_heading_its_ends_and_the_first_middle_and_last_step() -> None:
    lines = drawn(Chart("rate", [Series(RISE)], 99, numbers=".1f"))
    assert lines[0] == "rate"
    assert [line.split()[0] for line in lines if "┤" in line] == ["2.0", "1.0", "0.0"]
    assert lines[-1].split() == ["0", "49", "99"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_chart_fits_the_terminal_and_is_no_wider_than_100(width: int) -> None:
    named = [Series(RISE, name="one"), Series(RISE, name="another", dashed=True)]
    assert max(map(len, drawn(Chart("a heading", named, 99, numbers=".1f"), width))) <= min(width, 100)


def test_names_stand_beside_the_heading_or_below_it_where_it_is_narrow() -> None:
    chart = Chart("learning rate over steps", [Series(RISE, name="recorded")], 99, numbers=".1f")
    assert drawn(chart, 80)[0] == "learning rate over steps   ⠒⠒⠒⠒ recorded"
    assert drawn(chart, 30)[:2] == ["learning rate over steps", "⠒⠒⠒⠒ recorded"]


def test_where_there_is_only_ascii_two_lines_have_two_characters() -> None:
    falling = [(0.0, 2.0), (99.0, 0.0)]
    lines = drawn(
        Chart("h", [Series(RISE, name="up"), Series(falling, name="down", dashed=True)], 99, numbers=".1f"), ascii=True
    )
    assert lines[0] == "h   ** up   oo down"
    assert {"*", "o"} <= set("".join(lines[1:]))


def test_a_logarithmic_axis_has_the_values_themselves() -> None:
    lines = drawn(Chart("loss", [Series([(0, 1.0), (9, 100.0)])], 9, numbers=".0f", log=True))
    assert [line.split()[0] for line in lines if "┤" in line] == ["100", "10", "1"]
