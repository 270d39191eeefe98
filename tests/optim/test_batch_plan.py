"""The batch plan counts every sequence once, and a ramp is the exact one to a quantum."""

import decimal
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.optim.batch_plan import BatchPlan, Ramp

GPT3 = Ramp(start=32_768, full=524_288, over=4_000_000_000)


@st.composite
def ramps(draw: st.DrawFn) -> BatchPlan:
    """A plan with a climb from `first` quanta to more, in some thousand steps at most."""
    seq_len, quantum = draw(st.integers(1, 64)), draw(st.integers(1, 8))
    first = draw(st.integers(1, 8))
    full = draw(st.integers(first + 1, 40))
    start = (first * quantum + draw(st.integers(0, quantum - 1))) * seq_len  # its start need not be a whole quantum
    over = draw(st.integers(1, 500 * full * quantum * seq_len))
    stages = draw(st.none() | st.integers(1, 9))
    if start >= full * quantum * seq_len:
        start = first * quantum * seq_len
    return BatchPlan(full * quantum, seq_len, Ramp(start, full * quantum * seq_len, over, stages), quantum)


constant = st.builds(BatchPlan, batch_size=st.integers(1, 4096), seq_len=st.integers(1, 8192))


@given(constant | ramps(), st.integers(0, 10**6) | st.integers(0, 2000))
def test_a_step_begins_where_the_one_before_it_ended(plan: BatchPlan, step: int) -> None:
    assert plan.examples_before(step + 1) == plan.examples_before(step) + plan.size(step)
    assert plan.tokens_before(step + 1) == plan.tokens_before(step) + plan.size(step) * plan.seq_len


def test_nothing_comes_before_the_first_step() -> None:
    plan = BatchPlan(batch_size=512, seq_len=1024)
    assert (plan.examples_before(0), plan.tokens_before(0)) == (0, 0)
    assert plan.tokens_before(19073) == 9_999_745_024


def test_gpt3s_ramp_has_the_sizes_that_its_formula_gives() -> None:
    assert [GPT3.size(n) for n in (0, 10**9, 2 * 10**9, 4 * 10**9, 10**10)] == [
        32_768,
        155_648,
        278_528,
        524_288,
        524_288,
    ]
    assert GPT3.num_steps == 22_565  # ln 16 / ln(1 + 491,520/4e9) is 22,564.8


@given(ramps())
def test_a_ramp_adds_up_its_own_sizes(plan: BatchPlan) -> None:
    assert plan.ramp is not None
    tokens = Fraction(0)
    for step in range(min(plan.ramp_steps + 3, 300)):
        assert abs(plan.ramp.before(step) - tokens) < Fraction(1, 10**30) * (1 + tokens)
        assert (tokens >= plan.ramp.over) == (step >= plan.ramp_steps)
        tokens += plan.ramp.size(tokens)


@given(ramps())
def test_tokens_are_the_exact_ramps_within_one_quantum_and_batches_are_whole_quanta(plan: BatchPlan) -> None:
    assert plan.ramp is not None
    for step in range(min(plan.ramp_steps + 3, 300)):
        off = plan.tokens_before(step) - plan.ramp.before(step)
        assert abs(off) <= plan.multiple_of * plan.seq_len / 2
        assert plan.size(step) % plan.multiple_of == 0
        assert 0 < plan.size(step) <= plan.batch_size
        assert abs(plan.size(step) - plan.exact_size(step)) <= plan.multiple_of
    assert plan.size(plan.ramp_steps) == plan.batch_size


def test_the_whole_ramp_of_gpt3_stays_within_a_quantum_of_adding_it_up_step_by_step() -> None:
    plan, tokens = BatchPlan(256, 2048, GPT3, 16), 0.0
    for step in range(GPT3.num_steps + 10):
        if step % 101 == 0:
            assert abs(plan.tokens_before(step) - tokens) <= 16 * 2048
        tokens += min(524_288, 32_768 + 491_520 * tokens / 4e9)


