"""A plan in words and numbers: the schedule in a line, its joints in a table, one step with its formula.

Knows the plan only, and how rates are written; how it looks on a screen is the business of `report`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from trainwell.optim import dialects
from trainwell.planning.resolve import Plan
from trainwell.runs.console import short_count

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
    for name, move in plan.schedules.items():
        if name != "lr":
            line += f"; {name.replace('_', ' ')} {move(0):g} to {move(plan.horizon - 1):g}"
    if plan.num_steps < plan.horizon:
        line += f"; this run ends at step {last} with {rate(plan.lr(last))}"
    return line


def skip_lines(plan: Plan) -> list[str]:
    """Say what the data leaves out: "200 batches from step 1,200 on are left out: 6,400 windows"."""
    batch = plan.batch
    return [
        f"{f'{count:,} batches' if count > 1 else 'one batch'} from step {at:,} on "
        f"{'are' if count > 1 else 'is'} left out: "
        f"{batch.examples_before(at + count) - batch.examples_before(at):,} {plan.rows}"
        for at, count in batch.skips
    ]


def joints(plan: Plan) -> list[Joint]:
    """Give the steps worth a look, in order: start, peak, full batch, middle of the decay, end of the horizon, last."""
    last = plan.num_steps - 1
    peak = max(range(max(0, plan.warmup - 1), plan.warmup + 1), key=plan.rate)  # dialects have it on either
    falls_from = plan.horizon - plan.decay_steps if plan.decay_steps else peak
    middle = (falls_from + plan.horizon) // 2
    if plan.config.schedule.dialect in dialects.IN_TOKENS:
        middle = int(plan.batch.position(Fraction(sum(plan.laid_out), 2 * plan.seq_len)))
    named = {0: "start"}
    if plan.warmup:
        named[peak] = "peak" if plan.lr is plan.rate else "end of the warmup"
    if plan.decay_steps:
        named[falls_from] = "decay starts"
    named.setdefault(middle, "middle" if plan.rate(middle) == plan.config.optim.lr else "middle of the decay")
    if plan.batch.ramp_steps:
        named.setdefault(plan.batch.ramp_steps, "full batch")
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

    P is the peak, I the initial rate, m the minimum, s the step, W the warmup, T the horizon, D the final decay; n are
    the tokens before the step, and beside them W and T are tokens too. A rate that grows with the batch has the share
    b/B of the full batch under a root, in tokens before rounding.
    """
    config, peak = plan.config.schedule, plan.config.optim.lr
    warmup, horizon = plan.laid_out
    formula = _formula(plan, step)
    numbers = {
        "P": rate(peak),
        "I": rate(config.initial_lr.of(peak) if config.initial_lr else 0),
        "m": rate(config.min_lr.of(peak)),
        "s": str(step),
        "n": str(plan.batch.tokens_before(step)),
        "W": str(warmup),
        "T": str(horizon),
        "D": str(plan.decay_steps or horizon - warmup),
    }
    filled = re.sub(r"\b[PImsnWTD]\b", lambda match: numbers[match[0]], formula)
    ramp = plan.batch.ramp
    if ramp is not None and plan.lr is not plan.rate and step < ramp.num_steps:
        share = f"sqrt({float(ramp.size(ramp.before(step))):.0f}/{ramp.full})"
        formula, filled = f"({formula}) x sqrt(b/B)", f"({filled}) x {share}"
    value = rate(plan.lr(step))
    place = f" (past the horizon of {plan.horizon} steps)" if step >= plan.horizon else ""
    return f"{formula} = {value}{place}" if filled == value else f"{formula} = {filled} = {value}{place}"


def explain_batch(plan: Plan, step: int) -> str:
    """Write why a step takes so many sequences: in a ramp, its formula in tokens with its numbers, and the rounding.

    B0 is the first batch, B the full one, R the length of the climb, n the tokens before the step, K the stages.
    """
    size, ramp, seq_len = plan.batch.size(step), plan.batch.ramp, plan.seq_len
    if ramp is None:
        return f"every step takes {size:,} sequences"
    if step >= plan.batch.ramp_steps:
        return f"{size:,} sequences: the climb ended at step {plan.batch.ramp_steps:,}"
    exact = ramp.before(step)
    share = "n/R" if ramp.stages is None else "floor(K x n/R)/K"
    numbers = {"n": f"{float(exact):.0f}", "R": str(ramp.over), "K": str(ramp.stages)}
    filled = re.sub(r"\b[nRK]\b", lambda match: numbers[match[0]], share)
    return (
        f"B0 + (B - B0) x {share} = {ramp.start} + ({ramp.full} - {ramp.start}) x {filled} = "
        f"{float(ramp.size(exact)):.0f} tokens, in whole {plan.batch.multiple_of} x {seq_len}, the rounding carried: "
        f"{size * seq_len}"
    )


def batch_line(plan: Plan) -> str:
    """Say what a step takes: "32,768 tokens, climbing to 524,288 over the first 4B tokens (22,565 steps)"."""
    full, ramp = plan.batch.batch_size * plan.seq_len, plan.batch.ramp
    if ramp is None and plan.config.task != "pretrain":
        return f"{plan.batch.batch_size:,} rows of up to {plan.seq_len:,} tokens"
    if ramp is None:
        return f"{plan.batch.batch_size:,} x {plan.seq_len:,} = {full:,} tokens"
    how = "" if ramp.stages is None else f" in {ramp.stages} stages"
    scaled = ", the rate growing with its square root" if plan.lr is not plan.rate else ""
    return (
        f"{ramp.start:,} tokens, climbing to {full:,}{how} over the first {short_count(ramp.over)} tokens "
        f"({plan.batch.ramp_steps:,} steps){scaled}"
    )


def _formula(plan: Plan, step: int) -> str:
    config, value = plan.config.schedule, plan.rate(step)
    peak, minimum = plan.config.optim.lr, config.min_lr.of(plan.config.optim.lr)
    if step >= plan.horizon and value == minimum:
        return "m"
    if step >= plan.warmup and value == peak:
        return "P"
    if config.dialect == "hf-inverse-sqrt" and not plan.warmup:
        return "P x sqrt(10000/(s + 10000))"
    if config.dialect is not None:
        return dialects.FORMULAS[config.dialect][step >= plan.warmup]
    if step < plan.warmup:
        return _RISES[config.warmup_shape if config.initial_lr else "plain"]
    if config.decay == "inverse-sqrt" and value == minimum:
        return "m"
    return _FALLS[config.decay] if plan.warmup else _FALLS[config.decay].replace("(W/", "(1/")


def _fall_in_words(plan: Plan) -> str:
    config, end = plan.config.schedule, plan.horizon - 1
    reached = f"to {rate(plan.lr(end))} at step {end}"
    if config.dialect in dialects.NO_END and plan.lr(end) == plan.config.optim.lr:
        return "then constant"
    if config.dialect is not None:
        stays = f"constant up to step {plan.horizon - plan.decay_steps}, " if plan.decay_steps else ""
        shape = "cosine" if "cos(" in dialects.FORMULAS[config.dialect][1] else "then"
        return f"{stays}{shape} {reached}"
    if config.decay == "constant":
        return "then constant"
    if config.decay == "wsd":
        return f"constant up to step {plan.horizon - plan.decay_steps}, linear {reached}"
    return f"{_SHAPES[config.decay]} {reached}"
