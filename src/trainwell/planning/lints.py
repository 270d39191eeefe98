"""What is allowed but worth knowing before a run starts, each in one short line.

Knows the plan only. A line here never stops anything; what must stop a run is an error of `checks` or `resolve`.
"""

from trainwell.optim import dialects
from trainwell.planning.describe import rate
from trainwell.planning.model_size import count_parameters
from trainwell.planning.resolve import Plan

_MANY_EPOCHS = 20
_FEW_TOKENS, _MANY_TOKENS = 1, 1000
_SHORT_OF_MINIMUM = 1.01


def notes(plan: Plan) -> list[str]:
    """Give what the summary should mention, most important first; nothing for a run without surprises."""
    return [line for line in [*_about_length(plan), *_about_rate(plan), *_about_data(plan)] if line]


def _about_length(plan: Plan) -> list[str]:
    steps, horizon = plan.num_steps, plan.horizon
    found = []
    if steps < horizon:
        found.append(
            f"the run is the first {steps:,} steps of a schedule of {horizon:,}: it ends at {rate(plan.lr(steps - 1))}"
        )
    if steps > horizon:
        found.append(
            f"the run goes on past its horizon: the last {steps - horizon:,} steps are after the schedule's end"
        )
    if plan.warmup >= steps:
        found.append(f"the run ends inside its warmup of {plan.warmup:,} steps: the peak is never reached")
    if plan.clip_from >= steps and plan.config.optim.max_grad_norm is not None:
        found.append(f"no step is clipped: clipping starts at step {plan.clip_from:,}, after the last")
    return found


def _about_rate(plan: Plan) -> list[str]:
    name, steps, horizon = plan.config.schedule.dialect, plan.num_steps, plan.horizon
    if name is None:
        return []
    found = []
    minimum, last = plan.config.schedule.min_lr.of(plan.config.optim.lr), plan.lr(horizon - 1)
    if name in dialects.OWN_MINIMUM:
        found.append(f"the dialect {name} has an end of its own: schedule.min_lr is not used")
    elif steps >= horizon and last > minimum * _SHORT_OF_MINIMUM:
        found.append(
            f"the dialect {name} stops just short of its minimum: the last step has {rate(last)}, not {rate(minimum)}"
        )
    if plan.lr(0) == 0:
        found.append(f"the dialect {name} takes step 0 at rate 0: it changes no weight")
    if name in dialects.RISE_AGAIN and steps > horizon:
        found.append(f"the dialect {name} raises the rate again past its horizon")
    return found


def _about_data(plan: Plan) -> list[str]:
    data, found = plan.config.data, []
    epochs, info = plan.epoch(plan.num_steps), plan.info
    if data.stride is not None and data.stride > data.seq_len:
        found.append(
            f"data.stride {data.stride} is more than data.seq_len {data.seq_len}: "
            f"{data.stride - data.seq_len} of every {data.stride} tokens are never read"
        )
    if epochs is not None and epochs > _MANY_EPOCHS:
        found.append(
            f"the run reads its text {epochs:.0f} times: expect overfitting, and trust the validation loss only"
        )
    if plan.vocab_size is not None:
        found.append(_tokens_per_parameter(plan, plan.vocab_size))
    if info is not None:
        found += [_validation(plan), info.note or ""]
    return found


def _tokens_per_parameter(plan: Plan, vocab_size: int) -> str:
    total = count_parameters(plan.config.model, vocab_size, plan.seq_len).total
    ratio = plan.batch.tokens_before(plan.num_steps) / total
    if _FEW_TOKENS <= ratio <= _MANY_TOKENS:
        return ""
    best = "the 20 that use the arithmetic best (Hoffmann et al., 2022)"
    if ratio < _FEW_TOKENS:
        return f"{ratio:.2g} tokens per parameter, far below {best}: the model can learn its text by heart"
    return f"{ratio:,.0f} tokens per parameter, far above {best}: a larger model would learn more for the same work"


def _validation(plan: Plan) -> str:
    asked = plan.config.eval.batches * plan.batch.size(0)
    if not plan.num_val_windows or asked <= plan.num_val_windows:
        return ""
    return f"eval.batches asks for {asked:,} sequences, the validation text has {plan.num_val_windows:,}: all are used"
