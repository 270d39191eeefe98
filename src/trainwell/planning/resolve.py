"""From a configuration and the size of its data to a plan: whole steps, one schedule, one batch plan.

Knows no torch, file or clock: the same configuration and the same counts always give the same plan. Every mistake that
needs counting to be seen is found here, all of them together, before any work starts.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.config.values import parse_skips
from trainwell.errors import ConfigError
from trainwell.optim import dialects, schedule
from trainwell.optim.batch_plan import BatchPlan, Ramp
from trainwell.optim.schedule import Schedule
from trainwell.planning.counting import Counter, Lengths, count_lengths, nearest, uncounted

if TYPE_CHECKING:
    from trainwell.data.prepare import StoreInfo

_VOCABULARIES = {"bytes": 257, "gpt2": 50257}  # known without reading a text
_MOST_BATCHES = 10**16
"""Times the sequences of one: places in the data stay far inside 64 bits."""


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
    """Steps of the final decay of a shape that stays at the peak before it; 0 for the other shapes."""
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
    laid_out: tuple[int, int]
    """Warmup and horizon as the schedule's formula has them: in steps, or in tokens for a dialect that counts those."""
    rate: Schedule
    """The learning rate as its formula gives it."""
    lr: Schedule
    """The learning rate that is used: the same, scaled with the batch where a ramp asks for it."""
    eval_every: int | None
    """Steps between evaluations; None for none in between."""
    sample_every: int | None
    """Steps between samples; None for none."""
    save_every: int | None
    """Steps between checkpoints; None for one at the end only."""
    keep_every: int | None
    """One checkpoint of so many steps is kept for good; None for none."""
    vocab_size: int | None
    """Entries of the embedding, padding included; None when only the text would tell."""

    @property
    def rows(self) -> str:
        """What an epoch consists of: windows of a text, or rows of examples."""
        return "windows" if self.config.task == "pretrain" else "rows"

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Everything that changes with the step, by the name of the optimizer's setting."""
        return {"lr": self.lr, **_others(self)}

    def epoch(self, step: int) -> float | None:
        """Passes over the training windows before `step`, skipped ones included; None when the data is not known."""
        return self.batch.first_example(step) / self.num_windows if self.num_windows else None


def resolve(config: RunConfig, info: "StoreInfo | None" = None, *, seconds_per_step: float | None = None) -> Plan:
    """Count everything; raise one ConfigError with all mistakes, NeedsTimingError when only a timing is missing.

    Tokens become steps by rounding down (at least 1). Epochs round up for the duration and the horizon, so that every
    window is seen, and to the nearest for the rest. Per cents round down, exactly: 20% of 135 is 27.
    """
    problems = checks.problems(config) + _dialect_problems(config) + _vocabulary_problems(config, info)
    batch_size = checks.sequences(config)
    if not batch_size or (problems and config.batch_ramp.from_tokens is not None):
        raise checks.error(problems)  # there is no batch to count with
    stride = config.data.stride or config.data.seq_len
    num_windows = _windows(info.train_tokens, config.data.seq_len, stride) if info else 0
    if num_windows == 0 and config.batch_ramp.over is not None and config.batch_ramp.over.unit == "epochs":
        problems += uncounted([f"batch_ramp.over: {config.batch_ramp.over}"], config.task)
        raise checks.error(problems)
    batch = _batch_plan(config, batch_size, num_windows)
    count = Counter(batch, num_windows, seconds_per_step)
    lengths = count_lengths(config, count)
    problems += uncounted(count.uncounted, config.task) + _skip_problems(batch)
    if not count.uncounted and not count.untimed:
        problems += _length_problems(config, lengths)
    if problems:
        raise checks.error(problems)
    if count.untimed:
        raise NeedsTimingError(
            f"duration: {config.duration} is a time, and how long a step takes is not known yet; "
            "it is measured when the run starts. To plan without, give steps, tokens or epochs"
        )
    rate = _rate(config, lengths, batch)
    return Plan(
        config=config,
        info=info,
        batch=batch,
        seq_len=config.data.seq_len,
        num_windows=num_windows,
        num_val_windows=_windows(info.val_tokens, config.data.seq_len, config.data.seq_len) if info else 0,
        laid_out=lengths.laid_out,
        rate=rate,
        lr=_scaled(rate, batch.ramp) if config.batch_ramp.lr_scaling == "sqrt" and batch.ramp else rate,
        vocab_size=config.model.pad_vocab_to or _vocabulary(config, info),
        num_steps=lengths.num_steps,
        horizon=lengths.horizon,
        warmup=lengths.warmup,
        decay_steps=lengths.decay_steps,
        clip_from=lengths.clip_from,
        eval_every=lengths.eval_every,
        sample_every=lengths.sample_every,
        save_every=lengths.save_every,
        keep_every=lengths.keep_every,
    )


def _batch_plan(config: RunConfig, batch_size: int, num_windows: int) -> BatchPlan:
    ramp, seq_len = config.batch_ramp, config.data.seq_len
    skips = _skips(config)
    if ramp.from_tokens is None or ramp.over is None:
        return BatchPlan(batch_size, seq_len, skips=skips)
    over = ramp.over.amount * (num_windows * seq_len if ramp.over.unit == "epochs" else 1)
    climb = Ramp(ramp.from_tokens, batch_size * seq_len, max(1, nearest(over)), ramp.stages)
    return BatchPlan(batch_size, seq_len, climb, checks.ramp_multiple(config), skips)


def _skips(config: RunConfig) -> tuple[tuple[int, int], ...]:
    """The skips of the data; none where they cannot be read, which `checks.problems` says."""
    try:
        return parse_skips(config.data.skip)
    except ValueError:
        return ()


def _skip_problems(batch: BatchPlan) -> list[str]:
    """A skip past every text there can be, whose places could not be counted in 64 bits."""
    last = max((at for at, _ in batch.skips), default=0) + sum(batches for _, batches in batch.skips)
    if last <= _MOST_BATCHES // batch.batch_size:
        return []
    return [
        f"data.skip: {', '.join(f'{at}+{batches}' for at, batches in batch.skips)} leaves out more batches than any "
        "text has; give a smaller number"
    ]


def _length_problems(config: RunConfig, lengths: Lengths) -> list[str]:
    """What is wrong between lengths that are each right."""
    plan, found = config.schedule, []
    if lengths.warmup >= lengths.horizon - plan.reach_min and not checks.warmup_is_too_long(config):
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
    takes = plan.dialect in dialects.TAKE_DECAY_STEPS and plan.decay_steps is not None
    staying = plan.decay == "wsd" if plan.dialect is None else takes
    if staying and not 0 < lengths.decay_steps <= room:
        found.append(
            f"schedule.decay_steps: {plan.decay_steps or '20%'} comes to {lengths.decay_steps} steps; "
            f"allowed are 1 to {room}, the horizon of {lengths.horizon} less {lengths.warmup} of warmup"
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
    if plan.initial_lr is not None and plan.dialect not in dialects.READ_INITIAL:
        return [
            f"schedule.initial_lr: the dialect {plan.dialect} has no initial rate; leave one of the two out "
            f"(with an initial rate: {', '.join(sorted(dialects.READ_INITIAL))}, or null for trainwell's own)"
        ]
    found = []
    multiplies = plan.dialect == "exponential"
    if (plan.dialect in dialects.NEED_INITIAL and plan.initial_lr is None) or (
        multiplies and plan.initial_lr is not None and not plan.initial_lr.amount
    ):
        above = " above 0" if multiplies else ""
        found.append(
            f"schedule.initial_lr: the dialect {plan.dialect} starts there; give one{above}, such as 1e-5 or 1%"
        )
    if plan.decay_steps is not None and plan.dialect not in dialects.TAKE_DECAY_STEPS:
        found.append(
            f"schedule.decay_steps: {plan.decay_steps} has no effect, because the dialect {plan.dialect} fixes "
            f"the shape; leave it out, or take one of {', '.join(sorted(dialects.TAKE_DECAY_STEPS))}"
        )
    if plan.reach_min and plan.dialect in dialects.AT_MINIMUM_LAST | dialects.NO_END:
        why = "is not laid out towards a minimum" if plan.dialect in dialects.NO_END else "reaches its minimum as it is"
        found.append(f"schedule.reach_min: true has no effect, because the dialect {plan.dialect} {why}; leave it out")
    return found


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


def _rate(config: RunConfig, lengths: Lengths, batch: BatchPlan) -> Schedule:
    """Match the schedule's name: a dialect, or our own."""
    peak, plan = config.optim.lr, config.schedule
    initial = None if plan.initial_lr is None else plan.initial_lr.of(peak)
    minimum = plan.min_lr.of(peak)
    if plan.dialect is not None:
        staying = plan.dialect in dialects.TAKE_DECAY_STEPS and lengths.decay_steps
        more = {"decay_steps": lengths.decay_steps} if staying else {}
        rate = dialects.DIALECTS[plan.dialect](peak, initial, minimum, *lengths.laid_out, **more)
        return schedule.by_tokens(rate, batch) if plan.dialect in dialects.IN_TOKENS else rate
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


def _scaled(rate: Schedule, ramp: Ramp) -> Schedule:
    """The rate times the root of the share of the full batch, before rounding (Malladi et al., 2022, for Adam)."""

    def scaled(step: int) -> float:
        if step >= ramp.num_steps:
            return rate(step)
        return rate(step) * math.sqrt(ramp.size(ramp.before(step)) / ramp.full)

    return scaled


def _others(plan: Plan) -> dict[str, Schedule]:
    """Weight decay and momentum where they move, by the name of the optimizer's setting."""
    config, found = plan.config, dict[str, Schedule]()
    decay, end = config.optim.weight_decay, config.schedule.final_weight_decay
    if end is not None:
        last = max(1, plan.horizon - 1)
        found["weight_decay"] = lambda step: schedule.cosine(min(1.0, step / last), decay, end)
    beta, first, warmup = config.optim.betas[0], config.schedule.initial_momentum, plan.warmup
    if first is not None:
        found["momentum"] = lambda step: beta if step >= warmup else first + (beta - first) * step / warmup
    return found


def _windows(num_tokens: int, seq_len: int, stride: int) -> int:
    from trainwell.data.order import count_windows  # here, because it brings numpy, which `show` can do without

    return count_windows(num_tokens, seq_len, stride)
