"""What the gradients of a model look like, by parameter; read between a step and the next backward."""

import math
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


def gradient_report(model: nn.Module) -> list[GradientRow]:
    """A row for each parameter with a gradient, the largest magnitude first, NaN before it; waits for the device."""
    rows = [
        GradientRow(name, float(grad.min()), float(grad.max()), float(grad.abs().max()), float(grad.norm()))
        for name, grad in ((name, parameter.grad) for name, parameter in model.named_parameters())
        if grad is not None
    ]
    return sorted(rows, key=lambda row: math.inf if math.isnan(row.magnitude) else row.magnitude, reverse=True)


def largest_gradient(model: nn.Module) -> float:
    """The largest magnitude in any gradient, the sign ignored; 0 where there is none. Waits for the device."""
    largest = [parameter.grad.abs().max() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(largest).max()) if largest else 0.0
