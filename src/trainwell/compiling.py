"""torch.compile for training: what becomes one graph, where compiled code is kept, and when compiling pays.

Knows models and losses, but no configuration. Training alone is compiled: evaluating and generating call the model as
it was written, whose parameters, names and state are what they were. Measurements are in docs/performance.md.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainwell.data.batches import MicroBatch, Rows
from trainwell.errors import ConfigError
from trainwell.model.decoder import Decoder
from trainwell.model.loss import Loss, Parts, with_parts
from trainwell.runs.mirror import cache_folder

How = Literal[True, "blocks", "max-autotune"]
"""The whole model, with its loss where that can be; each block by itself; or the whole with kernels that are raced."""

Backend = str | Callable[..., Any]

_PAID_BACK = 2
"""Compiling pays when it saves so many times what it takes: both sides are guesses, and only one of them is certain."""


@dataclass(frozen=True)
class Expected:
    """What compiling is expected to bring and to take."""

    gain: float
    """Steps a second over those of the eager model."""
    seconds: float
    """Time until the first step is compiled, with nothing on the disk."""


ON_CUDA = Expected(gain=1.2, seconds=60)
"""On an H200 the gain was 1.29 for gpt2-124m, 1.23 for gpt3-350m and 1.13 for llama-1b; 124M took 27 s to compile."""


class Compiled:
    """A model as a loss sees it, compiled: called whole or by its `.hidden`; itself for all others."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self._model = model
        self._whole = torch.compile(model, **options)
        body: Any = getattr(model, "hidden", None)
        if callable(body):
            self.hidden = torch.compile(body, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self._whole(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class CompiledLoss:
    """A loss with the training of one model compiled; of another model, or without gradients, it is as it was.

    Args:
        loss: the loss.
        model: the model whose training is compiled.
        how: what becomes one graph. `blocks` needs a Decoder, whose blocks then share one piece of code; any other
            model is compiled whole.
        one_graph: whether the loss itself can be part of the graph: it looks at a batch's ids, targets and documents
            only, calls the model once, and reads nothing back from the device. Otherwise the model is compiled, or the
            body of it that the loss asks for, and the loss is not.
        shapes_vary: whether micro-batches have several shapes, so that one piece of code is made for all of them.
            Otherwise each new shape is compiled anew.
        say: told in one line that torch could not compile, and training goes on without; None raises ConfigError.
        backend: torch.compile's.
    """

    def __init__(
        self,
        loss: Loss,
        model: nn.Module,
        how: How = True,
        *,
        one_graph: bool,
        shapes_vary: bool = False,
        say: Callable[[str], None] | None = None,
        backend: Backend = "inductor",
    ) -> None:
        self.eager = loss
        self._model = model
        self._say = say
        self._tried = False
        options: dict[str, Any] = {"dynamic": shapes_vary, "backend": backend}
        if how == "max-autotune":
            options["mode"] = "max-autotune-no-cudagraphs"  # graphs of CUDA keep a second copy of what enters them
        self._undo: Callable[[], None] = lambda: None
        self._training = self._compiled(how, one_graph, options)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor | tuple[Tensor, Parts]:
        """The loss of a micro-batch."""
        if model is not self._model or not model.training or not torch.is_grad_enabled():
            return self.eager(model, batch)
        if self._tried:
            return self._training(batch)
        on_cuda = batch.inputs.device.type == "cuda"
        before = torch.get_rng_state(), torch.cuda.get_rng_state() if on_cuda else None
        try:
            value = self._training(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._give_up(error)
            torch.set_rng_state(before[0])  # what failed may have drawn before it did
            if before[1] is not None:
                torch.cuda.set_rng_state(before[1])
            value = self._training(batch)
        self._tried = True
        return value

    def prepare(self, batch: MicroBatch, autocast: torch.dtype | None) -> None:
        """Compile before step 1, with a micro-batch as training has them: forward, backward, and nothing of it kept.

        Random generators and gradients are left as they are. Raises ConfigError, or says, what the class describes.
        """
        parameters = [tensor for tensor in self._model.parameters() if tensor.requires_grad]
        device, training = parameters[0].device, self._model.training
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        self._model.train()
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.autocast(device.type, autocast, enabled=autocast is not None),
            ):
                value, _ = with_parts(self(self._model, batch))
            torch.autograd.grad(value, parameters, allow_unused=True)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._give_up(error)
        finally:
            self._model.train(training)
            for buffer, before in buffers:
                buffer.copy_(before)

    def _give_up(self, error: Exception) -> None:
        if self._say is None:
            raise ConfigError(f"compile: {_why(error)}; give compile false to train without") from error
        self._say(f"torch could not compile the model, which is trained without: {_why(error)}")
        self._training = self._without
        self._undo()

    def _compiled(
        self, how: How, one_graph: bool, options: dict[str, Any]
    ) -> Callable[[Any], Tensor | tuple[Tensor, Parts]]:
        loss, model = self.eager, self._model
        if how == "blocks" and isinstance(model, Decoder):
            self._undo = _compile_blocks(model, options)
            return self._without
        if not one_graph:
            compiled: Any = Compiled(model, **options)
            return lambda batch: loss(compiled, batch)

        def together(inputs: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor | tuple[Tensor, Parts]:
            return loss(model, Rows(inputs, targets, documents))

        fused = torch.compile(together, **options)
        return lambda batch: fused(batch.inputs, batch.targets, getattr(batch, "documents", None))

    def _without(self, batch: Any) -> Tensor | tuple[Tensor, Parts]:
        return self.eager(self._model, batch)


def _compile_blocks(model: Decoder, options: dict[str, Any]) -> Callable[[], None]:
    """Compile what a block does in training, once for all of them; what is returned takes that back.

    A block keeps its weights and gets another class, so that a copy of the model is one of its own.
    """
    plain = type(model.blocks[0])
    faster: Any = _trained_faster(plain, torch.compile(plain.forward, **options))
    for block in model.blocks:
        block.__class__ = faster

    def undo() -> None:
        faster.forward = plain.forward  # fsdp may have made another class of this one

    return undo


def _trained_faster(plain: type[nn.Module], compiled: Callable[..., Any]) -> type[nn.Module]:
    """A kind of block that is compiled where gradients are wanted of fresh keys, and as it was written elsewhere.

    The number of the layer says where in a cache its keys are; there being none, all blocks get the same number.
    """

    def forward(self: nn.Module, x: Tensor, layer: int, cache: Any, *shared: Any) -> Any:
        if self.training and cache is None and torch.is_grad_enabled():
            return compiled(self, x, 0, None, *shared)
        return plain.forward(self, x, layer, cache, *shared)

    return type(plain.__name__, (plain,), {"forward": forward, "__doc__": plain.__doc__})


def keep_on_disk() -> None:
    """Keep compiled code in trainwell's cache, so that the same run starts in seconds the next time.

    Where TORCHINDUCTOR_CACHE_DIR is set it stays there.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder().absolute() / "compiled"))


def worth_compiling(steps_left: int, seconds_per_step: float, gain: float, seconds: float) -> bool:
    """Whether compiling for `seconds` is paid back twice over by the steps that are left.

    An eager step takes `seconds_per_step`, a compiled one that over the `gain`: n steps save n s (1 - 1 / gain).
    """
    saved = steps_left * seconds_per_step * (1 - 1 / gain)
    return saved > _PAID_BACK * seconds


def _why(error: Exception) -> str:
    """The reason in a line, without torch's advice about its logs."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.endswith("raised:")]
    return reasons[0].rstrip(".:") if reasons else type(error).__name__
