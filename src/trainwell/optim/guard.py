"""Counts updates that were skipped, and ends a run that skips nothing but; the counters live on the device."""

import torch
from torch import Tensor

from trainwell.errors import DivergedError

IN_A_ROW = 5
"""So many skipped updates one after another are a divergence, not an accident."""


class Guard:
    """How many updates were skipped, in all and without a break."""

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def count(self, skip: Tensor) -> None:
        """Take one step's verdict, a boolean scalar; does not wait for the device."""
        self.skipped = self.skipped + skip
        self.in_a_row = (self.in_a_row + 1) * skip

    def check(self, step: int) -> None:
        """Raise DivergedError after IN_A_ROW skipped updates; reads the device."""
        count = int(self.in_a_row)
        if count >= IN_A_ROW:
            raise DivergedError(
                f"{count} steps in a row up to step {step} had a loss or gradient norm that is not finite; no update "
                "was made in them. Lower optim.lr, lengthen schedule.warmup, lower optim.max_grad_norm, or use a wider "
                "precision"
            )

    def state_dict(self) -> dict[str, int]:
        """Both counts."""
        return {"skipped": int(self.skipped), "in_a_row": int(self.in_a_row)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore both counts."""
        self.skipped.fill_(state["skipped"])
        self.in_a_row.fill_(state["in_a_row"])


class LossScale:
    """Dynamic scaling for fp16: halved when a gradient overflows, doubled after `patience` steps that did not.

    Its overflows are counted here, apart from the guard's: they only lower the scale.
    """

    def __init__(self, device: torch.device, initial: float = 2.0**16, patience: int = 2000) -> None:
        self.value = torch.full((), initial, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.overflows = torch.zeros((), dtype=torch.int64, device=device)
        self.patience = patience

    def adjust(self, skip: Tensor, loss: Tensor) -> Tensor:
        """Move the scale after a step; return whether the skip was more than an overflow that a lower scale cures."""
        overflow = skip & loss.isfinite() & (self.value > 1)
        self.overflows = self.overflows + overflow
        self.good_steps = torch.where(skip, 0, self.good_steps + 1)
        grown = torch.where(self.good_steps >= self.patience, self.value * 2, self.value)
        self.good_steps = torch.where(self.good_steps >= self.patience, 0, self.good_steps)
        self.value = torch.where(overflow, (self.value / 2).clamp(min=1), grown)
        return skip & ~overflow

    def state_dict(self) -> dict[str, float]:
        """Scale and counts."""
        return {"value": float(self.value), "good_steps": int(self.good_steps), "overflows": int(self.overflows)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore scale and counts."""
        self.value.fill_(state["value"])
        self.good_steps.fill_(int(state["good_steps"]))
        self.overflows.fill_(int(state["overflows"]))
