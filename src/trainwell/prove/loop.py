"""Proofs about the loop: resuming, observing, rates and steps that are not finite, each by twins that are run."""

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from trainwell.data.batches import MicroBatch
from trainwell.model.loss import Loss, Parts, with_parts
from trainwell.prove.trace import Seen, Trace, first_change, follow, measured, same
from trainwell.prove.twins import Twins
from trainwell.prove.verdict import Outcome
from trainwell.run import Run
from trainwell.runs.metrics import MetricsFile

STEPS = 12
_SAVE_EVERY, _STOPS = 4, (7, 11)
"""Saved every 4 steps, ended in the steps before states 7 and 11: two resumes, each with steps that are lost."""
_OBSERVED, _RATED = 6, 6
_POISONED = 2


def resume(twins: Twins) -> Outcome:
    """A run that is stopped twice and taken up from its checkpoints equals one that was not stopped."""
    saving = {"checkpoint.every": _SAVE_EVERY, "checkpoint.keep": 2}
    with twins.run("uninterrupted", saving) as run:
        straight = follow(run, STEPS)
    pieces = Trace()
    for until in (*_STOPS, STEPS):
        with twins.run("interrupted", saving) as run:
            pieces = follow(run, until, pieces)
    where = " and ".join(str(stop - 1) for stop in _STOPS)
    detail = f"{STEPS} steps, saved every {_SAVE_EVERY}; ended in steps {where} and resumed: losses, weights, optimizer"
    return same(straight, pieces, measured(twins, STEPS), detail)


def observing(twins: Twins) -> Outcome:
    """Evaluating, sampling, logging and saving after every step equals doing none of it."""
    with twins.run("alone") as run:
        alone = follow(run, _OBSERVED)
    tokens = min(twins.config.sample.tokens, 8)
    watched = {
        "eval.every": 1,
        "sample.every": 1,
        "sample.tokens": tokens,
        "checkpoint.every": 1,
        "checkpoint.best": True,
        "log.every": 1,
    }
    with twins.run("watched", watched) as run:
        seen = follow(run, _OBSERVED)
        off = [] if run.val is not None else ["no validation data, so not evaluated"]
        off += [] if run.tokenizer is not None and not run.labels else ["no text, so not sampled"]
    detail = "; ".join([f"{_OBSERVED} steps: after every one evaluated, sampled, logged and saved, or nothing", *off])
    return same(alone, seen, measured(twins, _OBSERVED), detail)


def rates(twins: Twins) -> Outcome:
    """The rate in the optimizer when it updates is the schedule's, and the one that is logged."""
    used: dict[int, list[tuple[float, float]]] = {}
    with twins.run("rates", {"log.every": 1}) as run:
        schedule = twins.given.schedules.get("lr", run.plan.lr)
        _watch_rates(run, used)
        follow(run, _RATED + 1)
    rows = {row["step"]: row["train/lr"] for row in MetricsFile(run.run_dir.metrics_jsonl).read().train}
    detail = f"{_RATED} steps, {schedule(0):.4g} to {schedule(_RATED - 1):.4g}: schedule, optimizer, metrics.jsonl"
    for step in range(_RATED):
        wanted = float(schedule(step))
        logged = rows.get(step)
        groups = used.get(step, [])
        wrong = [
            f"group {place} was updated with {rate:g}"
            for place, (rate, scale) in enumerate(groups)
            if rate != wanted * scale
        ]
        if logged != wanted:
            wrong.append(f"metrics.jsonl says {logged if logged is None else format(logged, 'g')}")
        if wrong:
            said = f"the schedule gives {wanted:g} for step {step}, but {' and '.join(wrong)}"
            return Outcome(False, "bitwise", said, step, "lr")
    return Outcome(True, "bitwise", detail)


def _watch_rates(run: Run, used: dict[int, list[tuple[float, float]]]) -> None:
    """Write down each group's rate and scale when the optimizer updates: before that, where torch lets one look."""
    optimizer = run.trainer.optimizer

    def look(*_: Any) -> None:
        groups = optimizer.param_groups
        used.setdefault(run.trainer.step, [(float(each["lr"]), each.get("lr_scale", 1.0)) for each in groups])

    for part in getattr(optimizer, "optimizers", (optimizer,)):
        if isinstance(part, torch.optim.Optimizer):
            part.register_step_pre_hook(look)


def poisoned(twins: Twins) -> Outcome:
    """A step whose loss is NaN changes no weight, moment or counter; and training goes on after it."""
    with twins.run("poisoned") as run:
        run.trainer.loss = _nan_at(run.trainer.loss, lambda: run.trainer.step == _POISONED)
        seen = follow(run, _POISONED + 2).steps
    before, during, after = (seen[_POISONED + place] for place in (-1, 0, 1))
    changed = first_change(_learned(before), _learned(during))
    if isfinite(during.loss):
        return Outcome(False, "bitwise", "the loss was made NaN and the step reports a finite one", _POISONED, "loss")
    if changed is not None:
        return Outcome(
            False, "bitwise", f"step {_POISONED} had a loss of NaN and changed {changed}", _POISONED, changed
        )
    if not during.skipped:
        return Outcome(
            False, "bitwise", "nothing changed, but the step is not counted as skipped", _POISONED, "skipped"
        )
    moved = first_change(_learned(during), _learned(after))
    if not isfinite(after.loss) or moved is None:
        return Outcome(False, "bitwise", "training did not go on after it", _POISONED + 1, "loss")
    return Outcome(True, "bitwise", f"step {_POISONED} of {_POISONED + 2} had a loss of NaN; the next one trained on")


def _nan_at(loss: Loss, now: Callable[[], bool]) -> Loss:
    """The same loss, but NaN, with gradients that are, when it is time."""

    def of(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Parts]:
        value, parts = with_parts(loss(model, batch))
        return (value * float("nan") if now() else value), parts

    return of


def _learned(seen: Seen) -> dict[str, str]:
    """Weights, moments and the optimizer's counters; its groups' settings are the schedule's."""
    kept = ("model.", "optimizer.")
    return {name: value for name, value in seen.values.items() if name.startswith(kept) and "param_groups" not in name}
