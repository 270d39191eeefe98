"""A plan in words and numbers: the schedule in a line, its joints in a table, one step with its formula.

Knows the plan only, and how rates are written; how it looks on a screen is the business of `report`.
"""

import re
from dataclasses import dataclass

from trainwell.optim import dialects
from trainwell.planning.resolve import Plan

_RISES = {
    "plain": "P x (s + 1)/W",
    "linear": "I + (P - I) x s/(W - 1)",
    "exponential": "I x (P/I)^(s/(W - 1))",
}
_FALLS = {
    "cosine": "m + (P - m) x (1 + cos(pi x (s + 1 - W)/(T - W)))/2",
    "linear": "m + (P - m) x (T - s - 1)/(T - W)",
    "inverse-sqrt": "P x sqrt(W/(s + 1))",
    "wsd": "m + (P - m) x (T - s - 1)/D",
}
_SHAPES = {"cosine": "cosine", "linear": "linear", "inverse-sqrt": "inverse square root"}


@dataclass(frozen=True)
class Joint:
    """A step at which the schedule turns, and what is true just before it is taken."""

    what: str
    """start, peak, middle of the decay, ..."""
    step: int
    tokens: int
    """Tokens consumed before it."""
    epoch: float | None
    """Passes over the data finished before it; None when the data is not known."""
    lr: float
    batch: int
    """Sequences it takes."""


def rate(value: float) -> str:
    """Write a learning rate as people do: 1e-3, 6e-4, 2.5e-5, 0."""
    if value == 0:
        return "0"
    digits, exponent = f"{value:.3e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def schedule_line(plan: Plan) -> str:
    """Say the schedule in a line: "linear warmup 120 steps to 3e-3, cosine to 3e-4 at step 1199"."""
    config, peak, last = plan.config.schedule, rate(plan.config.optim.lr), plan.num_steps - 1
    rise = f"no warmup, peak {peak}"
    if plan.warmup:
        start = "" if config.initial_lr is None else f"from {rate(plan.lr(0))} "
        rise = f"{config.warmup_shape} warmup {plan.warmup} steps {start}to {peak}"
    line = f"{rise}, {_fall_in_words(plan)}"
    if config.dialect is not None:
        line += f" (dialect {config.dialect})"
    if plan.num_steps < plan.horizon:
        line += f"; this run ends at step {last} with {rate(plan.lr(last))}"
    return line


def joints(plan: Plan) -> list[Joint]:
    """Give the steps worth a look, in order: start, peak, middle of the decay, end of the horizon, last of the run."""
    last = plan.num_steps - 1
    peak = max(range(max(0, plan.warmup - 1), plan.warmup + 1), key=plan.lr)  # dialects have it on either
    falls_from = plan.horizon - plan.decay_steps if plan.decay_steps else peak
    named = {0: "start"}
    if plan.warmup:
        named[peak] = "peak"
    if plan.decay_steps:
        named[falls_from] = "decay starts"
    named.setdefault((falls_from + plan.horizon) // 2, "middle of the decay")
    named[plan.horizon - 1] = "end of the horizon"
    named = {step: what for step, what in named.items() if step < last}
    named[last] = "last step"
    return [
        Joint(
            what=named[step],
            step=step,
            tokens=plan.batch.tokens_before(step),
            epoch=plan.epoch(step),
            lr=plan.lr(step),
            batch=plan.batch.size(step),
        )
        for step in sorted(named)
    ]


def explain(plan: Plan, step: int) -> str:
    """Write the formula of a step's rate, the same with its numbers, and what it comes to.

    P is the peak, I the initial rate, m the minimum, s the step, W the warmup, T the horizon, D the final decay of wsd.
    """
    config, peak = plan.config.schedule, plan.config.optim.lr
    formula = _formula(plan, step)
    numbers = {
        "P": rate(peak),
        "I": rate(config.initial_lr.of(peak) if config.initial_lr else 0),
        "m": rate(config.min_lr.of(peak)),
        "s": str(step),
        "W": str(plan.warmup),
        "T": str(plan.horizon),
        "D": str(plan.decay_steps),
    }
    filled = re.sub(r"\b[PImsWTD]\b", lambda match: numbers[match[0]], formula)
    value = rate(plan.lr(step))
    place = f" (past the horizon of {plan.horizon} steps)" if step >= plan.horizon else ""
    return f"{formula} = {value}{place}" if filled == value else f"{formula} = {filled} = {value}{place}"


def _formula(plan: Plan, step: int) -> str:
    config = plan.config.schedule
    if step >= plan.horizon and plan.lr(step) == config.min_lr.of(plan.config.optim.lr):
        return "m"
    if step >= plan.warmup and plan.lr(step) == plan.config.optim.lr:
        return "P"
    if config.dialect is not None:
        return dialects.FORMULAS[config.dialect][step >= plan.warmup]
    if step < plan.warmup:
        return _RISES[config.warmup_shape if config.initial_lr else "plain"]
    if config.decay == "inverse-sqrt" and plan.lr(step) == config.min_lr.of(plan.config.optim.lr):
        return "m"
    return _FALLS[config.decay] if plan.warmup else _FALLS[config.decay].replace("(W/", "(1/")


def _fall_in_words(plan: Plan) -> str:
    config, end = plan.config.schedule, plan.horizon - 1
    reached = f"to {rate(plan.lr(end))} at step {end}"
    if config.dialect is not None:
        shape = "cosine" if "cos(" in dialects.FORMULAS[config.dialect][1] else "then"
        return f"{shape} {reached}"
    if config.decay == "constant":
        return "then constant"
    if config.decay == "wsd":
        return f"constant up to step {plan.horizon - plan.decay_steps}, linear {reached}"
    return f"{_SHAPES[config.decay]} {reached}"
