"""Proofs to rounding: cutting a batch, other kernels, other evaluation batches, another device. Each from one state.

Gradients are compared at equal weights, not weights after an update: an optimizer that divides by the size of a
gradient makes a whole step of what is rounding in a gradient that is zero (of a key's bias, say).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainwell.fit import deterministic
from trainwell.prove.trace import Trace, follow, names_of_parameters, relative
from trainwell.prove.twins import Twins
from trainwell.prove.verdict import Outcome, skip
from trainwell.run import Run

TOLERANCE = {"fp32": 2e-6, "bf16": 1e-2, "fp16": 2e-3}
"""Relative, of a loss, and of a gradient's difference by the norm of all gradients; by arithmetic of the forward pass.

Sums of float32 in another order differ by a few units of 2^-24; bf16 and fp16 round to 2^-9 and 2^-12.
"""
DRIFT = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2}
"""Relative difference of the loss that is still drift after DRIFT_STEPS: training makes rounding larger."""
DRIFT_STEPS = 20
_STEPS = 3
_ULP = 2.0**-24
_ELSEWHERE = 4
"""Sequences of a batch that also goes through the CPU, where the run is on another device."""


@dataclass(frozen=True)
class Gap:
    """The largest difference there is, as a share; and the first one above `tolerance`, where and in what."""

    tolerance: float
    size: float = 0.0
    step: int | None = None
    name: str | None = None

    def seen(self, size: float, step: int, name: str) -> "Gap":
        """This one, with one more difference; what is no number is larger than any."""
        size = math.inf if math.isnan(size) else size
        if self.step is None and size > self.tolerance:
            return replace(self, size=max(size, self.size), step=step, name=name)
        return replace(self, size=max(size, self.size))

    def outcome(self, precision: str, detail: str) -> Outcome:
        """Whether all that was seen is rounding."""
        level = f"rounding {self.tolerance:g} ({precision})"
        said = f"{detail}; largest difference {self.size:.1e}"
        return Outcome(self.step is None, level, said, self.step, self.name)


def uneven(rows: int) -> int | None:
    """A micro-batch that leaves a rest, about a third of `rows`: equal parts would hide a mean of means."""
    fitting = [size for size in range(max(1, rows // 3), rows) if rows % size]
    return fitting[0] if fitting else (1 if rows > 1 else None)


def micro_batches(twins: Twins) -> Outcome:
    """A batch cut into micro-batches gives the loss and the gradients of the whole."""
    rows = twins.settings.micro_batch
    size = uneven(rows)
    if size is None:
        return skip("a micro-batch is one sequence, and there is nothing to cut; give micro_batch 2 or more")
    same_batch = {"batch_size": rows, "batch_tokens": None, "batch_ramp.from_tokens": None, "model.dropout": 0.0}
    with (
        twins.run("whole", same_batch | {"micro_batch": rows}) as whole,
        twins.run("cut", same_batch | {"micro_batch": size}) as cut,
        _exactly(twins, whole, cut),
    ):
        gap = _gradients(twins, whole, cut)
    detail = f"{_STEPS} steps of {rows} sequences, at once or {size} at a time; dropout 0 for this one"
    return gap.outcome(twins.settings.precision, detail)


def kernels(twins: Twins) -> Outcome:
    """The fast kernels give the loss, the gradients and the update of the plain ones."""
    dropout = {"model.dropout": 0.0}
    with (
        twins.run("auto", {"kernels": "auto", **dropout}) as fast,
        twins.run("reference", {"kernels": "reference", "compile": False, **dropout}) as plain,
        _exactly(twins, fast, plain),
    ):
        gap = _gradients(twins, fast, plain, updates=True)
    detail = f"{_STEPS} steps, loss, gradients, update and moments; dropout 0 for this one"
    return gap.outcome(twins.settings.precision, detail)


def evaluating(twins: Twins) -> Outcome:
    """The validation loss does not depend on how many sequences are evaluated at once."""
    rows = twins.settings.micro_batch
    size = uneven(rows)
    if size is None:
        return skip("a micro-batch is one sequence, and there is nothing to cut; give micro_batch 2 or more")
    found = []
    for name, micro_batch in (("evaluated-whole", rows), ("evaluated-cut", size)):
        with twins.run(name, {"micro_batch": micro_batch, "eval.batches": 2}) as run:
            if run.val is None:
                return skip("there is no validation data")
            with _exactly(twins, run):
                found.append(run.evaluate())
    whole, cut = found
    gap = Gap(TOLERANCE[twins.settings.precision]).seen(relative(whole.loss, cut.loss), 0, "validation loss")
    for name, value in whole.parts.items():
        gap = gap.seen(relative(value, cut.parts.get(name, math.nan)), 0, f"validation {name}")
    gap = gap.seen(0.0 if whole.targets == cut.targets else math.inf, 0, "number of targets")
    detail = f"{whole.targets:,} targets, {rows} sequences at once or {size} at a time: {whole.loss:.6f}"
    return gap.outcome(twins.settings.precision, detail)


def devices(twins: Twins) -> Outcome:
    """The losses of this device stay near those of the CPU; where it is the CPU itself, one thread near all of them."""
    precision = twins.settings.precision
    if twins.settings.device == "cpu":
        if twins.settings.threads == 1:
            return skip("the device is the CPU itself, on one thread: there is nothing else to compare it with")
        with _threads(1):
            there = _losses(twins, "one-thread", {})
        here = _losses(twins, "all-threads", {})
        what = f"the device is the CPU itself: one thread against {twins.settings.threads}"
    else:
        if precision == "fp16":
            precision = "fp32"
        rows = {"batch_size": min(twins.plan.batch.batch_size, _ELSEWHERE), "batch_tokens": None}
        small = rows | {"micro_batch": rows["batch_size"], "batch_ramp.from_tokens": None}
        here = _losses(twins, "here", small)
        there = _losses(twins, "cpu", small | {"device": "cpu", "precision": precision, "compile": False})
        what = f"{twins.settings.device} against the CPU ({precision}), {rows['batch_size']} sequences a step"
    first = relative(here.steps[0].loss, there.steps[0].loss)
    apart = [relative(here.steps[step].loss, there.steps[step].loss) for step in sorted(here.steps)]
    tolerance, limit = TOLERANCE[twins.settings.precision], DRIFT[twins.settings.precision]
    level = f"rounding {tolerance:g} at step 0, drift {limit:g} by step {DRIFT_STEPS - 1}"
    detail = f"{what}; loss differs by {first:.1e} at step 0, {max(apart):.1e} at most; dropout 0 for this one"
    wrong = [step for step, size in enumerate(apart) if not size <= (limit if step else tolerance)]
    return Outcome(not wrong, level, detail, wrong[0] if wrong else None, "loss" if wrong else None)


def _losses(twins: Twins, name: str, changes: dict[str, Any]) -> Trace:
    with twins.run(name, {"duration": DRIFT_STEPS + 2, "model.dropout": 0.0, **changes}) as run:
        twins.without_dropout(run)
        return follow(run, DRIFT_STEPS)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _exactly(twins: Twins, *runs: Run) -> Iterator[None]:
    """Take steps by hand as the loop would: with its algorithms, in training mode; without dropout."""
    with deterministic(twins.settings.deterministic):
        for run in runs:
            twins.without_dropout(run)
            run.model.train()
        yield


def _gradients(twins: Twins, a: Run, b: Run, *, updates: bool = False) -> Gap:
    """The differences of two twins over a few steps, each taken from the weights of the first."""
    gap, names = Gap(TOLERANCE[twins.settings.precision]), names_of_parameters(a)
    for step in range(_STEPS):
        b.model.load_state_dict(a.model.state_dict())
        b.trainer.step = a.trainer.step
        losses = a.trainer.backward(), b.trainer.backward()
        gap = gap.seen(relative(float(losses[0]), float(losses[1])), step, "loss")
        gap = gradient_gap(gap, step, names, gradients_of(a), gradients_of(b))
        if updates:
            _same_gradients(a, b)
            before = [tensor.detach().clone() for tensor in a.trainer.parameters]
            b.trainer.update(losses[0])
        a.trainer.update(losses[0])
        if updates:
            gap = _moment_gap(_update_gap(gap, step, names, before, a, b), step, names, a, b)
    return gap


def gradients_of(run: Run) -> list[Tensor]:
    """The gradients there are, zeros where there is none."""
    return [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.detach() for tensor in run.trainer.parameters
    ]


def gradient_gap(gap: Gap, step: int, names: Sequence[str], a: Sequence[Tensor], b: Sequence[Tensor]) -> Gap:
    """`gap` with the difference of a tensor's gradient, by the norm of all gradients."""
    whole = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in a)) or 1.0
    for name, ours, theirs in zip(names, a, b, strict=True):
        gap = gap.seen(float((ours.double() - theirs.double()).norm()) / whole, step, f"gradient of {name}")
    return gap


