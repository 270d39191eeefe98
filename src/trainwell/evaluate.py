"""Validation: the loss per target token on the same examples each time, with no effect on training."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log

import torch
from torch import Tensor, nn

from trainwell.data.batches import MicroBatch
from trainwell.data.examples import IGNORED
from trainwell.distributed.sums import agreed_names
from trainwell.distributed.world import ALONE, World
from trainwell.model.loss import Loss, Parts, token_loss, with_parts


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per target token, over `targets` of them, NaN over none; `bits_per_byte` if bytes are known.

    `parts` are the loss's named parts per target, and whatever else was measured: `accuracy`, `accuracy/ham`.
    """

    loss: float
    targets: int
    bits_per_byte: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluate(
    model: nn.Module,
    batches: Callable[[], Iterable[MicroBatch]],
    loss: Loss = token_loss,
    *,
    autocast: torch.dtype | None = None,
    bytes_per_token: float | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Evaluate `model` over the micro-batches that `batches()` yields: a token-weighted mean, summed in float64.

    Dropout is off and no random number is drawn. bits per byte = loss / ln 2 / bytes_per_token. In a `world` of several
    ranks each yields its share, equally many micro-batches, and all get the mean over the shares of all.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    sums: Parts = {}
    targets = torch.zeros((), dtype=torch.int64, device=device)
    with evaluating(model), torch.autocast(device.type, autocast, enabled=autocast is not None):
        for batch in batches():
            value, parts = with_parts(loss(model, batch))
            total += value.double()
            sums |= {name: sums.get(name, 0) + part.double() for name, part in parts.items()}
            targets += (batch.targets != IGNORED).sum()
    if world.size > 1:
        total, sums, targets = _over_all(world, total, sums, targets)
    mean = float(total / targets)
    bits = None if bytes_per_token is None else mean / log(2) / bytes_per_token
    return Evaluation(mean, int(targets), bits, _per_label({name: float(sums[name] / targets) for name in sums}))


def _over_all(world: World, total: Tensor, sums: Parts, targets: Tensor) -> tuple[Tensor, Parts, Tensor]:
    """The same sums over the micro-batches of all ranks; counts are exact up to 2**53.

    Raises ConfigError on all ranks where the parts have different names.
    """
    names = agreed_names(world, sums)
    added = world.sum_(torch.stack([total, targets.double(), *(sums[name] for name in names)]))
    return added[0], dict(zip(names, added[2:], strict=True)), added[1]


def _per_label(parts: dict[str, float]) -> dict[str, float]:
    """The same with `correct/NAME` over `of/NAME`, both of one class, as `accuracy/NAME`; NaN for no example of it."""
    classes = [name[3:] for name in parts if name.startswith("of/") and f"correct/{name[3:]}" in parts]
    found = {name: value for name, value in parts.items() if name.partition("/")[2] not in classes}
    for name in classes:
        there = parts[f"of/{name}"]
        found[f"accuracy/{name}"] = parts[f"correct/{name}"] / there if there else math.nan
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and with dropout off; leaves every module in the mode it was in, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(modes[0][1])  # the model first: its own `train` may do more than set the mode
        for module, mode in modes:
            module.training = mode
