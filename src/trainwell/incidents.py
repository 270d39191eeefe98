"""What is measured when a step leaps out or is not finite: the loss of each example, the norms of each tensor.

Only looks: weights, gradients, optimizer, random generators and the data's place are bit for bit as before. Knows a
trainer and a step's result, no run and no file.

The losses are those of the model in its evaluation mode, so without dropout: what is asked is which text is hard, and
not which weights were dropped. A compiled model is called as it was written, so that rows of a new shape compile
nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainwell.data.batches import Batches, Prefetch, cut, stack
from trainwell.data.examples import IGNORED
from trainwell.distributed.parallel import whole
from trainwell.evaluate import evaluating
from trainwell.model.loss import with_parts
from trainwell.runs.incidents import Incident, SampleLoss, TensorNorms
from trainwell.trainer import StepResult, Trainer

MOST_SAMPLES = 64
"""So many examples of a step are measured while a run trains; a replay measures all."""
MOST_CHARACTERS = 2000
"""So much of a text is kept."""
_CHUNK = 1 << 22
"""Elements that are widened to float64 at once, so that no second copy of an embedding is made."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Before:
    """What a step that is about to be taken would change: copies of the weights, and the losses with them."""

    weights: tuple[Tensor, ...]
    samples: tuple[SampleLoss, ...]
    notes: tuple[str, ...]


def look_before(trainer: Trainer, *, autocast: torch.dtype | None = None, decode: Decode | None = None) -> Before:
    """Measure all examples of the step that comes next, and copy the weights, for an exact account of it afterwards."""
    samples, notes = _sample_losses(trainer, trainer.step, autocast, decode, None)
    return Before(tuple(tensor.detach().clone() for tensor in trainer.parameters), samples, notes)


def measure(
    trainer: Trainer,
    result: StepResult,
    *,
    reason: str,
    autocast: torch.dtype | None = None,
    decode: Decode | None = None,
    most: int | None = MOST_SAMPLES,
    before: Before | None = None,
) -> Incident:
    """Measure a step that was taken, best before the next one: after that its gradients are gone, and that is said.

    Args:
        trainer: what took the step.
        result: what the step did.
        reason: one line, what was seen.
        autocast: as the trainer's.
        decode: ids to text; None for data without a tokenizer.
        most: measure the losses of so many examples at most; None measures all.
        before: what was looked at before the step; then update norms are differences of weights, for any optimizer, and
            the losses are those of the weights that the step was taken with.
    """
    loss, norm = float(result.loss), float(result.grad_norm)
    skipped = bool(result.skipped)
    left_out = skipped or not (math.isfinite(loss) and math.isfinite(norm))
    late = trainer.step - result.step - 1
    if before is None:
        samples, notes = _sample_losses(trainer, result.step, autocast, decode, most)
    else:
        samples, notes = before.samples, before.notes
    tensors: tuple[TensorNorms, ...] = ()
    if late:
        notes += (f"norms of single tensors are not known: the step was looked at after step {trainer.step - 1}",)
    else:
        tensors, more = _tensor_norms(trainer, norm, left_out, None if before is None else before.weights)
        notes += more
    source = numbered(trainer.batches)
    return Incident(
        step=result.step,
        reason=reason,
        skipped=skipped,
        loss=loss,
        grad_norm=norm,
        lr=result.lr,
        bounds=_bounds(result),
        windows=None if source is None else tuple(int(index) for index in source.indices(result.step)),
        samples=samples,
        weights=_which_weights(trainer.step, result.step, before is not None or (left_out and not late)),
        tensors=tensors,
        notes=notes,
    )


def numbered(source: object) -> Batches | None:
    """The batches behind a source whose examples have numbers, to be read again without the thread that prefetches."""
    inner = source.source if isinstance(source, Prefetch) else source
    return inner if isinstance(inner, Batches) else None


def _bounds(result: StepResult) -> dict[str, float]:
    """Above which the guard took loss and norm for outliers; without those of which it knew nothing yet."""
    if result.thresholds is None:
        return {}
    named = zip(("loss", "grad_norm"), result.thresholds.tolist(), strict=True)
    return {name: bound for name, bound in named if math.isfinite(bound)}


def _which_weights(state: int, step: int, same: bool) -> str:
    """Of which weights losses are that were measured when the trainer stood at `state`."""
    if same:
        return "the weights that the step was taken with"
    return f"the weights after step {state - 1}" + (", the step's own update included" if state == step + 1 else "")


def _sample_losses(
    trainer: Trainer, step: int, autocast: torch.dtype | None, decode: Decode | None, most: int | None
) -> tuple[tuple[SampleLoss, ...], tuple[str, ...]]:
    """The loss of each example of a step with the weights as they are, the worst first; and what is to be said of it.

    Each example is read anew by its number and goes through the loss alone, a batch of one row.
    """
    if isinstance(trainer.batches, Prefetch):
        trainer.batches.idle()  # a data set may be a file with one place in it
    source = numbered(trainer.batches)
    if source is None:
        return (), ("losses of single examples are not known: this data cannot be read a second time",)
    indices = source.indices(step)
    notes = list[str]()
    if most is not None and len(indices) > most:
        notes.append(f"only the first {most} of {len(indices):,} examples were measured; a replay measures all")
    losses, rows = list[Tensor](), list[tuple[int, int, str | None]]()
    try:
        with _only_looking(trainer, autocast):
            for place in range(len(indices[:most])):
                inputs, targets, documents = stack(source.examples, indices[place : place + 1])
                (micro,) = cut(inputs, targets, 1, trainer.device, documents=documents)
                losses.append(with_parts(trainer.loss(trainer.model, micro))[0].detach().double().cpu())
                asked = (targets[0] != IGNORED).nonzero()[:, 0].tolist()
                text = None if decode is None else decode(inputs[0, : (asked or [0])[-1] + 1].tolist())
                rows.append((place, len(asked), text))
    except (RuntimeError, ValueError, TypeError) as error:  # a loss of the user's own may not take a single row
        return (), (*notes, f"losses of single examples are not known: {type(error).__name__}: {error}")
    if any(len(text or "") > MOST_CHARACTERS for _, _, text in rows):
        notes.append(f"texts are cut after {MOST_CHARACTERS:,} characters")
    found = [
        SampleLoss(
            place=place,
            index=int(indices[place]),
            loss=float(loss) / max(targets, 1),
            targets=targets,
            text=None if text is None else text[:MOST_CHARACTERS],
        )
        for loss, (place, targets, text) in zip(losses, rows, strict=True)
    ]
    return tuple(sorted(found, key=_worst_first)), tuple(notes)


def _worst_first(sample: SampleLoss) -> tuple[bool, float]:
    finite = math.isfinite(sample.loss)
    return finite, -sample.loss if finite else 0.0


@contextmanager
def _only_looking(trainer: Trainer, autocast: torch.dtype | None) -> Iterator[None]:
    """Without gradients, dropout or compiling, with the trainer's precision; random generators as before afterwards."""
    device = trainer.device
    generators = [device.index or torch.cuda.current_device()] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=generators),
        torch.compiler.set_stance("force_eager"),
        evaluating(trainer.model),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        yield


def _tensor_norms(
    trainer: Trainer, grad_norm: float, left_out: bool, before: Sequence[Tensor] | None
) -> tuple[tuple[TensorNorms, ...], tuple[str, ...]]:
    """The norms of each trained tensor, and what is to be said of them.

    An update leaves its gradients clipped; they are told as they were before, when their norm was `grad_norm`.
    """
    names = {id(tensor): name for name, tensor in trainer.model.named_parameters()}
    updates = _updates(trainer, left_out, before)
    facts = [
        (
            None if tensor.grad is None else float(_norm(_itself, tensor.grad)),
            0 if tensor.grad is None else int((~whole(tensor.grad).isfinite()).sum()),
            float(_norm(_itself, tensor)),
        )
        for tensor in trainer.parameters
    ]
    notes = list[str]()
    total = math.sqrt(sum(norm**2 for norm, _, _ in facts if norm is not None))
    known = math.isfinite(total) and math.isfinite(grad_norm) and total > 0
    factor = grad_norm / total if known else 1.0
    if abs(factor - 1) < 1e-3:  # the same norm, summed in another precision
        factor = 1.0
    if not known and trainer.loss_scale is not None:
        notes.append("gradients are those of the loss times the loss scale of fp16")
    if any(update is None for update in updates):
        notes.append("update norms are known for AdamW; a replay measures those of other optimizers")
    found = [
        TensorNorms(
            name=names.get(id(tensor), f"parameter {place}"),
            grad_norm=None if norm is None else norm * factor,
            not_finite=not_finite,
            weight_norm=weight,
            update_norm=update,
        )
        for place, (tensor, (norm, not_finite, weight), update) in enumerate(
            zip(trainer.parameters, facts, updates, strict=True)
        )
    ]
    order = {name: place for place, name in enumerate(names.values())}
    return tuple(sorted(found, key=lambda tensor: order.get(tensor.name, len(order)))), tuple(notes)


def _updates(trainer: Trainer, left_out: bool, before: Sequence[Tensor] | None) -> list[float | None]:
    """The norm of what the step added to each trained tensor."""
    if before is not None:
        pairs = zip(trainer.parameters, before, strict=True)
        return [float(_norm(torch.sub, now, then)) for now, then in pairs]
    if left_out:
        return [0.0] * len(trainer.parameters)
    found = {
        id(tensor): _adamw_update(tensor, optimizer.state[tensor], group)
        for optimizer in getattr(trainer.optimizer, "optimizers", [trainer.optimizer])
        if type(optimizer) is torch.optim.AdamW
        for group in optimizer.param_groups
        if not group["amsgrad"]
        for tensor in group["params"]
        if optimizer.state.get(tensor)
    }
    return [found.get(id(tensor)) for tensor in trainer.parameters]


def _adamw_update(weights: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> float:
    """The norm of AdamW's last update, from the state it left.

    With u = lr m^ / (sqrt(v^) + eps) and w' = (1 - lr wd) w - u (Loshchilov and Hutter, algorithm 2), the difference
    w' - w is -(u + lr wd w') / (1 - lr wd).
    """
    lr, decay, eps = float(group["lr"]), float(group["weight_decay"]), float(group["eps"])
    first, second = (1 - math.pow(beta, float(state["step"])) for beta in group["betas"])

    def added(after: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        update = lr * (mean / first) / ((square / second).sqrt() + eps)
        return (update + lr * decay * after) / (1 - lr * decay)

    return float(_norm(added, weights, state["exp_avg"], state["exp_avg_sq"]))


def _norm(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The L2 norm of an elementwise function of tensors of one shape, in float64; of those that ranks share, whole."""
    flat = [_reachable(whole(tensor.detach())).flatten().split(_CHUNK) for tensor in tensors]
    squares = [function(*(part.double() for part in parts)).square().sum() for parts in zip(*flat, strict=True)]
    total: Tensor = torch.stack(squares).sum()
    return total.sqrt()


def _reachable(tensor: Tensor) -> Tensor:
    """The tensor where float64 is to be had: Apple's devices have none."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor
