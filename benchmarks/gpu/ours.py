"""trainwell's own step: the Trainer with guard and folded clipping, and the variants of it that are compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from benchmarks.gpu.shapes import Shape, make_tokens
from benchmarks.gpu.timing import Contender, MissingError
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trainwell.compiling import CompiledLoss
from trainwell.data.batches import Batches, MicroBatch, Prefetch, Windows
from trainwell.distributed.parallel import Shared
from trainwell.distributed.world import ALONE
from trainwell.fitting import chunk_on
from trainwell.model.attention import preferring
from trainwell.model.gpt2 import GPT2, init_gpt2
from trainwell.model.loss import head_loss, token_loss
from trainwell.optim.batch_plan import BatchPlan
from trainwell.optim.groups import parameter_groups
from trainwell.optim.guard import Guard, loss_bound
from trainwell.trainer import Trainer

OURS = "trainwell"
PEAK_RATE = 6e-4
WARMUP = 100
DECAY = 0.1
BETAS = (0.9, 0.95)
CLIP = 1.0
SEED = 1337
NUM_TOKENS = 2**22


@dataclass(frozen=True)
class Case:
    """What every contender of a race is given."""

    shape: Shape
    micro_batch: int
    device: torch.device
    compiled: bool

    @property
    def tokens_per_step(self) -> int:
        """One micro-batch is a step."""
        return self.micro_batch * self.shape.seq_len

    @property
    def vocab_in_use(self) -> int:
        """GPT-2's own ids; the rest of a padded vocabulary never occurs."""
        return min(self.shape.vocab, 50257)

    def batches(self) -> Batches:
        """The global batch of a step, the same for all."""
        return Batches(
            self.windows(),
            BatchPlan(self.micro_batch, self.shape.seq_len),
            micro_batch=self.micro_batch,
            seed=SEED,
            device=self.device,
        )

    def windows(self) -> Windows:
        """The texts it is cut from."""
        count = NUM_TOKENS if self.shape.vocab > 2**12 else 2**16
        return Windows(make_tokens(count, self.vocab_in_use), self.shape.seq_len, self.shape.seq_len)

    def rows(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The same batches as inputs and targets (B, T) in numpy, for loops that are not ours."""
        windows, batches, step = self.windows(), self.batches(), 0
        while True:
            inputs, targets, _ = windows.gather(batches.indices(step))
            yield np.ascontiguousarray(inputs), np.ascontiguousarray(targets)
            step += 1


@dataclass(frozen=True)
class How:
    """A variant of ours."""

    loss: Literal["fused", "whole", "chunked", "blocks", "linear"] = "fused"
    """In the compiled graph `head_loss`, or cross-entropy; behind a compiled body, or compiled blocks, `head_loss`; or
    behind a compiled body torch's operation."""
    weights: Literal["autocast", "master"] = "autocast"
    """fp32 weights under bf16 autocast, or bf16 weights with fp32 masters."""
    mode: str | None = None
    """Of torch.compile."""
    attention: str = "sdpa"
    """Torch's choice, or a backend by name."""
    recompute: bool = False
    """Blocks keep their inputs alone, and are computed again in the backward pass."""
    narrow: bool = True
    """The residual path in bf16."""
    engine: Literal["none", "ddp", "fsdp"] = "none"
    """What wraps the loss, in a process group of one."""


AS_IS = How()


def rate(step: int) -> float:
    """A warmup, so that every step has another rate, as in training: nothing may be compiled again for it."""
    return PEAK_RATE * min(1.0, (step + 1) / WARMUP)


def make_model(shape: Shape, device: torch.device) -> GPT2:
    """Drawn on the device, where that takes no time; the same weights for all contenders on it."""
    with torch.device(device):
        model = GPT2(
            vocab_size=shape.vocab,
            seq_len=shape.seq_len,
            num_layers=shape.layers,
            num_heads=shape.heads,
            width=shape.width,
        )
        init_gpt2(model, torch.Generator(device).manual_seed(SEED))
    return model.train()


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """Fused, as all contenders have it."""
    return torch.optim.AdamW(groups, lr=rate(0), betas=BETAS, eps=1e-8, fused=True)


class MasterWeights(torch.optim.AdamW):
    """AdamW on fp32 masters of a bf16 model: gradients move up as they are made, weights down after each step.

    The trainer sees the masters and their fp32 gradients, so that norm, clipping and guard are as ever.
    """

    def __init__(self, model: nn.Module) -> None:
        self._narrow: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        self._wide = [weight.detach().clone() for weight in self._narrow]
        model.to(torch.bfloat16)
        for narrow, wide in zip(self._narrow, self._wide, strict=True):
            wide.requires_grad_()
            narrow.register_post_accumulate_grad_hook(partial(_move_up, wide))
        super().__init__(parameter_groups(self._wide, DECAY), lr=rate(0), betas=BETAS, eps=1e-8, fused=True)

    def step(self, closure: Any = None) -> Any:
        """Update the masters; round them into the model."""
        done = super().step(closure)
        with torch.no_grad():
            torch._foreach_copy_(self._narrow, self._wide)
        return done


def _move_up(wide: Tensor, narrow: Tensor) -> None:
    assert narrow.grad is not None, "the hook runs when there is one"
    grad = narrow.grad.float()
    wide.grad = grad if wide.grad is None else wide.grad + grad
    narrow.grad = None


class _Body:
    """A model as `head_loss` sees it: a body, compiled or not, and a head."""

    def __init__(self, model: GPT2, compiled: Callable[..., Any]) -> None:
        self.training = True
        self.hidden = compiled(model.hidden)
        self.lm_head = model.lm_head


def _linear_loss(body: _Body, batch: MicroBatch) -> Tensor:
    """Head and cross-entropy as one operation of torch, in chunks, on bf16."""
    options = torch.nn.LinearCrossEntropyOptions()
    hidden = body.hidden(batch.inputs).flatten(0, 1).to(torch.bfloat16)
    weight = body.lm_head.weight.to(torch.bfloat16)
    return functional.linear_cross_entropy(
        hidden, weight, batch.targets.flatten(), ignore_index=-100, reduction="sum", options=options
    ).float()


def loss_of(model: GPT2, case: Case, how: How) -> Callable[[Any, MicroBatch], Any]:
    """The summed loss of a micro-batch: a function of model and micro-batch, for this model only."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        if not case.compiled:
            return function
        return torch.compile(function, dynamic=False, fullgraph=True, mode=how.mode)

    at_once = partial(head_loss, chunk=chunk_on(case.device))
    if how.loss == "blocks":
        return CompiledLoss(at_once, model, "blocks", one_graph=False) if case.compiled else at_once
    if how.loss in {"whole", "fused"}:
        whole = compiled(token_loss if how.loss == "whole" else at_once)
        return lambda _model, batch: whole(model, batch)
    if how.loss == "linear" and not hasattr(functional, "linear_cross_entropy"):
        raise MissingError(f"torch {torch.__version__} has no linear_cross_entropy")
    body: Any = _Body(model, compiled)
    loss = head_loss if how.loss == "chunked" else _linear_loss
    return lambda _model, batch: loss(body, batch)


def ours(case: Case, how: How = AS_IS, name: str = OURS) -> Contender:
    """A Trainer on this case; nothing reads its results, as in a run between two log lines."""
    model = make_model(case.shape, case.device)
    model.recompute, model.narrow = how.recompute, how.narrow
    loss = loss_of(model, case, how)
    if how.engine != "none":  # before the optimizer: fsdp leaves it other parameters
        loss = Shared(model, loss, how.engine, ALONE, torch.bfloat16)
    optimizer = MasterWeights(model) if how.weights == "master" else adamw(parameter_groups(model.parameters(), DECAY))
    batches = Prefetch(case.batches())
    trainer = Trainer(
        model,
        optimizer,
        batches,
        schedules={"lr": rate},
        loss=loss,
        max_grad_norm=CLIP,
        seed=SEED,
        autocast=torch.bfloat16 if how.weights == "autocast" else None,
        guard=Guard(case.device, loss_bound=loss_bound(case.shape.vocab)),
    )

    def step() -> Tensor:
        with preferring(how.attention):
            return trainer.take_step().loss

    return Contender(name, step, case.tokens_per_step, batches.close)
