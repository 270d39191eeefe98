"""A stop that any rank may be asked for, and that all make after the same step.

The wish travels with the numbers of a step. On a CPU it is read at once; a GPU is behind the loop, which reads it some
steps later rather than wait, the same number on every rank. Knows no signal and no run.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from trainwell.distributed.sums import BEHIND
from trainwell.distributed.world import World
from trainwell.trainer import StepResult


class Stop:
    """Whether this rank is asked to stop, and whether all have agreed to."""

    def __init__(self, world: World, device: str) -> None:
        self.asked = False
        """Set on one rank, at any moment: from a signal handler too."""
        self.agreed = False
        """The same on all ranks."""
        self._world = world
        self._behind = BEHIND if device == "cuda" else 0
        self._coming: deque[tuple[Tensor, Any]] = deque()

    def after(self, result: StepResult) -> bool:
        """Whether the run ends after this step. Every rank asks after every step."""
        if self._world.size == 1:
            self.agreed = self.agreed or self.asked
        elif result.stop is not None:
            self._coming.append(_on_its_way(result.stop))
            if len(self._coming) > self._behind:
                count, arrived = self._coming.popleft()
                if arrived is not None:
                    arrived.synchronize()
                self.agreed = self.agreed or bool(count)
        return self.agreed

    def now(self) -> bool:
        """Whether any rank is asked to stop; between steps, where nothing else travels. Every rank asks."""
        self.agreed = self.agreed or self._world.any(self.asked)
        return self.agreed


def _on_its_way(count: Tensor) -> tuple[Tensor, Any]:
    """The number on the host, and what to wait for until it is there; None where it is there already."""
    if count.device.type != "cuda":
        return count, None
    host = torch.empty((), dtype=count.dtype, pin_memory=True)
    host.copy_(count, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived
