"""The loss: a sum over target tokens, never a mean, so that how a batch is cut into parts cannot change it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainwell.errors import ConfigError
from trainwell.model.head import HeadLoss

_IGNORED = -100
CHUNK = 1 << 25
"""Logits that `head_loss` holds at a time."""


class Tokens(Protocol):
    """What a loss looks at: token ids and the ids to predict, both (B, T) int64."""

    @property
    def inputs(self) -> Tensor:
        """Ids the model reads."""

    @property
    def targets(self) -> Tensor:
        """Ids it is to predict, -100 where nothing is asked."""


Parts = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Parts]]
"""A SUM over a micro-batch's targets that are not -100; alone, or with named parts of it (sums too) to be logged."""


def token_loss(model: nn.Module, batch: Tokens) -> Tensor:
    """Cross-entropy in nats, summed over the targets of `batch` that are not -100: a scalar, float32 or wider.

    `model` maps ids (B, T) to logits (B, T, V), or to an object that has them as `.logits`. Where the batch has
    `documents` (B, T) they go along.
    """
    return _surprise(_logits(model, batch), batch.targets)


def head_loss(model: nn.Module, batch: Tokens, *, chunk: int = CHUNK) -> Tensor:
    """The loss of `token_loss` without all logits at once, for a model with `.hidden` and `.lm_head`.

    Positions go through the head as many at a time as have `chunk` logits together (at least one; the default is 128
    MiB in float32). Gradients of logits are computed in the forward pass, while the logits are there, on a GPU in the
    same kernel as the loss; they cannot be differentiated again. On a CPU, where it is known which they are, positions
    without a target are left out.
    """
    return _through_head(model, batch, chunk, z_weight=0.0)[0]


def z_loss(weight: float, *, chunk: int | None = None) -> Loss:
    """The loss of `token_loss`, or with a `chunk` that of `head_loss`, plus `weight` times (log Z)^2 at each target.

    Z is the sum of the exponentials of a position's logits, which cross-entropy alone leaves free: it is the same when
    all logits grow together. The z-loss holds Z near 1, and with it the logits where 16 bits are exact (Chowdhery et
    al., 2022, PaLM, section 5, with a weight of 1e-4). It is a sum over targets too. Its parts are the cross-entropy
    `ce` and the weighted `z`, which together are the loss. Outside of training it is the cross-entropy alone, so that
    validation losses, perplexities and bits per byte mean the same with any weight.
    """

    def loss(model: nn.Module, batch: Tokens) -> Tensor | tuple[Tensor, Parts]:
        if not model.training:
            return token_loss(model, batch) if chunk is None else head_loss(model, batch, chunk=chunk)
        if chunk is None:
            entropy, z = _surprise_and_z(_logits(model, batch), batch.targets, weight)
            return entropy + z, {"ce": entropy.detach(), "z": z.detach()}
        total, entropy, z = _through_head(model, batch, chunk, z_weight=weight)
        return total, {"ce": entropy, "z": z}

    return loss


def _through_head(model: nn.Module, batch: Tokens, chunk: int, z_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss a chunk of logits at a time, and what it is the sum of: the cross-entropy and the weighted z-loss."""
    body: Any = model
    targets = batch.targets.flatten()
    counted = None  # to know which they are would be to wait for a GPU: all rows go, and the rest weigh nothing
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        counted = (targets != _IGNORED).nonzero()[:, 0]
    hidden: Tensor = body.hidden(batch.inputs, **_documents(batch)).flatten(0, 1)
    return HeadLoss.apply(  # type: ignore[no-any-return, no-untyped-call]
        hidden,
        body.lm_head.weight,
        counted,
        targets if counted is None else targets[counted],
        _head_dtype(hidden),
        max(1, chunk // len(body.lm_head.weight)),
        z_weight,
        torch.is_grad_enabled(),
    )


def label_loss(labels: Sequence[str]) -> Loss:
    """The loss of a classifier: `token_loss` whose targets are classes, with the targets it got right as `accuracy`.

    Outside of training it also counts, for each of `labels` in order of their numbers, the targets of that class as
    `of/NAME` and those got right as `correct/NAME`.
    """

    def loss(model: nn.Module, batch: Tokens) -> tuple[Tensor, Parts]:
        logits = _logits(model, batch)
        if logits.shape[-1] < len(labels):
            raise ConfigError(
                f"the model gives {logits.shape[-1]} numbers for a token, and there are {len(labels)} labels; give one "
                "with as many outputs as labels"
            )
        right = logits.detach().argmax(dim=2) == batch.targets
        parts = {"accuracy": right.sum().float()}
        for number, name in enumerate([] if model.training else labels):
            mine = batch.targets == number
            parts |= {f"correct/{name}": (right & mine).sum().float(), f"of/{name}": mine.sum().float()}
        return _surprise(logits, batch.targets), parts

    return loss


def with_parts(value: Tensor | tuple[Tensor, Parts]) -> tuple[Tensor, Parts]:
    """The sum and its named parts, whichever form a loss returned."""
    return value if isinstance(value, tuple) else (value, {})


def _documents(batch: Tokens) -> dict[str, Tensor]:
    documents = getattr(batch, "documents", None)
    return {} if documents is None else {"documents": documents}


def _logits(model: nn.Module, batch: Tokens) -> Tensor:
    output: Any = model(batch.inputs, **_documents(batch))
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _surprise(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(_widened(logits).flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum")


def _surprise_and_z(logits: Tensor, targets: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy, and `weight` times the summed squares of log Z where there is a target."""
    wide = _widened(logits)
    log_z = torch.where(targets == _IGNORED, 0, wide.logsumexp(dim=2))
    return _surprise(wide, targets), weight * log_z.square().sum()


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits


def _head_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which a head called on `hidden` would multiply: autocast narrows everything but float64."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype
