"""The chart in characters."""

from hypothesis import given
from hypothesis import strategies as st

from trainwell.report.curve import Series, chart, y_range


def drawn(*series: Series, width: int = 8, height: int = 2, last: float = 15, ascii: bool = False) -> list[str]:
    return ["".join(cell.char for cell in row) for row in chart(series, width, height, x=(0, last), ascii=ascii)]


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    assert drawn(Series([(0, 0), (15, 7)])) == ["    ⣀⠤⠒⠉", "⣀⠤⠒⠉    "]


def test_a_flat_line_stands_in_the_middle() -> None:
    rows = drawn(Series([(0, 1), (15, 1)]), height=3)
    assert [row.strip() != "" for row in rows] == [False, True, False]


def test_marks_are_characters_and_lie_over_the_line() -> None:
    cells = chart([Series([(0, 0), (15, 7)]), Series([(0, 0), (15, 7)], "o")], 8, 2, x=(0, 15))
    assert cells[1][0].char == cells[0][7].char == "o"
    assert (cells[1][0].series, cells[1][1].series) == (1, 0)


def test_where_braille_cannot_be_written_there_are_stars() -> None:
    assert set("".join(drawn(Series([(0, 0), (15, 7)]), ascii=True))) == {" ", "*"}


def test_values_that_are_no_numbers_are_left_out() -> None:
    points = [(0.0, 0.0), (7.0, float("nan")), (8.0, float("inf")), (15.0, 7.0)]
    assert drawn(Series(points)) == drawn(Series([(0, 0), (15, 7)]))
    assert y_range([Series(points)]) == (0, 7)


POINTS = st.lists(st.tuples(st.floats(0, 100), st.floats(-1e9, 1e9)), max_size=20)


@given(points=POINTS, width=st.integers(1, 40), height=st.integers(1, 12), mark=st.sampled_from(["", "o"]))
def test_any_points_fit_the_frame(points: list[tuple[float, float]], width: int, height: int, mark: str) -> None:
    rows = drawn(Series(points, mark), width=width, height=height, last=100)
    assert [len(row) for row in rows] == [width] * height
    assert ("".join(rows).strip() != "") == bool(points)


def test_a_dashed_line_leaves_gaps_through_which_the_line_below_is_seen() -> None:
    line = [(0.0, 0.0), (79.0, 0.0)]
    both = [Series(line), Series(line, dashed=True)]
    row = chart(both, 40, 1, x=(0, 79))[0]
    assert {cell.series for cell in row} == {0, 1}
    assert "".join(cell.char for cell in chart(both, 8, 1, x=(0, 79), ascii=True)[0]) == "oo**oo**"


def test_a_dashed_line_straight_up_has_parts_that_are_drawn() -> None:
    rows = chart([Series([(4.0, 0.0), (4.0, 9.0)], dashed=True)], 5, 8, x=(0, 9))
    assert 0 < sum(cell.series == 0 for row in rows for cell in row) < 8
