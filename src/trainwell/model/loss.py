"""The loss: a sum over target tokens, never a mean, so that how a batch is cut into parts cannot change it."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.functional import cross_entropy


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

    `model` maps ids (B, T) to logits (B, T, V), or to an object that has them as `.logits`.
    """
    output: Any = model(batch.inputs)
    logits: Tensor = getattr(output, "logits", output)
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100, reduction="sum")


def with_parts(value: Tensor | tuple[Tensor, Parts]) -> tuple[Tensor, Parts]:
    """The sum and its named parts, whichever form a loss returned."""
    return value if isinstance(value, tuple) else (value, {})
