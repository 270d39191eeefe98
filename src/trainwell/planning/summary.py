"""What a run comes to, in the few lines printed before its first step."""

from trainwell.planning.describe import batch_line, schedule_line, skip_lines
from trainwell.planning.lints import findings
from trainwell.planning.memory import memory_line
from trainwell.planning.resolve import Plan
from trainwell.runs.console import short_count


def summary(plan: Plan, parameters: int) -> list[str]:
    """Size, length, data and schedule, one line each, then what is worth knowing about them."""
    tokens, config = plan.batch.tokens_before(plan.num_steps), plan.config
    in_all, ratio = f", {short_count(tokens)} in all", f", {tokens / parameters:.3g} tokens per parameter"
    if config.task != "pretrain":  # whose rows are not full
        in_all = ratio = ""
    return [
        f"{config.name}: {parameters:,} parameters, {plan.num_steps:,} steps of {batch_line(plan)}{in_all}",
        *([] if config.init_from is None else [f"weights: those of {config.init_from} to begin with"]),
        f"data: {_data(plan)}{ratio}",
        *skip_lines(plan),
        f"schedule: {schedule_line(plan)}",
        *([] if (line := memory_line(plan)) is None else [f"memory: {line}"]),
        *(finding.line() for finding in findings(plan)),
    ]


def _data(plan: Plan) -> str:
    info, epochs = plan.info, plan.epoch(plan.num_steps)
    if info is None:
        return "not counted yet"
    passes = (
        "an unknown number of passes"
        if epochs is None
        else f"{epochs:.2f} passes over {plan.num_windows:,} {plan.rows}"
    )
    version = "" if info.version is None else f" ({info.version})"
    size = f"{short_count(info.train_tokens)} tokens"
    if plan.config.task != "pretrain":
        size = f"{info.num_texts:,} examples, {plan.num_val_windows:,} {plan.rows} held out"
    return f"{info.corpus}{version}, {size}, tokenizer {info.tokenizer}, {passes}"
