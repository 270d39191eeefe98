"""Which steps are drawn: the ends, the turns, and few of all others."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.load import load
from trainwell.planning.resolve import resolve
from trainwell.report.course import batch_changes, course, grid, turns


@given(num_steps=st.integers(1, 10**9), count=st.integers(2, 500))
def test_a_grid_has_both_ends_rises_and_is_no_longer_than_asked(num_steps: int, count: int) -> None:
    steps = grid(num_steps, count)
    assert (steps[0], steps[-1]) == (0, num_steps - 1)
    assert len(steps) == min(num_steps, count)
    assert all(before < after for before, after in pairwise(steps))


def test_every_turn_is_there_with_its_neighbours() -> None:
    plan = resolve(load("demo", flags={"duration": 1000, "schedule.warmup": 100}))
    assert {0, 1, 98, 99, 100, 998, 999} <= set(turns(plan))
    assert all(0 <= step < 1000 for step in turns(plan))


def test_a_course_says_what_the_plan_says() -> None:
    plan = resolve(load("gpt3-125m"))
    for moment in course(plan, 50):
        assert moment.lr == plan.lr(moment.step)
        assert moment.tokens == plan.batch.tokens_before(moment.step)
        assert moment.batch_size == plan.batch.size(moment.step)
    assert len(course(plan, 50)) < 70


def test_a_batch_changes_in_a_ramp_only() -> None:
    assert batch_changes(resolve(load("gpt3-125m")))
    assert not batch_changes(resolve(load("demo")))