def _same_gradients(a: Run, b: Run) -> None:
    """Give the second twin the gradients of the first, so that their updates can be compared."""
    for ours, theirs in zip(a.trainer.parameters, b.trainer.parameters, strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.detach().clone()


def _update_gap(gap: Gap, step: int, names: Sequence[str], before: Sequence[Tensor], a: Run, b: Run) -> Gap:
    """`gap` with the difference of an update, by the update.

    A weight is rounded a few times on its way, so that much of it is no difference.
    """
    for name, start, ours, theirs in zip(names, before, a.trainer.parameters, b.trainer.parameters, strict=True):
        taken = float((ours.detach() - start).norm())
        apart = float((ours.detach() - theirs.detach()).norm()) - 4 * _ULP * float(start.norm())
        if apart > 0:
            gap = gap.seen(apart / taken if taken else math.inf, step, f"update of {name}")
    return gap


def _moment_gap(gap: Gap, step: int, names: Sequence[str], a: Run, b: Run) -> Gap:
    """`gap` with the difference of what the optimizers hold of a tensor, by its norm.

    Of gradients that are rounding themselves the moments are too, so the norm is at least a share of the largest.
    """
    pairs = [
        (f"{kind} of {name}", ours, theirs[kind])
        for name, held, theirs in zip(names, _held(a), _held(b), strict=True)
        for kind, ours in held.items()
        if isinstance(ours, Tensor) and isinstance(theirs.get(kind), Tensor) and ours.numel() > 1
    ]
    largest = max((float(ours.norm()) for _, ours, _ in pairs), default=0.0)
    for name, ours, theirs in pairs:
        apart = float((ours.double() - theirs.double()).norm())
        if apart:
            gap = gap.seen(apart / max(float(ours.norm()), 1e-3 * largest), step, name)
    return gap


def _held(run: Run) -> list[dict[str, Any]]:
    """What the optimizer holds of each tensor that learns."""
    optimizer = run.trainer.optimizer
    states = [getattr(part, "state", {}) for part in getattr(optimizer, "optimizers", (optimizer,))]
    return [next((state[tensor] for state in states if tensor in state), {}) for tensor in run.trainer.parameters]
