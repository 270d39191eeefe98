"""Judges each step by its loss and gradient norm, counts what is left out, and ends a run that leaves out nothing but.

All of it stays on the device, so that judging waits for nothing; it knows no weights and no optimizer. The rule, and
what it was compared with, are in docs/spikes.md.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainwell.errors import DivergedError

IN_A_ROW = 5
"""So many steps one after another that are not finite are a divergence, not an accident; so many spikes are a level."""

MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of normal noise, times this, is its standard deviation."""

FLOORS = (0.01, 0.1)
"""Least spread of losses and of norms, as shares of their medians: however quiet the past, a loss within 10 % of its
median, and a norm within twice its median, is no spike (at k = 10). A loss is a mean over thousands of targets; a norm
doubles in healthy runs, and clipping takes care of that."""

EARLY = (1.5, 10.0)
"""While the window is young, a loss below 1.5 times and a norm below ten times the median so far is no spike."""


class Verdict(NamedTuple):
    """Of a step, on the device: is loss or norm not finite, does one leap out, and the thresholds (2,) of both."""

    broken: Tensor
    spike: Tensor
    thresholds: Tensor


def loss_bound(vocab_size: int | None) -> float | None:
    """What no cross-entropy of a healthy run exceeds, in nats: half as much again as guessing costs, ln V."""
    return None if vocab_size is None else 1.5 * math.log(vocab_size)


class Guard:
    """Finds spikes: a loss or norm above median + k * 1.4826 * MAD of the last `window` accepted ones (Hampel, 1974).

    A spike enters the window as the threshold it exceeded, so that one does not hide the next. What is not finite never
    enters. Spikes that do not end are a new level, or weights that leaving out updates will not cure: after IN_A_ROW of
    them values enter as they are, and `skip` makes the updates again; the median is at the new level within a window
    more. The first value is taken as it comes; until a quarter of the window (8 at least) is filled, the bounds are
    `loss_bound` and EARLY.

    Args:
        device: where the window and the counts live.
        policy: log and stop only mark a spike, and whoever drives the trainer acts on it; skip leaves the update out.
        k: how many robust standard deviations are a spike.
        window: how many accepted steps the medians are of.
        loss_bound: of a young window; None judges no loss before the window is old enough.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        policy: Literal["log", "skip", "stop"] = "log",
        k: float = 10.0,
        window: int = 128,
        loss_bound: float | None = None,
    ) -> None:
        self.policy = policy
        self.reasons: list[str] = []
        self.skipped, self.in_a_row, self.spikes, self.spikes_in_a_row = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(4)
        )
        self.window = torch.full((2, window), math.inf, device=device)  # losses and norms, oldest first; inf is empty
        self._longest = torch.zeros_like(self.in_a_row)  # since the last check, which may be many steps ago
        self._filled = torch.zeros(1, dtype=torch.int64, device=device)
        # Constants lie on the device, so that using one is a single small operation; the table is of the lower median,
        # which is one of the values.
        bound = math.inf if loss_bound is None else loss_bound
        self._infinity = torch.tensor(math.inf, device=device)
        self._whole = torch.full_like(self._filled, window)
        self._middle = ((torch.arange(window + 1, device=device) - 1) // 2).clamp(min=0)
        self._k_sigma = torch.tensor(k * MAD_TO_SIGMA, device=device)
        self._least = k * torch.tensor(FLOORS, device=device)[:, None]
        self._early = torch.tensor(EARLY, device=device)[:, None]
        self._bounds = torch.tensor((bound, 0.0), device=device)[:, None]
        self._enough = max(window // 4, 8)

    def judge(self, loss: Tensor, norm: Tensor) -> Verdict:
        """Judge a step by these scalars of the device, and let them into the window; does not wait for the device."""
        pair = torch.stack((loss.float(), norm.float())).view(2, 1)
        finite = (pair.abs() < self._infinity).all()  # of a NaN no comparison holds
        thresholds = self._thresholds()
        spike = (pair > thresholds).any() & finite
        entry = torch.where(self.spikes_in_a_row >= IN_A_ROW, pair, torch.minimum(pair, thresholds))
        self.window = torch.where(finite, torch.cat((self.window[:, 1:], entry), dim=1), self.window)
        self._filled = torch.minimum(self._filled + finite, self._whole)
        return Verdict(~finite, spike, thresholds.view(2))

    def _thresholds(self) -> Tensor:
        """What the next loss and norm may reach, (2, 1); inf where nothing is known yet."""
        middle = self._middle.index_select(0, self._filled)
        median = self.window.sort(dim=1).values.index_select(1, middle)
        mad = (self.window - median).abs_().sort(dim=1).values.index_select(1, middle)
        old = median + torch.maximum(self._k_sigma * mad, self._least * median.abs())
        young = torch.maximum(self._bounds, self._early * median)
        return torch.where(self._filled < self._enough, young, old)

    def leaves_out(self, broken: Tensor, spike: Tensor) -> Tensor:
        """Whether the update is to be left out, a boolean scalar."""
        return broken | (spike & (self.spikes_in_a_row < IN_A_ROW)) if self.policy == "skip" else broken

    def count(self, broken: Tensor, spike: Tensor) -> Tensor:
        """Count a step; return whether its update was left out. Does not wait for the device."""
        left_out = self.leaves_out(broken, spike)
        self.skipped = self.skipped + left_out
        self.in_a_row = (self.in_a_row + 1) * broken
        self._longest = torch.maximum(self._longest, self.in_a_row)
        self.spikes = self.spikes + spike
        self.spikes_in_a_row = (self.spikes_in_a_row + 1) * spike
        return left_out

    def check(self, step: int) -> None:
        """Raise DivergedError after IN_A_ROW steps that were not finite; reads the device."""
        count, self._longest = int(self._longest), torch.zeros_like(self._longest)
        if count >= IN_A_ROW:
            why = "" if not self.reasons else f" ({'; '.join(dict.fromkeys(self.reasons[-count:]))})"
            raise DivergedError(
                f"{count} steps in a row up to step {step} had a loss or gradient norm that is not finite{why}; no "
                "update was made in them. Lower optim.lr, lengthen schedule.warmup, lower optim.max_grad_norm, or use "
                "a wider precision"
            )
        if count == 0:
            self.reasons.clear()

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the window as a (2, window) tensor."""
        return {
            "skipped": int(self.skipped),
            "in_a_row": int(self.in_a_row),
            "spikes": int(self.spikes),
            "spikes_in_a_row": int(self.spikes_in_a_row),
            "window": self.window,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; a state of counts alone starts an empty window, one of another length keeps its newest values."""
        for name in ("skipped", "in_a_row", "spikes", "spikes_in_a_row"):
            setattr(self, name, torch.full_like(self.skipped, state.get(name, 0)))
        self._longest = torch.zeros_like(self.in_a_row)
        length = self.window.shape[1]
        newest = state["window"][:, -length:] if "window" in state else self.window[:, :0]
        self.window = pad(newest.to(self.window), (length - newest.shape[1], 0), value=math.inf)
        self._filled = (self.window[:1] < math.inf).sum(dim=1)


def why_spike(loss: Tensor, norm: Tensor, thresholds: Tensor) -> str:
    """Say which of a step's loss and norm leapt out, and above what; reads the device."""
    named: Sequence[tuple[str, Tensor]] = (("loss", loss), ("gradient norm", norm))
    above = [
        f"{name} {float(value):.4g} is above {float(threshold):.4g}"
        for (name, value), threshold in zip(named, thresholds, strict=True)
        if value > threshold
    ]
    return ", ".join(above)


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
