"""What is asked of a contestant, and what it notes step by step."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.cases import BETAS, EPS, WEIGHT_DECAY, Case, Examples, open_tokens
from torch import Tensor
from torch.nn import Module


class NotMeasuredError(Exception):
    """This contestant has no such form; the message says why."""


@dataclass(frozen=True)
class Job:
    """One process' work: `steps` steps of a case in a precision; `ours` is whether our global settings are on."""

    case: Case
    precision: str
    ours: bool
    steps: int
    folder: Path
    nanogpt: Path | None = None

    @property
    def autocast(self) -> Any:
        """A context for the forward pass; it does nothing in fp32."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def examples(self) -> Examples:
        """The rows of all steps, in order."""
        return Examples(open_tokens(self.folder), self.case.seq_len, self.steps * self.case.batch_size)

    def loader(self) -> Any:
        """The same as most documentation shows it."""
        return torch.utils.data.DataLoader(self.examples(), batch_size=self.case.batch_size, shuffle=False)  # type: ignore[arg-type]

    def groups(self, model: Module) -> list[dict[str, Any]]:
        """Matrices decay, vectors do not: what transformers and nanoGPT do by themselves."""
        tensors = list(model.parameters())
        return [
            {"params": [tensor for tensor in tensors if tensor.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [tensor for tensor in tensors if tensor.dim() < 2], "weight_decay": 0.0},
        ]

    def adamw(self, model: Module, *, fused: bool | None = None) -> torch.optim.AdamW:
        """AdamW of the common figures: as the contestant says; if it says nothing, fused where our settings are on."""
        fused = True if self.ours and fused is None else fused
        return torch.optim.AdamW(self.groups(model), lr=self.case.lr, betas=BETAS, eps=EPS, fused=fused)


@dataclass
class Clock:
    """Times of the ends of steps, and what the steps gave. `started` is when the process was asked for, Unix time."""

    started: float
    first_step_s: float = 0.0
    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def step(self, loss: Tensor | float, norm: Tensor | float | None = None, wait_s: float | None = None) -> None:
        """A step is over: its loss, the norm of its gradients before they were clipped, and its wait for data."""
        self.losses.append(float(loss))
        if norm is not None:
            self.norms.append(float(norm))
        if wait_s is not None:
            self.waits.append(wait_s)
        self.ends.append(time.perf_counter())
        if len(self.ends) == 1:
            self.first_step_s = time.time() - self.started

    def seconds(self, warm_up: int) -> list[float]:
        """Seconds of each step after the first `warm_up`, end to end, so that nothing between steps is left out."""
        return [after - before for before, after in pairwise(self.ends[max(warm_up, 1) - 1 :])]
