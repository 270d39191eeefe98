"""The batch plan counts every sequence once."""

from hypothesis import given
from hypothesis import strategies as st

from trainwell.optim.batch_plan import BatchPlan

plans = st.builds(
    BatchPlan, batch_size=st.integers(1, 4096), seq_len=st.integers(1, 8192), num_steps=st.integers(1, 10**6)
)


@given(plans, st.integers(0, 10**6))
def test_a_step_begins_where_the_one_before_it_ended(plan: BatchPlan, step: int) -> None:
    assert plan.examples_before(step + 1) == plan.examples_before(step) + plan.size(step)
    assert plan.tokens_before(step + 1) == plan.tokens_before(step) + plan.size(step) * plan.seq_len


def test_nothing_comes_before_the_first_step() -> None:
    plan = BatchPlan(batch_size=512, seq_len=1024, num_steps=19073)
    assert (plan.examples_before(0), plan.tokens_before(0)) == (0, 0)
    assert plan.tokens_before(plan.num_steps) == 9_999_745_024