def test_stages_are_megatrons_equal_increments() -> None:
    plan = BatchPlan(8, 10, Ramp(start=20, full=80, over=600, stages=3))
    sizes = [plan.size(step) for step in range(plan.ramp_steps + 2)]
    assert sizes == [2] * 10 + [4] * 5 + [6] * 4 + [8] * 2  # 200 tokens a stage; the last stage ends in a whole step
    assert plan.ramp_steps == 19


@given(constant | ramps(), st.integers(0, 3000))
def test_a_position_is_the_step_at_which_so_much_is_consumed(plan: BatchPlan, step: int) -> None:
    assert plan.position(plan.examples_before(step)) == step
    inside = plan.examples_before(step) + Fraction(plan.size(step), 3)
    assert plan.position(inside) == step + Fraction(1, 3)


skips = st.dictionaries(st.integers(0, 60), st.integers(1, 40), max_size=4).map(
    lambda found: tuple(sorted(found.items()))
)


@given(constant | ramps(), skips)
def test_no_example_is_read_twice_and_none_is_passed_over_but_by_a_skip(
    plan: BatchPlan, left_out: tuple[tuple[int, int], ...]
) -> None:
    skipping, passed, end = replace(plan, skips=left_out), dict(left_out), 0
    for step in range(110):
        batches = passed.get(step, 0)
        gap = plan.examples_before(step + batches) - plan.examples_before(step)
        assert skipping.first_example(step) == end + gap
        end = skipping.first_example(step) + skipping.size(step)


@given(constant | ramps(), skips, st.integers(1, 40))
def test_a_branch_goes_on_where_its_parent_would_have_been_after_the_skipped_steps(
    plan: BatchPlan, left_out: tuple[tuple[int, int], ...], batches: int
) -> None:
    parent = replace(plan, skips=left_out)
    step = 1 + max((at for at, _ in left_out), default=0)
    branch = replace(plan, skips=(*left_out, (step, batches)))
    assert branch.first_example(step - 1) == parent.first_example(step - 1)
    assert branch.first_example(step) == parent.first_example(step + batches)
    if plan.ramp is None:
        for later in range(step, step + 50):
            assert branch.first_example(later) == parent.first_example(later + batches)


@given(constant | ramps(), skips, st.integers(0, 200))
def test_what_is_skipped_is_not_consumed(plan: BatchPlan, left_out: tuple[tuple[int, int], ...], step: int) -> None:
    skipping = replace(plan, skips=left_out)
    assert skipping.size(step) == plan.size(step)
    assert skipping.tokens_before(step) == plan.tokens_before(step)
    assert skipping.examples_before(step) == plan.examples_before(step)
    assert skipping.position(step) == plan.position(step)


def test_in_a_ramp_the_examples_of_the_skipped_steps_are_passed_over_which_are_fewer_than_of_full_batches() -> None:
    plan = BatchPlan(8, 10, Ramp(start=20, full=80, over=600, stages=3), skips=((9, 3),))
    assert [plan.first_example(step) for step in (8, 9, 10)] == [16, 18 + 2 + 4 + 4, 18 + 2 + 4 + 4 + 2]


def test_somebody_elses_decimal_precision_changes_nothing() -> None:
    plan = BatchPlan(256, 2048, GPT3, 16)
    exact = plan.tokens_before(12_345)
    with decimal.localcontext(prec=4):
        assert BatchPlan(256, 2048, Ramp(32_768, 524_288, 4_000_000_000), 16).tokens_before(12_345) == exact


@pytest.mark.parametrize(("start", "full", "over"), [(0, 8, 10), (8, 8, 10), (9, 8, 10), (4, 8, 0)])
def test_what_does_not_climb_is_refused(start: int, full: int, over: int) -> None:
    with pytest.raises(ValueError, match="does not climb"):
        Ramp(start, full, over)
