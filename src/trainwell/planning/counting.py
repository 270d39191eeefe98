"""From durations to whole steps, with one batch plan for all of them; the one place that rounds.

Knows the configuration and how large steps are, and no schedule.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from trainwell.config.tree import RunConfig
from trainwell.config.values import Duration
from trainwell.optim import dialects
from trainwell.optim.batch_plan import BatchPlan


@dataclass(frozen=True)
class Lengths:
    """Every duration of the configuration in steps."""

    num_steps: int
    horizon: int
    warmup: int
    laid_out: tuple[int, int]
    """Warmup and horizon in the unit of the schedule's formula: steps, or tokens for a dialect that counts those."""
    decay_steps: int
    clip_from: int
    eval_every: int | None
    sample_every: int | None
    save_every: int | None
    keep_every: int | None


@dataclass
class Counter:
    """Turns durations into steps, and keeps the keys of those that cannot be."""

    batch: BatchPlan
    num_windows: int
    seconds_per_step: float | None
    """Of a step with a full batch; None where nothing was timed."""
    uncounted: list[str] = field(default_factory=list)
    untimed: bool = False

    def steps(
        self, key: str, length: Duration, *, of: int = 0, epochs: Callable[[Fraction], int], least: int = 1
    ) -> int:
        """Give `length` in whole steps: per cents of `of`, epochs rounded by `epochs`; less than `least` only for 0."""
        exact = self._exact(key, length, of)
        rounded = epochs(exact) if length.unit == "epochs" else math.floor(exact)
        return max(least, rounded) if length.amount else 0

    def _exact(self, key: str, length: Duration, of: int) -> Fraction:
        match length.unit:
            case "steps":
                return length.amount
            case "tokens":
                return self.batch.position(length.amount / self.batch.seq_len)
            case "%":
                return length.amount / 100 * of
            case "epochs":
                if not self.num_windows:
                    self.uncounted.append(f"{key}: {length}")
                return self.batch.position(length.amount * self.num_windows)
            case "minutes":
                self.untimed = self.seconds_per_step is None
                full_batches = length.amount * 60 / Fraction(repr(self.seconds_per_step or 1))
                return self.batch.position(full_batches * self.batch.batch_size)

    def tokens(self, length: Duration | None, steps: int) -> int:
        """Give `length`, which came to `steps`, in tokens: exact where it names them, else those before that step."""
        if length is not None and length.unit == "tokens":
            return int(length.amount)
        return self.batch.tokens_before(steps)

    def begins_at(self, tokens: int) -> int:
        """The first step that begins with so many tokens before it."""
        return math.ceil(self.batch.position(Fraction(tokens, self.batch.seq_len)))


def uncounted(lengths: Sequence[str], task: str) -> list[str]:
    """Say that lengths in epochs, each "key: length", need the text; one line for all of them, or none."""
    if not lengths:
        return []
    first, others = lengths[0], [length.partition(":")[0] for length in lengths[1:]]
    too = f" (and so {', '.join(others)})" if others else ""
    text = "the text, which is not at hand; name another with data.path or data.corpus"
    examples = "its examples; give them with data.path FILE"
    return [
        f"{first}{too} cannot be counted without {text if task == 'pretrain' else examples}, or give steps or tokens"
    ]


def count_lengths(config: RunConfig, count: Counter) -> Lengths:
    """Count every duration of the configuration; what cannot be counted is in `count.uncounted`."""
    num_steps = count.steps("duration", config.duration, epochs=math.ceil)
    plan = config.schedule
    horizon = num_steps
    if plan.horizon is not None:
        horizon = count.steps("schedule.horizon", plan.horizon, of=num_steps, epochs=math.ceil)
    least = 0 if plan.warmup.unit == "%" else 1  # a tenth of five steps is no warmup
    warmup = count.steps("schedule.warmup", plan.warmup, of=horizon, epochs=nearest, least=least)
    laid_out = (warmup, horizon - plan.reach_min)
    if plan.dialect in dialects.IN_TOKENS:
        warmup, horizon, laid_out = _in_tokens(config, count, warmup, horizon)
    decay_steps = 0
    if (plan.decay == "wsd" and plan.dialect is None) or plan.dialect in dialects.TAKE_DECAY_STEPS:
        length = plan.decay_steps or (Duration.parse("20%") if plan.dialect is None else None)
        decay_steps = 0 if length is None else count.steps("schedule.decay_steps", length, of=horizon, epochs=nearest)
    elif plan.dialect in dialects.OWN_DECAY:
        decay_steps = min(dialects.OWN_DECAY[plan.dialect](laid_out[1]), horizon - warmup)
    clip_from = warmup
    if isinstance(config.optim.clip_from, Duration):
        clip_from = count.steps("optim.clip_from", config.optim.clip_from, of=num_steps, epochs=nearest)

    def every(key: str, length: Duration | None) -> int | None:
        return None if length is None else count.steps(key, length, of=num_steps, epochs=nearest)

    return Lengths(
        num_steps=num_steps,
        horizon=horizon,
        warmup=warmup,
        laid_out=laid_out,
        decay_steps=decay_steps,
        clip_from=clip_from,
        eval_every=every("eval.every", config.eval.every),
        sample_every=every("sample.every", config.sample.every),
        save_every=every("checkpoint.every", config.checkpoint.every),
        keep_every=every("checkpoint.keep_every", config.checkpoint.keep_every),
    )


def _in_tokens(config: RunConfig, count: Counter, warmup: int, horizon: int) -> tuple[int, int, tuple[int, int]]:
    """Warmup and horizon of a schedule over tokens: the steps that begin in them, and both in tokens."""
    plan = config.schedule
    tokens = count.tokens(plan.horizon, horizon)
    share = plan.warmup.amount / 100 if plan.warmup.unit == "%" else None
    rise = count.tokens(plan.warmup, warmup) if share is None else math.floor(share * tokens)
    steps = count.begins_at(tokens)
    last = count.batch.tokens_before(steps - 1) if plan.reach_min else tokens
    return count.begins_at(rise), steps, (rise, last)


def nearest(value: Fraction) -> int:
    """Round to the nearest whole number, halves up."""
    return math.floor(value + Fraction(1, 2))
