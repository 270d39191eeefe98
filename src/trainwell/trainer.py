"""The training step: backward over micro-batches, clip, guard, update. Knows no files, flags, logs or config."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from trainwell import faults
from trainwell.data.batches import BatchSource, MicroBatch
from trainwell.data.examples import IGNORED
from trainwell.data.order import seed_for
from trainwell.distributed.parallel import (
    Shared,
    gradient_sync,
    load_model_state,
    load_optimizer_state,
    local,
    whole,
)
from trainwell.distributed.sums import StepSums
from trainwell.distributed.world import ALONE, World
from trainwell.model.loss import Loss, Parts, token_loss, with_parts
from trainwell.optim.clip import clip_and_update, folds, global_norm
from trainwell.optim.guard import Guard, LossScale, why_spike

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class StepResult:
    """What step `step` (from 0) did.

    `loss` is the mean over all target tokens of the global batch, in nats, before the update; `grad_norm` the global
    L2 norm before clipping; `targets` the number of target tokens; `skipped` whether the update was left out: loss or
    norm was not finite, or leapt out where the guard's policy is to skip; `spike` whether one leapt out, that is, was
    above its value in `thresholds` (loss, norm). On measured steps `update_norm` and `weight_norm` are the L2 norms of
    what the update changed in the trained weights, and of those weights after it. All of these are on the device:
    reading one waits for it. `lr` is the scheduled rate used, `parts` the means of the loss's named parts, `positions`
    the tokens that went through the model here. Of several ranks all but `positions` is of all of them, and the same on
    each; `stop` is how many of them ask to stop, None for a trainer alone.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    targets: Tensor
    skipped: Tensor
    parts: Parts = field(default_factory=dict)
    positions: int = 0
    spike: Tensor | None = None
    update_norm: Tensor | None = None
    weight_norm: Tensor | None = None
    thresholds: Tensor | None = None
    stop: Tensor | None = None


