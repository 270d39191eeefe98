"""From a configuration and the size of its data to a plan: whole steps, one schedule, one batch plan.

Knows no torch, file or clock: the same configuration and the same counts always give the same plan. Every mistake that
needs counting to be seen is found here, all of them together, before any work starts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.config.values import Duration
from trainwell.errors import ConfigError
from trainwell.optim import dialects, schedule
from trainwell.optim.batch_plan import BatchPlan
from trainwell.optim.schedule import Schedule

if TYPE_CHECKING:
    from trainwell.data.prepare import StoreInfo

_VOCABULARIES = {"bytes": 257, "gpt2": 50257}  # known without reading a text


class NeedsTimingError(ConfigError):
    """The duration is in minutes: time a few steps, then resolve again with `seconds_per_step`."""


@dataclass(frozen=True)
class Plan:
    """One run, counted: every length in steps, every rate and batch a function of the step."""

    config: RunConfig
    """What was asked for."""
    info: "StoreInfo | None"
    """The counts of the prepared data; None when it was planned without."""
    num_steps: int
    """Steps of the run."""
    horizon: int
    """Steps over which the schedule is laid out; the run may be shorter or longer."""
    warmup: int
    """Steps of the warmup."""
    decay_steps: int
    """Steps of the final decay of wsd; 0 for the other shapes."""
    clip_from: int
    """First step whose gradient is clipped; nothing is when optim.max_grad_norm is null."""
    batch: BatchPlan
    """Sequences and tokens of every step."""
    seq_len: int
    """Tokens per sequence."""
    num_windows: int
    """Training windows, which is examples per epoch; 0 when the data is not known."""
    num_val_windows: int
    """Validation windows, side by side whatever the stride of training; 0 when the data is not known."""
    lr: Schedule
    """The learning rate."""
    eval_every: int | None
    """Steps between evaluations; None for none in between."""
    sample_every: int | None
    """Steps between samples; None for none."""
    save_every: int | None
    """Steps between checkpoints; None for one at the end only."""
    vocab_size: int | None
    """Entries of the embedding, padding included; None when only the text would tell."""

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Everything that changes with the step, by the name of the optimizer's setting."""
        return {"lr": self.lr}

    def epoch(self, step: int) -> float | None:
        """Passes over the training windows finished before `step`; None when the data is not known."""
        return self.batch.examples_before(step) / self.num_windows if self.num_windows else None


def resolve(config: RunConfig, info: "StoreInfo | None" = None, *, seconds_per_step: float | None = None) -> Plan:
    """Count everything; raise one ConfigError with all mistakes, NeedsTimingError when only a timing is missing.

    Tokens become steps by rounding down (at least 1). Epochs round up for the duration and the horizon, so that every
    window is seen, and to the nearest for the rest. Per cents round down, exactly: 20% of 135 is 27.
    """
    problems = checks.problems(config) + _dialect_problems(config) + _vocabulary_problems(config, info)
    batch_size = checks.sequences(config)
    if not batch_size:
        raise checks.error(problems)
    stride = config.data.stride or config.data.seq_len
    num_windows = _windows(info.train_tokens, config.data.seq_len, stride) if info else 0
    count = _Counter(batch_size, config.data.seq_len, num_windows, seconds_per_step)
    lengths = _lengths(config, count)
    problems += count.problems
    if not count.problems and not count.untimed:
        problems += _length_problems(config, lengths)
    if problems:
        raise checks.error(problems)
    if count.untimed:
        raise NeedsTimingError(
            f"duration: {config.duration} is a time, and how long a step takes is not known yet; "
            "it is measured when the run starts. To plan without, give steps, tokens or epochs"
        )
    return Plan(
        config=config,
        info=info,
        batch=BatchPlan(batch_size, config.data.seq_len, lengths.num_steps),
        seq_len=config.data.seq_len,
        num_windows=num_windows,
        num_val_windows=_windows(info.val_tokens, config.data.seq_len, config.data.seq_len) if info else 0,
        lr=_rate(config, lengths),
        vocab_size=config.model.pad_vocab_to or _vocabulary(config, info),
        num_steps=lengths.num_steps,
        horizon=lengths.horizon,
        warmup=lengths.warmup,
        decay_steps=lengths.decay_steps,
        clip_from=lengths.clip_from,
        eval_every=lengths.eval_every,
        sample_every=lengths.sample_every,
        save_every=lengths.save_every,
    )


@dataclass(frozen=True)
class _Lengths:
    """Every duration of the configuration in steps."""

    num_steps: int
    horizon: int
    warmup: int
    decay_steps: int
    clip_from: int
    eval_every: int | None
    sample_every: int | None
    save_every: int | None


@dataclass
class _Counter:
    """Turns durations into steps, and keeps a line for each that cannot be."""

    batch_size: int
    seq_len: int
    num_windows: int
    seconds_per_step: float | None
    problems: list[str] = field(default_factory=list)
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
                return length.amount / (self.batch_size * self.seq_len)
            case "%":
                return length.amount / 100 * of
            case "epochs":
                if not self.num_windows:
                    self.problems.append(
                        f"{key}: {length} cannot be counted without the text, which is not at hand; "
                        "name another with data.path or data.corpus, or give steps or tokens"
                    )
                return length.amount * Fraction(self.num_windows, self.batch_size)
            case "minutes":
                self.untimed = self.seconds_per_step is None
                return length.amount * 60 / Fraction(repr(self.seconds_per_step or 1))


