"""What a stream of ids holds, against plain counting."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data.stream import TokenStream
from trainwell.data.survey import survey

END = 9


def stream(*ids: int) -> TokenStream:
    return TokenStream([np.array(ids, dtype=np.uint16)])


@given(st.lists(st.integers(0, END), min_size=1, max_size=60), st.integers(1, 20))
def test_documents_are_what_lies_between_ends(ids: list[int], block: int) -> None:
    seen = survey(stream(*ids), END, block=block)
    documents = "".join(map(str, ids)).split(str(END))
    assert seen.lengths.tolist() == [len(each) for each in documents if each]
    assert (seen.smallest, seen.largest, seen.num_used) == (min(ids), max(ids), len({*ids}))
    assert seen.num_tokens == len(ids)


def test_an_end_may_stand_before_a_document_or_behind_it() -> None:
    assert survey(stream(END, 1, 2, END, 3), END).lengths.tolist() == [2, 1]
    assert survey(stream(1, 2, END, 3, END), END).lengths.tolist() == [2, 1]


def test_without_an_end_there_is_one_document() -> None:
    assert survey(stream(1, END, 3), None).lengths.tolist() == [3]


def test_a_histogram_counts_every_document_once() -> None:
    found = survey(stream(*[1] * 5, END, *[1] * 4, END, 1, END, *[1] * 16), END)
    assert found.histogram() == [(1, 1, 1), (2, 3, 0), (4, 7, 2), (8, 15, 0), (16, 31, 1)]
    assert survey(stream(END), END).histogram() == []


def test_progress_ends_with_all() -> None:
    said = list[tuple[int, int]]()
    survey(stream(1, 2, 3), END, lambda done, total: said.append((done, total)))
    assert said == [(3, 3)]
