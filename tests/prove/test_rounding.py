"""Small pieces of the proofs to rounding: how a batch is cut unevenly, and which difference is named."""

import math

from hypothesis import given
from hypothesis import strategies as st

from trainwell.prove.rounding import Gap, uneven


@given(st.integers(2, 4096))
def test_a_batch_is_cut_so_that_a_rest_is_left_wherever_that_is_possible(rows: int) -> None:
    size = uneven(rows)
    assert size is not None
    assert 1 <= size < rows
    assert rows % size or rows == 2


def test_one_sequence_cannot_be_cut() -> None:
    assert uneven(1) is None


def test_the_first_difference_above_the_tolerance_is_named_and_the_largest_is_told() -> None:
    gap = Gap(1e-6).seen(1e-7, 0, "a").seen(1e-5, 1, "b").seen(math.nan, 2, "c")
    assert (gap.size, gap.step, gap.name) == (math.inf, 1, "b")
    found = gap.outcome("fp32", "two steps")
    assert (found.passed, found.level, found.detail) == (
        False,
        "rounding 1e-06 (fp32)",
        "two steps; largest difference inf",
    )
    assert Gap(1e-6).seen(1e-7, 0, "a").outcome("fp32", "").passed