def _lengths(config: RunConfig, count: _Counter) -> _Lengths:
    num_steps = count.steps("duration", config.duration, epochs=math.ceil)
    plan = config.schedule
    horizon = num_steps
    if plan.horizon is not None:
        horizon = count.steps("schedule.horizon", plan.horizon, of=num_steps, epochs=math.ceil)
    least = 0 if plan.warmup.unit == "%" else 1  # a tenth of five steps is no warmup
    warmup = count.steps("schedule.warmup", plan.warmup, of=horizon, epochs=_nearest, least=least)
    decay_steps = 0
    if plan.decay == "wsd" and plan.dialect is None:
        decay_steps = count.steps("schedule.decay_steps", plan.decay_steps, of=horizon, epochs=_nearest)
    clip_from = warmup
    if isinstance(config.optim.clip_from, Duration):
        clip_from = count.steps("optim.clip_from", config.optim.clip_from, of=num_steps, epochs=_nearest)

    def every(key: str, length: Duration | None) -> int | None:
        return None if length is None else count.steps(key, length, of=num_steps, epochs=_nearest)

    return _Lengths(
        num_steps=num_steps,
        horizon=horizon,
        warmup=warmup,
        decay_steps=decay_steps,
        clip_from=clip_from,
        eval_every=every("eval.every", config.eval.every),
        sample_every=every("sample.every", config.sample.every),
        save_every=every("checkpoint.every", config.checkpoint.every),
    )


def _length_problems(config: RunConfig, lengths: _Lengths) -> list[str]:
    """What is wrong between lengths that are each right."""
    plan, found = config.schedule, []
    if lengths.warmup >= lengths.horizon and not checks.warmup_is_too_long(config):
        found.append(
            f"schedule.warmup: {plan.warmup}, which is {lengths.warmup} steps, is not shorter than the horizon of "
            f"{lengths.horizon}; give a shorter warmup, or a longer schedule.horizon"
        )
    if plan.initial_lr is not None and plan.dialect is None and plan.warmup.unit != "steps" and lengths.warmup < 2:
        found.append(
            f"schedule.initial_lr: {plan.initial_lr.plain()} cannot rise to the peak in a warmup of {plan.warmup}, "
            f"which is {lengths.warmup} steps; give schedule.warmup 2 steps or more, or leave initial_lr out"
        )
    room = lengths.horizon - lengths.warmup
    if plan.decay == "wsd" and plan.dialect is None and not 0 < lengths.decay_steps <= room:
        found.append(
            f"schedule.decay_steps: {plan.decay_steps} comes to {lengths.decay_steps} steps; allowed are 1 to {room}, "
            f"the horizon of {lengths.horizon} less {lengths.warmup} of warmup"
        )
    if plan.dialect in dialects.END_AT_HORIZON and lengths.num_steps > lengths.horizon:
        found.append(
            f"duration: {lengths.num_steps} steps go past the horizon of {lengths.horizon}, where the dialect "
            f"{plan.dialect} ends; shorten the duration, or lengthen schedule.horizon"
        )
    return found


def _dialect_problems(config: RunConfig) -> list[str]:
    plan = config.schedule
    if plan.dialect is None:
        return []
    if plan.dialect not in dialects.DIALECTS:
        return [
            f"schedule.dialect: there is no {plan.dialect!r}; allowed are {', '.join(dialects.DIALECTS)}, "
            f"or null for trainwell's own{checks.did_you_mean(plan.dialect, dialects.DIALECTS)}"
        ]
    if plan.initial_lr is not None and plan.dialect not in dialects.READ_INITIAL:
        return [
            f"schedule.initial_lr: the dialect {plan.dialect} has no initial rate; leave one of the two out "
            f"(with an initial rate: {', '.join(sorted(dialects.READ_INITIAL))}, or null for trainwell's own)"
        ]
    if plan.initial_lr is None and plan.dialect == "book":
        return ["schedule.initial_lr: the dialect book starts there; give one, such as 1e-5 or 1%"]
    return []


def _vocabulary_problems(config: RunConfig, info: "StoreInfo | None") -> list[str]:
    needed, padded = _vocabulary(config, info), config.model.pad_vocab_to
    if needed is None or padded is None or padded >= needed:
        return []
    return [
        f"model.pad_vocab_to: {padded} is less than the {needed} tokens of the tokenizer {config.data.tokenizer}; "
        f"give at least {needed}, or null"
    ]


def _vocabulary(config: RunConfig, info: "StoreInfo | None") -> int | None:
    return info.vocab_size if info else _VOCABULARIES.get(config.data.tokenizer)


def _rate(config: RunConfig, lengths: _Lengths) -> Schedule:
    """Match the schedule's name: a dialect, or our own."""
    peak, plan = config.optim.lr, config.schedule
    initial = None if plan.initial_lr is None else plan.initial_lr.of(peak)
    minimum = plan.min_lr.of(peak)
    if plan.dialect is not None:
        return dialects.DIALECTS[plan.dialect](peak, initial, minimum, lengths.warmup, lengths.horizon)
    return schedule.own(
        peak,
        lengths.warmup,
        lengths.horizon,
        shape=plan.warmup_shape,
        initial_lr=initial,
        decay=plan.decay,
        decay_steps=lengths.decay_steps,
        min_lr=minimum,
    )


def _windows(num_tokens: int, seq_len: int, stride: int) -> int:
    from trainwell.data.order import count_windows  # here, because it brings numpy, which `show` can do without

    return count_windows(num_tokens, seq_len, stride)


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
