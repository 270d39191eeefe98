"""The training step: backward over micro-batches, clip, guard, update. Knows no files, flags, logs or config."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainwell.data.batches import BatchSource, MicroBatch
from trainwell.data.examples import IGNORED
from trainwell.data.order import seed_for
from trainwell.model.loss import Loss, Parts, token_loss, with_parts
from trainwell.optim.clip import clip_and_update
from trainwell.optim.guard import Guard, LossScale

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class StepResult:
    """What step `step` (from 0) did.

    `loss` is the mean over all target tokens of the global batch, in nats, before the update; `grad_norm` the global
    L2 norm before clipping; `targets` the number of target tokens; `skipped` whether the update was left out because
    loss or norm was not finite. These four are scalars on the device: reading one waits for it. `lr` is the scheduled
    rate used, `parts` the means of the loss's named parts, `positions` the tokens that went through the model here.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    targets: Tensor
    skipped: Tensor
    parts: Parts = field(default_factory=dict)
    positions: int = 0


class Trainer:
    """Takes steps. `step` counts global batches consumed; a skipped update is a step whose update did nothing.

    Args:
        model: what the loss calls; the optimizer holds the parameters that are trained.
        optimizer: anything with param_groups, step, zero_grad, state_dict, load_state_dict.
        batches: the global batch as a function of the step.
        schedules: values of param-group keys as functions of the step; each is multiplied by the group's `<key>_scale`.
            A schedule of `weight_decay` leaves groups without decay as they are; one of `momentum` is Adam's first beta
            where a group has betas.
        loss: the sum over a micro-batch's targets.
        max_grad_norm: clip to this global L2 norm, from step `clip_from` on; None never clips.
        seed: dropout is seeded by (seed, step, first row of the micro-batch); None leaves the global generator alone.
        autocast: bf16 or fp16 for the forward pass, fp16 with dynamic loss scaling; None computes in the weights' type.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        batches: BatchSource,
        *,
        schedules: Mapping[str, Schedule],
        loss: Loss = token_loss,
        max_grad_norm: float | None = 1.0,
        clip_from: int = 0,
        seed: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.schedules = schedules
        self.loss = loss
        self.max_grad_norm = max_grad_norm
        self.clip_from = clip_from
        self.seed = seed
        self.step = 0
        self.parameters: list[Tensor] = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        self.device = self.parameters[0].device
        self._decayed = {index for index, group in enumerate(optimizer.param_groups) if group.get("weight_decay")}
        self.guard = Guard(self.device)
        self.loss_scale = LossScale(self.device) if autocast == torch.float16 else None
        self._autocast = autocast
        self._targets = torch.zeros((), dtype=torch.int64, device=self.device)
        self._parts: Parts = {}
        self._positions = 0

    def steps(self, until: int) -> Iterator[StepResult]:
        """Yield each step's result, from the current step up to but not including `until`."""
        self.model.train()
        while self.step < until:
            yield self.take_step()

    def take_step(self) -> StepResult:
        """One optimizer step over one global batch."""
        return self.update(self.backward())

    def backward(self) -> Tensor:
        """Zero, forward and backward over the micro-batches; gradients end as the mean per target token.

        The loss of every micro-batch is divided by the target tokens of the whole batch, so cutting it changes nothing.
        Returns the loss: that mean, a scalar on the device.
        """
        self.optimizer.zero_grad()
        micro_batches = self.batches(self.step).micro_batches
        self._targets = torch.stack([(micro.targets != IGNORED).sum() for micro in micro_batches]).sum()
        self._positions = sum(micro.inputs.numel() for micro in micro_batches)
        divisor = self._targets.clamp(min=1)
        scale = 1 if self.loss_scale is None else self.loss_scale.value
        self._parts = {}
        total = torch.zeros((), device=self.device)
        for micro in micro_batches:
            loss, parts = self._forward(micro)
            loss = loss / divisor
            (loss * scale).backward()
            total = total + loss.detach()
            for name, part in parts.items():
                self._parts[name] = self._parts.get(name, 0) + part.detach() / divisor
        return total

    def _forward(self, micro: MicroBatch) -> tuple[Tensor, Parts]:
        if self.seed is not None:
            torch.manual_seed(seed_for(self.seed, "dropout", self.step, micro.index))
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            return with_parts(self.loss(self.model, micro))

    def update(self, loss: Tensor) -> StepResult:
        """Set the scheduled values, clip, guard, update. Gradients stay, clipped, until the next backward."""
        for key, schedule in self.schedules.items():
            self._set(key, schedule(self.step))
        max_norm = self.max_grad_norm if self.step >= self.clip_from else None
        scale = None if self.loss_scale is None else self.loss_scale.value
        norm, skip = clip_and_update(self.optimizer, self.parameters, loss, max_norm, scale)
        if self.loss_scale is not None:
            skip = self.loss_scale.adjust(skip, loss)
        self.guard.count(skip)
        rate = self.schedules["lr"](self.step) if "lr" in self.schedules else self.optimizer.param_groups[0]["lr"]
        result = StepResult(self.step, loss, norm, float(rate), self._targets, skip, self._parts, self._positions)
        self.step += 1
        return result

    def _set(self, key: str, value: float) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            scaled = value * group.get(f"{key}_scale", 1.0)
            if key == "momentum" and "betas" in group:
                group["betas"] = (scaled, *group["betas"][1:])
            elif key != "weight_decay" or index in self._decayed:
                group[key] = scaled

    def state_dict(self) -> dict[str, Any]:
        """What steps change: weights, optimizer, counters. Randomness and data are functions of the step."""
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            **scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
