"""What the gradients of a model look like, by parameter; read between a step and the next backward."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class GradientRow:
    """One parameter's gradient: signed extremes, largest magnitude, L2 norm."""

    name: str
    smallest: float
    largest: float
    magnitude: float
    norm: float


class GradientReport(list[GradientRow]):
    """A row for each parameter with a gradient, the largest magnitude first; printed, a table with the total below."""

    @property
    def norm(self) -> float:
        """Global L2 norm: what clipping looks at. 0 without a gradient."""
        return math.sqrt(math.fsum(row.norm**2 for row in self)) if self else 0.0

    @property
    def total(self) -> GradientRow:
        """All parameters as one: signed extremes, largest magnitude and norm over all of them; NaN if one has it."""
        return GradientRow(
            name=f"all {len(self)}",
            smallest=_extreme(min, [row.smallest for row in self]),
            largest=_extreme(max, [row.largest for row in self]),
            magnitude=_extreme(max, [row.magnitude for row in self]),
            norm=self.norm,
        )

    def __str__(self) -> str:
        rows = [*self, self.total]
        width = max(len("parameter"), *(len(row.name) for row in rows))
        head = f"{'parameter':{width}} {'smallest':>11} {'largest':>11} {'magnitude':>11} {'norm':>11}"
        return "\n".join([head, *(_line(row, width) for row in rows)])


def _line(row: GradientRow, width: int) -> str:
    values = (row.smallest, row.largest, row.magnitude, row.norm)
    return " ".join([f"{row.name:{width}}", *(f"{value:11.4g}" for value in values)])


def _extreme(choose: Callable[[list[float]], float], values: list[float]) -> float:
    """The least or the greatest; NaN where there is one, 0 where there is nothing."""
    if any(map(math.isnan, values)):
        return math.nan
    return choose(values) if values else 0.0


def gradient_report(model: nn.Module) -> GradientReport:
    """A row for each parameter with a gradient, the largest magnitude first, NaN before it; waits for the device.

    Where the book's `find_highest_gradient` takes the largest signed value, this has both signs, the names, and norms.
    """
    rows = [
        GradientRow(name, float(grad.min()), float(grad.max()), float(grad.abs().max()), float(grad.norm()))
        for name, grad in ((name, parameter.grad) for name, parameter in model.named_parameters())
        if grad is not None
    ]
    rows.sort(key=lambda row: math.inf if math.isnan(row.magnitude) else row.magnitude, reverse=True)
    return GradientReport(rows)


def largest_gradient(model: nn.Module) -> float:
    """The largest magnitude in any gradient, the sign ignored; 0 where there is none. Waits for the device."""
    largest = [parameter.grad.abs().max() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(largest).max()) if largest else 0.0
