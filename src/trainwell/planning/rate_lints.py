"""What a learning rate does that its owner may not expect: a lint for each, over the curve that will be used.

Knows the plan only, and asks its rates, not the name of its formula; names serve only to say what to write instead.
Each lint looks at a few steps, so that a run of a million steps takes no longer than a short one.
"""

import math
from collections.abc import Iterator

from trainwell.optim import dialects
from trainwell.planning.describe import rate
from trainwell.planning.finding import Finding, Level, at
from trainwell.planning.resolve import Plan

_SHORT_OF_MINIMUM = 1.01
_SHORT_WARMUP, _LONG_WARMUP = 0.001, 0.2  # of the horizon
_FEWEST_STEPS = 5  # of a horizon for which a warmup of one step is within a fifth


def ends_early(plan: Plan) -> Iterator[Finding]:
    """A run that is shorter than its schedule, which is allowed: it is the beginning of the same recipe."""
    steps, horizon, last = plan.num_steps, plan.horizon, plan.num_steps - 1
    if plan.warmup >= steps:
        yield Finding(
            name="run-ends-in-warmup",
            level="warning",
            key="duration",
            what=f"the run ends inside its warmup of {plan.warmup:,} steps: the peak is never reached",
            where=at(plan, last),
            why=f"its highest rate is {rate(plan.lr(last))}, so it says little about the peak and nothing of the decay",
            change=laid_out_over_the_run(plan),
        )
    elif steps < horizon and has_end(plan):
        yield Finding(
            name="run-shorter-than-horizon",
            level="note",
            key="duration",
            what=f"the run is the first {steps:,} steps of a schedule of {horizon:,}: it ends at {rate(plan.lr(last))}",
            where=at(plan, last),
            why="most of the gain of a decay comes at its end, so the loss is not that of a finished run",
            change=laid_out_over_the_run(plan),
        )


def batch_stays_small(plan: Plan) -> Iterator[Finding]:
    """A run that ends inside its batch ramp, one whose rate never gets to its peak for it, and a ramp that is off."""
    ramp, config = plan.batch.ramp, plan.config.batch_ramp
    if ramp is None and (config.over is not None or config.stages is not None):
        what = "over" if config.over is not None else "stages"
        yield Finding(
            name="batch-ramp-off",
            level="warning",
            key=f"batch_ramp.{what}",
            what=f"batch_ramp.{what} {getattr(config, what)} has no effect, because batch_ramp.from_tokens is null",
            where="every step",
            why="every step takes the full batch",
            change="batch_ramp.over: null\nbatch_ramp.stages: null",
        )
    elif plan.num_steps < plan.batch.ramp_steps:
        yield Finding(
            name="run-ends-in-ramp",
            level="warning",
            key="batch_ramp.over",
            what=f"the run ends inside its batch ramp of {plan.batch.ramp_steps:,} steps: none has the full batch",
            where=at(plan, plan.num_steps - 1),
            why=f"the last step takes {plan.batch.size(plan.num_steps - 1):,} of {plan.batch.batch_size:,} sequences",
            change="batch_ramp.from_tokens: null\nbatch_ramp.over: null\nbatch_ramp.stages: null",
        )
    elif plan.lr is not plan.rate and plan.warmup < plan.batch.ramp_steps:
        highest = max(range(0, plan.num_steps, max(1, plan.num_steps // 64)), key=plan.lr)
        yield Finding(
            name="peak-never-reached",
            level="note",
            key="batch_ramp.lr_scaling",
            what=f"the rate grows with the batch, which is full only after the warmup: its highest is about "
            f"{rate(plan.lr(highest))}, not {rate(plan.config.optim.lr)}",
            where=at(plan, highest),
            why="by the time the batch is full the decay has begun",
            change="batch_ramp.lr_scaling: none",
        )


def goes_on(plan: Plan) -> Iterator[Finding]:
    """A run that is longer than its schedule: the rate stays where the schedule ends, or rises again."""
    steps, horizon = plan.num_steps, plan.horizon
    over, end = steps - horizon, plan.lr(horizon - 1)
    if over <= 0 or not has_end(plan):
        return
    highest = max({horizon + over * part // 16 for part in range(16)} | {steps - 1}, key=plan.lr)
    change = laid_out_over_the_run(plan)
    if plan.lr(highest) > end * 1.0001:
        yield Finding(
            name="rises-past-horizon",
            level="warning",
            key="schedule.horizon",
            what=f"the rate rises again past the horizon: from {rate(end)} at step {horizon - 1:,} "
            f"to {rate(plan.lr(highest))} at step {highest:,}",
            where=at(plan, horizon),
            why="what the decay has settled is stirred up again, and the loss rises with the rate",
            change=change,
        )
    else:
        yield Finding(
            name="run-longer-than-horizon",
            level="note",
            key="schedule.horizon",
            what=f"the run goes on past its horizon: the last {over:,} steps are after the schedule's end, "
            f"at {rate(plan.lr(steps - 1))}",
            where=at(plan, horizon),
            why="at the lowest rate little is learned; a decay over the whole run spends those steps better",
            change=change,
        )


def zero_at_first(plan: Plan) -> Iterator[Finding]:
    """A first step that changes no weight."""
    if plan.lr(0) != 0:
        return
    name = plan.config.schedule.dialect
    starts_there = name is None or name in dialects.READ_INITIAL
    yield Finding(
        name="rate-zero-at-first",
        level="warning",
        key="schedule.initial_lr" if starts_there else "schedule.dialect",
        what="step 0 is taken at rate 0: it changes no weight"
        if starts_there
        else f"the dialect {name} takes step 0 at rate 0: it changes no weight",
        where=at(plan, 0),
        why="a batch is read and paid for, and only the optimizer's moments learn from it",
        change="schedule.initial_lr: 1%" if starts_there else _without_zero(plan),
    )


def zero_at_last(plan: Plan) -> Iterator[Finding]:
    """Last steps that change no weight, one at the minimum 0 or all that are past the horizon."""
    last, horizon = plan.num_steps - 1, plan.horizon
    if plan.lr(last) != 0 or last == 0:
        return
    lost = 1
    if last >= horizon and plan.lr(horizon) == 0:
        lost += last - horizon + (plan.lr(horizon - 1) == 0)
    change = "schedule.min_lr: 10%"
    if plan.config.schedule.dialect in dialects.OWN_MINIMUM:
        reaching = plan.config.schedule.reach_min
        longer = "schedule.horizon: null" if last >= horizon else ""
        change = "\n".join(filter(None, [longer, "schedule.reach_min: false" if reaching else ""]))
    yield Finding(
        name="rate-zero-at-last",
        level="warning",
        key="schedule.min_lr",
        what=f"the last {f'{lost:,} steps are' if lost > 1 else 'step is'} taken at rate 0: no weight changes any more",
        where=at(plan, last + 1 - lost),
        why="the work of a step at rate 0 is lost",
        change=change,
    )


def minimum(plan: Plan) -> Iterator[Finding]:
    """The rate that the curve has at the horizon, where most formulas arrive one step after the last."""
    last = plan.horizon - 1
    minimum, reached = plan.rate(plan.horizon - plan.config.schedule.reach_min), plan.rate(last)
    if not has_end(plan) or plan.num_steps < plan.horizon or not 0 < minimum * _SHORT_OF_MINIMUM < reached:
        return
    yield Finding(
        name="minimum-never-reached",
        level="warning",
        key="schedule.dialect",
        what=f"the dialect {plan.config.schedule.dialect} stops just short of its minimum: the last step has "
        f"{rate(reached)}, {100 * (reached / minimum - 1):.2g} % above {rate(minimum)}",
        where=at(plan, last),
        why="the lowest rate, at which weights settle, is named and never used",
        change="schedule.reach_min: true",
    )


def peak(plan: Plan) -> Iterator[Finding]:
    """Two steps at the peak and no third, which would be a schedule that stays there."""
    peak, warmup = plan.config.optim.lr, plan.warmup
    if not 0 < warmup < min(plan.num_steps, plan.horizon):
        return
    stays = plan.config.schedule.decay_steps is not None
    before, after, later = (math.isclose(plan.lr(warmup + by), peak, rel_tol=1e-14) for by in (-1, 0, 1))
    if before and after and not later:
        yield Finding(
            name="peak-twice",
            level="warning",
            key="schedule.dialect",
            what=f"the peak {rate(peak)} comes twice: on the last step of the warmup and on the one after it",
            where=f"steps {warmup - 1:,} and {warmup:,}",
            why="the first step of the decay does not decay, so all of it comes a step later than with one peak",
            change="schedule.dialect: nanogpt" + ("\nschedule.decay_steps: null" if stays else ""),
        )


def warmup(plan: Plan) -> Iterator[Finding]:
    """A warmup that is very short, very long, or left out; left out on purpose it is a note."""
    asked, steps, horizon = plan.config.schedule.warmup, plan.warmup, plan.horizon
    share = steps / horizon
    if horizon < _FEWEST_STEPS or _SHORT_WARMUP <= share <= _LONG_WARMUP:
        return
    change = f"schedule.warmup: {'10%' if horizon >= 20 else '20%'}"
    if not steps:
        rounded = f"schedule.warmup {asked} of a horizon of {horizon} steps comes to no step at all: step 0 has"
        what = f"{'there is no warmup: step 0 has' if not asked.amount else rounded} {rate(plan.lr(0))}"
        level: Level = "warning" if asked.amount else "note"
    else:
        few = share < _SHORT_WARMUP
        level = "warning"
        what = (
            f"the warmup of {steps:,} steps is {100 * share:.2g} % of the horizon of {horizon:,}, "
            f"{'less than 0.1' if few else 'more than 20'} %"
        )
    why = (
        "the first gradients are the largest and the optimizer's moments know the least: at the full rate they do harm"
    )
    if share > _LONG_WARMUP:
        why = "most of what a run learns comes at high rates; a long warmup spends those steps below them"
    yield Finding("warmup-length", level, "schedule.warmup", what, f"steps 0 to {max(steps - 1, 0):,}", why, change)


def ends(plan: Plan) -> Iterator[Finding]:
    """The rates that are named for both ends: one above the other, or one that is not used."""
    config, peak = plan.config.schedule, plan.config.optim.lr
    if config.dialect in dialects.OWN_MINIMUM:
        yield Finding(
            name="minimum-not-used",
            level="note",
            key="schedule.min_lr",
            what=f"the dialect {config.dialect} has an end of its own: schedule.min_lr is not used",
            where=at(plan, plan.horizon - 1),
            why=f"the horizon ends at {rate(plan.lr(plan.horizon - 1))}, whatever minimum is named",
            change=_own_schedule(plan, "\nschedule.initial_lr: null" if config.initial_lr is not None else ""),
        )
    elif config.initial_lr is not None and has_end(plan):
        initial, minimum = config.initial_lr.of(peak), config.min_lr.of(peak)
        if 0 < initial < minimum:
            yield Finding(
                name="minimum-above-initial",
                level="note",
                key="schedule.min_lr",
                what=f"the minimum {rate(minimum)} is above the initial rate {rate(initial)}",
                where=f"steps 0 and {plan.horizon - 1:,}",
                why="who names a low rate to start from mostly means to end no higher; schedule.min_lr is 10% "
                "unless you say otherwise",
                change=f"schedule.min_lr: {config.initial_lr.plain()}",
            )


def laid_out_over_the_run(plan: Plan) -> str:
    """Write what lays the schedule out over the steps that the run takes."""
    fits = plan.config.schedule.warmup.unit == "%" or plan.warmup < plan.num_steps
    return "schedule.horizon: null" + ("" if fits else "\nschedule.warmup: 10%")


def _own_schedule(plan: Plan, more: str = "") -> str:
    reach_min = "\nschedule.reach_min: false" if plan.config.schedule.reach_min else ""
    return f"schedule.dialect: null{reach_min}{more}"


def _without_zero(plan: Plan) -> str:
    """The nearest schedule whose step 0 does something."""
    match plan.config.schedule.dialect:
        case "hf-cosine-with-min-lr":
            off = "\nschedule.reach_min: false" if plan.config.schedule.reach_min else ""
            return f"schedule.dialect: hf-cosine-warmup-with-min-lr{off}"
        case "hf-linear":
            return _own_schedule(plan, "\nschedule.decay: linear")
        case "hf-inverse-sqrt":
            return _own_schedule(plan, "\nschedule.decay: inverse-sqrt")
        case _:
            return "schedule.dialect: nanogpt"


def has_end(plan: Plan) -> bool:
    """Say whether the schedule is laid out towards an end; one that is not goes on past any horizon as before it."""
    config = plan.config.schedule
    if config.dialect is None:
        return config.decay not in {"constant", "inverse-sqrt"}
    return config.dialect not in dialects.NO_END
