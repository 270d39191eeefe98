"""PURE. Which steps of a plan are worth drawing, and what it does at them: a few hundred out of any number.

Knows plans, and no picture.
"""

from dataclasses import dataclass

from trainwell.planning.describe import joints
from trainwell.planning.resolve import Plan


@dataclass(frozen=True)
class Moment:
    """One step as planned; `tokens` are those before it, `batch_size` its sequences, `exact_size` before rounding."""

    step: int
    tokens: int
    lr: float
    batch_size: int
    exact_size: float


def grid(num_steps: int, count: int) -> list[int]:
    """At most `count` steps, spread evenly from the first of `num_steps` to the last; all of them where they fit."""
    if num_steps <= count:
        return list(range(num_steps))
    return [round(number * (num_steps - 1) / (count - 1)) for number in range(count)]


def turns(plan: Plan) -> list[int]:
    """The steps at which something changes, each with its neighbours, so that no line is drawn across a corner."""
    corners = {joint.step for joint in joints(plan)} | {plan.batch.ramp_steps}
    around = {corner + move for corner in corners for move in (-1, 0, 1)}
    return sorted(step for step in around if 0 <= step < plan.num_steps)


def course(plan: Plan, count: int = 400) -> list[Moment]:
    """The plan at `count` evenly spread steps and at its turns, in order: for a line through them."""
    steps = sorted({*grid(plan.num_steps, count), *turns(plan)})
    batch = plan.batch
    return [
        Moment(step, batch.tokens_before(step), plan.lr(step), batch.size(step), batch.exact_size(step))
        for step in steps
    ]


def batch_changes(plan: Plan) -> bool:
    """Whether two steps of the run take different numbers of sequences."""
    return plan.batch.ramp_steps > 0 and plan.batch.size(0) != plan.batch.size(plan.num_steps - 1)
