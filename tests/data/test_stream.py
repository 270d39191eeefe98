"""Arrays of ids as one: what is read is what their concatenation holds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data.stream import TokenStream

IDS = np.arange(60, dtype=np.uint16)
cuts = st.lists(st.integers(0, 60), max_size=6).map(lambda places: [0, *sorted(places), 60])


def cut(places: list[int]) -> TokenStream:
    return TokenStream([IDS[begin:end] for begin, end in pairwise(places)])


@given(cuts, st.integers(-70, 70), st.integers(-70, 70))
def test_a_stretch_is_that_of_the_whole(places: list[int], begin: int, end: int) -> None:
    assert cut(places)[begin:end].tolist() == IDS[begin:end].tolist()


@given(cuts, st.integers(-60, 59))
def test_an_id_is_that_of_the_whole(places: list[int], at: int) -> None:
    assert cut(places)[at] == IDS[at]


@given(cuts, st.lists(st.integers(0, 51), max_size=12))
def test_rows_may_lie_across_any_number_of_parts(places: list[int], starts: list[int]) -> None:
    found = cut(places).rows(np.array(starts, dtype=np.int64), 9)
    assert found.dtype == np.uint16
    assert found.tolist() == [IDS[start : start + 9].tolist() for start in starts]


def test_no_parts_are_an_empty_stream() -> None:
    assert len(TokenStream([])) == 0
    assert TokenStream([])[:].tolist() == []


def test_a_place_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        cut([0, 60])[60]


def test_ids_of_several_widths_are_read_in_the_widest() -> None:
    stream = TokenStream([np.array([1, 2], dtype=np.uint16), np.array([70_000], dtype=np.uint32)])
    assert stream.rows(np.array([0], dtype=np.int64), 3).tolist() == [[1, 2, 70_000]]
