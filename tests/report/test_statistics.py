"""Better, worse or inside the noise: right about clear differences, and rarely fooled by equal groups."""

import random
from itertools import combinations
from math import inf, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainwell.report.statistics import LEVEL, difference, quantile

LOSSES = st.lists(st.floats(0.5, 5), min_size=2, max_size=7)


@pytest.mark.parametrize("free", [1, 2, 3, 4, 7, 8, 30, 199])
@pytest.mark.parametrize("share", [0.8, 0.975, 0.995])
def test_students_distribution_is_that_of_scipy(free: int, share: float) -> None:
    assert isclose(quantile(share, free), stats.t.ppf(share, free), rel_tol=1e-6)


def test_a_few_runs_get_students_interval() -> None:
    a, b = [1.40, 1.43, 1.41], [1.30, 1.36, 1.28]
    paired = difference(a, b, paired=True)
    expected = stats.ttest_rel(b, a).confidence_interval(LEVEL)
    assert paired.method == "student"
    assert paired.low == pytest.approx(expected.low)
    assert paired.high == pytest.approx(expected.high)
    apart = difference(a, b, paired=False)
    free = int(stats.ttest_ind(b, a, equal_var=False).df)  # whole degrees of freedom, on the safe side
    error = (stats.sem(a) ** 2 + stats.sem(b) ** 2) ** 0.5
    assert apart.high - apart.mean == pytest.approx(stats.t.ppf((1 + LEVEL) / 2, free) * error)


def test_one_run_each_decides_nothing() -> None:
    found = difference([1.0], [0.5], paired=False)
    assert (found.mean, found.low, found.high, found.decided, found.more) == (-0.5, -inf, inf, False, None)


def test_groups_far_apart_are_told_apart() -> None:
    for paired in (True, False):
        found = difference([1.418, 1.404, 1.426, 1.430, 1.407], [2.043, 2.024, 2.038, 2.011, 2.027], paired=paired)
        assert found.decided
        assert 0.56 < found.low < found.mean < found.high < 0.66
        assert found.method == "bootstrap"


@pytest.mark.parametrize("paired", [True, False])
def test_equal_groups_are_inside_the_noise_nearly_always(paired: bool) -> None:
    dice = random.Random(4)
    groups = [[dice.gauss(1.42, 0.01) for _ in range(10)] for _ in range(300)]
    fooled = sum(difference(each[:5], each[5:], paired=paired).decided for each in groups)
    assert fooled <= 9  # 3 expected of 300


def test_ten_seeds_of_the_demo_in_any_halves_are_inside_the_noise() -> None:
    losses = [1.41821, 1.40653, 1.40367, 1.42562, 1.43009, 1.40718, 1.42632, 1.42853, 1.42531, 1.40228]
    halves = [(left, [each for each in losses if each not in left]) for left in combinations(losses, 5)]
    inside = sum(not difference(left, right, paired=False).decided for left, right in halves)
    assert inside / len(halves) >= 0.95


def test_a_difference_within_the_noise_says_how_many_more_would_decide() -> None:
    few = difference([1.40, 1.44, 1.41, 1.45, 1.42], [1.39, 1.45, 1.40, 1.43, 1.42], paired=False)
    assert not few.decided
    assert few.more is not None
    assert few.more > 20
    nearly = difference([1.40, 1.44, 1.41, 1.45, 1.42], [1.38, 1.40, 1.40, 1.41, 1.39], paired=False)
    assert nearly.decided or (nearly.more is not None and nearly.more < few.more)


@given(LOSSES, LOSSES)
def test_the_other_way_round_it_is_the_same_with_the_other_sign(a: list[float], b: list[float]) -> None:
    one, other = difference(a, b, paired=False), difference(b, a, paired=False)
    assert one.mean == pytest.approx(-other.mean, abs=1e-12)
    assert one.low <= one.mean + 1e-12
    assert one.mean <= one.high + 1e-12
    if one.method == "student":
        assert one.low == pytest.approx(-other.high, abs=1e-9)


@given(LOSSES)
def test_a_group_is_no_better_than_itself(a: list[float]) -> None:
    assert not difference(a, a, paired=True).decided
    assert not difference(a, a, paired=False).decided
