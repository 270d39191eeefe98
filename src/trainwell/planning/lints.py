"""What is allowed but worth knowing before a run starts: where, why it matters, and the line to change.

Knows the plan only. A finding never stops anything by itself; what must stop a run is an error of `checks` or
`resolve`, or, for a given optimizer that was made with another rate than the peak, of `build`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from trainwell.config.load import load, read_recipe, recipe_names
from trainwell.config.tree import RunConfig
from trainwell.planning import rate_lints
from trainwell.planning.finding import Finding, at
from trainwell.planning.memory import LARGE_VOCABULARY
from trainwell.planning.model_size import count_parameters
from trainwell.planning.rate_lints import has_end, laid_out_over_the_run
from trainwell.planning.resolve import Plan
from trainwell.runs.console import short_count

_ALIGNED = 64
"""Tensor cores want widths in multiples of this; Karpathy's lecture pads GPT-2's vocabulary for it."""
_GOOD_PASSES, _MANY_PASSES = 4, 16
_NEAR_ONE_PASS = 0.1
_BEST_RATIO, _FEW_TOKENS, _MANY_TOKENS = 20, 1, 1000


def findings(plan: Plan) -> list[Finding]:
    """Give all that is worth knowing about a plan, warnings first, in the order of importance.

    What a shipped recipe accepts is a note with its reason, as long as the key it comes from is as the recipe has it.
    """
    found = [finding for lint in _LINTS for finding in lint(plan)]
    name = plan.config.name
    if found and name in recipe_names():
        found = [_accepted(finding, plan.config, name) for finding in found]
    return sorted(found, key=lambda finding: finding.level == "note")


def _accepted(finding: Finding, config: RunConfig, name: str) -> Finding:
    reason = read_recipe(name).accepts.get(finding.name)
    if reason is None or _value(config, finding.key) != _value(_shipped(name), finding.key):
        return finding
    return replace(finding, level="note", accepted=reason)


@cache
def _shipped(name: str) -> RunConfig:
    return load(name)


def _value(config: RunConfig, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _clipping(plan: Plan) -> Iterator[Finding]:
    first = plan.clip_from
    if plan.config.optim.max_grad_norm is None:
        yield Finding(
            name="clipping-off",
            level="note",
            key="optim.max_grad_norm",
            what="no gradient is clipped",
            where="every step",
            why="one bad batch can move the weights by any amount; a norm of 1 costs nothing when gradients are small",
            change="optim.max_grad_norm: 1.0",
        )
    elif first >= plan.num_steps:
        yield Finding(
            name="no-step-clipped",
            level="warning",
            key="optim.clip_from",
            what=f"no step is clipped: clipping starts at step {first:,}, after the last",
            where="every step",
            why=f"optim.max_grad_norm {plan.config.optim.max_grad_norm:g} says that gradients are clipped, and none is",
            change="optim.clip_from: 0",
        )
    elif first > 0:
        warmup = ", during the warmup" if first <= plan.warmup else ""
        yield Finding(
            name="clipping-starts-late",
            level="warning",
            key="optim.clip_from",
            what=f"the first {first:,} steps are not clipped{warmup}",
            where=f"steps 0 to {first - 1:,}",
            why="gradient norms are largest at the start, which is what clipping is for",
            change="optim.clip_from: 0",
        )


def _horizon_and_data(plan: Plan) -> Iterator[Finding]:
    """A horizon that was counted for another text, or that was meant as one pass over this one and is not quite."""
    passes, horizon = plan.epoch(plan.horizon), plan.horizon
    if passes is None or not has_end(plan):
        return
    laid_out, text = f"the schedule is laid out over {passes:,.3g} passes over the text", "horizon-differs-from-data"
    explicit = plan.config.schedule.horizon is not None
    if plan.num_steps < horizon and passes > _MANY_PASSES:
        yield Finding(
            name=text,
            level="warning",
            key="schedule.horizon",
            what=f"{laid_out}, of which the run makes {plan.epoch(plan.num_steps):.3g}",
            where=at(plan, horizon - 1),
            why="a horizon of so many passes was counted for a larger text: on this one the decay hardly begins",
            change=laid_out_over_the_run(plan),
        )
    one = plan.batch.position(plan.num_windows)
    if abs(passes - 1) <= _NEAR_ONE_PASS and abs(horizon - one) >= 1:
        share = f"{100 * abs(passes - 1):.2g} % of it is {'not read' if passes < 1 else 'read a second time'}"
        yield Finding(
            name=text,
            level="note",
            key="schedule.horizon" if explicit else "duration",
            what=f"{laid_out}: {share} before the rate is at its end",
            where=at(plan, horizon - 1),
            why=f"one pass over this text ends at step {math.ceil(one) - 1:,}; if one pass was meant, this is not it",
            change="duration: 1 epochs" + ("\nschedule.horizon: 1 epochs" if explicit else ""),
        )


def _passes(plan: Plan) -> Iterator[Finding]:
    passes = plan.epoch(plan.num_steps)
    if passes is None or passes <= _GOOD_PASSES + (plan.epoch(1) or 0):  # four epochs, in whole steps, are a bit more
        return
    yield Finding(
        name="many-passes",
        level="warning" if passes > _MANY_PASSES else "note",
        key="duration",
        what=f"the run reads its text {passes:.3g} times: expect overfitting, and trust the validation loss only",
        where=at(plan, math.ceil(plan.batch.position(_GOOD_PASSES * plan.num_windows))),
        why="up to 4 passes are about as good as new text, and each one after is worth less "
        "(Muennighoff et al., 2023); a longer text helps more than a longer run",
        change=f"duration: {_GOOD_PASSES} epochs",
    )


def _data(plan: Plan) -> Iterator[Finding]:
    data, info = plan.config.data, plan.info
    if data.stride is not None and data.stride > data.seq_len:
        yield Finding(
            name="stride-skips-text",
            level="warning",
            key="data.stride",
            what=f"data.stride {data.stride} is more than data.seq_len {data.seq_len}: "
            f"{data.stride - data.seq_len} of every {data.stride} tokens are never read",
            where="every epoch",
            why="the text is smaller than it seems, and what is skipped is never learned",
            change="data.stride: null",
        )
    asked = plan.config.eval.batches * plan.batch.batch_size
    if plan.num_val_windows and asked > plan.num_val_windows:
        yield Finding(
            name="validation-text-too-short",
            level="note",
            key="eval.batches",
            what=f"eval.batches asks for {asked:,} sequences, the validation set has {plan.num_val_windows:,}: "
            "all are used",
            where="every evaluation",
            why="the loss of a small validation set is a noisy one",
            change="eval.batches: 0",
        )
    if info is not None and info.note:
        yield Finding(
            name="about-the-text",
            level="note",
            key="data.corpus" if plan.config.task == "pretrain" else "data.path",
            what=info.note,
            where="the whole run",
            why="it bears on what the validation loss means",
            change="",
        )


def _frozen(plan: Plan) -> Iterator[Finding]:
    if plan.config.optim.train == "last-block" and plan.config.init_from is None:
        yield Finding(
            name="frozen-random-weights",
            level="warning",
            key="optim.train",
            what="only the last block learns, and the frozen ones below it hold random weights",
            where="every step",
            why="what is frozen must have learned before: start from weights, with init_from, or let all of it learn",
            change="optim.train: all",
        )


def _start(plan: Plan) -> Iterator[Finding]:
    config = plan.config
    if config.task != "pretrain" and config.init_from is None and config.optim.train == "all":
        yield Finding(
            name="nothing-learned-before",
            level="warning",
            key="init_from",
            what=f"task {config.task} starts from random weights, which know no language",
            where="step 0",
            why="a few examples teach a task, not a language: start from a run of task pretrain, or from open weights",
            change="",
        )
    if config.task == "pretrain" and str(config.data.path).lower().endswith((".jsonl", ".json", ".csv", ".tsv")):
        yield Finding(
            name="records-read-as-text",
            level="note",
            key="task",
            what=f"{config.data.path} is learned as it stands, with its braces and commas",
            where="the whole run",
            why="tasks instruct and classify are for records: questions with answers, texts with labels",
            change="",
        )


def _vocabulary(plan: Plan) -> Iterator[Finding]:
    config, size = plan.config, plan.vocab_size or 0
    if config.task == "pretrain" and config.init_from is None and size >= LARGE_VOCABULARY and size % _ALIGNED:
        yield Finding(
            name="vocabulary-not-padded",
            level="note",
            key="model.pad_vocab_to",
            what=f"a vocabulary of {size:,} is not a multiple of {_ALIGNED}",
            where="the embedding and the head",
            why="GPUs multiply matrices of odd widths slower; the ids that are added never occur",
            change=f"model.pad_vocab_to: {-(-size // _ALIGNED) * _ALIGNED}",
        )


def _tokens_per_parameter(plan: Plan) -> Iterator[Finding]:
    if plan.vocab_size is None or plan.config.task != "pretrain":
        return
    total = count_parameters(plan.config.model, plan.vocab_size, plan.seq_len).total
    ratio = plan.batch.tokens_before(plan.num_steps) / total
    if _FEW_TOKENS <= ratio <= _MANY_TOKENS:
        return
    best = f"the {_BEST_RATIO} that use the arithmetic best (Hoffmann et al., 2022)"
    few = ratio < _FEW_TOKENS
    yield Finding(
        name="tokens-per-parameter",
        level="note",
        key="duration",
        what=f"{ratio:.2g} tokens per parameter, far below {best}"
        if few
        else f"{ratio:,.0f} tokens per parameter, far above {best}",
        where="the whole run",
        why="the model can learn its text by heart; a smaller one would learn as much for less work"
        if few
        else "a larger model would learn more for the same work",
        change=f"duration: {short_count(float(f'{_BEST_RATIO * total:.2g}'))} tokens",
    )


_LINTS = (
    rate_lints.ends_early,
    rate_lints.batch_stays_small,
    rate_lints.goes_on,
    rate_lints.zero_at_first,
    rate_lints.zero_at_last,
    rate_lints.minimum,
    rate_lints.peak,
    rate_lints.warmup,
    _frozen,
    _start,
    _clipping,
    _horizon_and_data,
    _passes,
    rate_lints.ends,
    _data,
    _vocabulary,
    _tokens_per_parameter,
)
"""Most important first."""
