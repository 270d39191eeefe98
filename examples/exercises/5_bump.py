"""Exercise 5: after each resume the loss has a bump, and then is as if nothing had been.

python examples/exercises/5_bump.py
"""

from typing import Any

import torch
from torch import nn

import trainwell as tw


class Optimizer(torch.optim.AdamW):
    """AdamW that keeps the rate of its configuration when a checkpoint has another."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, without the settings of the checkpoint."""
        super().load_state_dict(self.state_dict())


def optimizer(model: nn.Module) -> Optimizer:
    """Made when the model is there, as `demo` has it."""
    return Optimizer(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)


if __name__ == "__main__":
    tw.cli.main(["check", "demo", "--prove", "--small"], optimizer=optimizer)
