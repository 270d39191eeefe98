"""Exercise 2: one NaN, and the run never takes another step. Taken up from its last checkpoint it does.

python examples/exercises/2_baggage.py
"""

import torch
from torch import nn

import trainwell as tw


class Optimizer(torch.optim.AdamW):
    """AdamW that saves the time of filling gradients with zeros."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Backward writes the gradients anyway."""


def optimizer(model: nn.Module) -> Optimizer:
    """Made when the model is there, as `demo` has it."""
    return Optimizer(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)


if __name__ == "__main__":
    tw.cli.main(["check", "demo", "--prove", "--small"], optimizer=optimizer)