class Trainer:
    """Takes steps. `step` counts global batches consumed; a skipped update is a step whose update did nothing.

    Args:
        model: what the loss calls; the optimizer holds the parameters that are trained.
        optimizer: anything with param_groups, step, zero_grad, state_dict, load_state_dict.
        batches: the global batch as a function of the step.
        schedules: values of param-group keys as functions of the step; each is multiplied by the group's `<key>_scale`.
            A schedule of `weight_decay` leaves groups without decay as they are; one of `momentum` is Adam's first beta
            where a group has betas.
        loss: the sum over a micro-batch's targets; of several ranks a `Shared` one.
        max_grad_norm: clip to this global L2 norm, from step `clip_from` on; None never clips.
        seed: dropout is seeded by (seed, step, first row of the micro-batch); None leaves the global generator alone.
        autocast: bf16 or fp16 for the forward pass, fp16 with dynamic loss scaling; None computes in the weights' type.
        guard: judges each step's loss and norm; None is one that logs spikes.
        world: the ranks that share each step. `batches` then gives this rank's micro-batches, equally many on each;
            every method below but `why_skipped` is called on all ranks, in the same order.

    `measure_every` may be set at any time: every so many steps (0: never) the norms of update and weights are taken.
    That needs a copy of the trained weights during the update, when the activations are gone: backward has the peak.
    `asked` says whether this rank is asked to stop; it is read once a step, where there are several.
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
        guard: Guard | None = None,
        world: World = ALONE,
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
        self.guard = Guard(self.device) if guard is None else guard
        self.world = world
        self._sums = StepSums(world, self.device)
        self.asked: Callable[[], bool] = lambda: False
        self.measure_every = 0
        self.loss_scale = LossScale(self.device) if autocast == torch.float16 else None
        self._autocast = autocast
        self._targets = torch.zeros((), dtype=torch.int64, device=self.device)
        self._parts: Parts = {}
        self._positions = 0
        self._stop: Tensor | None = None

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

        The loss of every micro-batch is divided by the target tokens of the whole batch, those of all ranks, so cutting
        it changes nothing. Returns the loss: that mean, a scalar on the device.
        """
        self.optimizer.zero_grad()
        assert self.world.size == 1 or isinstance(self.loss, Shared), "gradients of several ranks come of a Shared loss"
        micro_batches = self.batches(self.step).micro_batches
        targets = torch.stack([(micro.targets != IGNORED).sum() for micro in micro_batches]).sum()
        self._targets = self.world.sum_(targets)
        self._positions = sum(micro.inputs.numel() for micro in micro_batches)
        divisor = self._targets.clamp(min=1)
        scale = 1 if self.loss_scale is None else self.loss_scale.value
        self._parts = {}
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micro_batches, 1):
            gradient_sync(self.loss, enabled=number == len(micro_batches))
            loss, parts = self._forward(micro)
            loss = loss / divisor
            (loss * scale).backward()
            total = total + loss.detach()
            for name, part in parts.items():
                self._parts[name] = self._parts.get(name, 0) + part.detach() / divisor
        if self.world.size > 1:
            total, self._parts, self._stop = self._sums(total, self._parts, self.asked())
        faults.reach("after_backward", self.step, self.world.rank)
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
        norm = self._agreed(global_norm(self.parameters, scale, fused=folds(self.optimizer)))
        broken, spike, thresholds = self.guard.judge(loss, norm)
        before = self._copy_of_weights() if self.measure_every and self.step % self.measure_every == 0 else None
        clip_and_update(self.optimizer, self.parameters, norm, self.guard.leaves_out(broken, spike), max_norm, scale)
        if self.loss_scale is not None:
            broken = self.loss_scale.adjust(broken, loss)
        skipped = self.guard.count(broken, spike)
        rate = self.schedules["lr"](self.step) if "lr" in self.schedules else self.optimizer.param_groups[0]["lr"]
        update_norm, weight_norm = (None, None) if before is None else self._norms(before)
        result = StepResult(
            step=self.step,
            loss=loss,
            grad_norm=norm,
            lr=float(rate),
            targets=self._targets,
            skipped=skipped,
            parts=self._parts,
            positions=self._positions,
            spike=spike,
            update_norm=update_norm,
            weight_norm=weight_norm,
            thresholds=thresholds,
            stop=self._stop,
        )
        self.step += 1
        faults.reach("after_update", result.step, self.world.rank)
        return result

    def _agreed(self, norm: Tensor) -> Tensor:
        """Rank 0's norm, to the bit: with other threads or processors another rank's differs, and so would its weights.

        A sum of it and of zeros; NaN and infinity stay what they are.
        """
        return self.world.sum_(norm if self.world.main else torch.zeros_like(norm))

    def _set(self, key: str, value: float) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            scaled = value * group.get(f"{key}_scale", 1.0)
            if key == "momentum" and "betas" in group:
                group["betas"] = (scaled, *group["betas"][1:])
            elif key != "weight_decay" or index in self._decayed:
                group[key] = scaled

    def _copy_of_weights(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.parameters]

    @torch.no_grad()
    def _norms(self, before: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The norms of what changed since `before`, which is used up, and of the weights now."""
        torch._foreach_sub_(before, self.parameters)
        return whole(get_total_norm(before)), whole(get_total_norm(self.parameters))

    def why_skipped(self, result: StepResult) -> str:
        """One line on what was not finite in the step just taken, or on what leapt out; empty where neither is so.

        Looks at the gradients, so ask before the next `backward`; reads the device. What was not finite is also noted
        for the guard, whose message at the end of a diverged run names it.
        """
        line = self._what_is_not_finite(result)
        if not line:
            return "" if result.thresholds is None else why_spike(result.loss, result.grad_norm, result.thresholds)
        self.guard.reasons.append(line)
        return line

    def _what_is_not_finite(self, result: StepResult) -> str:
        if not result.loss.isfinite():
            return f"loss is {_word(result.loss)}"
        for name, weight in self.model.named_parameters():
            if weight.grad is not None and not local(weight.grad).isfinite().all():
                return f"gradient of {name} is {_word(local(weight.grad))}"
        overflowed = not result.grad_norm.isfinite()
        if overflowed and self.world.size > 1:
            return (
                f"the norm of the gradients is {_word(result.grad_norm)}: by a part that another rank has, or too large"
            )
        return "gradients are finite, but their norm overflows float32" if overflowed else ""

    def state_dict(self) -> dict[str, Any]:
        """What steps change: weights, optimizer, counters. Randomness and data are functions of the step.

        Of several ranks it is what one process would have, but for tensors of which a rank has a part.
        """
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            **scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, here or on another number of ranks."""
        self.step = state["step"]
        load_model_state(self.model, state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        if self.loss_scale is not None and "loss_scale" in state:  # a run may go on in fp16
            self.loss_scale.load_state_dict(state["loss_scale"])


def _word(tensor: Tensor) -> str:
    return "nan" if tensor.isnan().any() else "inf"
