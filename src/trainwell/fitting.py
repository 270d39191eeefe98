"""The largest micro-batch that a GPU has memory for, found by trying it on the first batch, twice as many at a time.

Knows the trainer, no run and no configuration. It changes nothing of a run: not its weights, optimizer or randomness.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trainwell.data.batches import Batch, MicroBatch
from trainwell.model.loss import CHUNK
from trainwell.planning.hardware import logits_at_once
from trainwell.trainer import Trainer

MARGIN = 0.08
"""Share of a GPU's memory that a trial may not use: holes between blocks, kernels that choose other workspaces."""


def chunk_on(device: torch.device) -> int:
    """Logits that go through the loss together on a device."""
    if device.type != "cuda":
        return CHUNK
    return logits_at_once(torch.cuda.get_device_properties(device).total_memory)


def largest_micro_batch(
    try_one: Callable[[int], None], largest: int, start: int = 1, *, later: int = 0, margin: float = MARGIN
) -> int:
    """The most sequences that fit: `start`, doubled until memory runs out, but at most `largest`; then back one.

    Where not even `start` fits it is halved. The answer is at least 1: whether that fits is found out by training.
    What trials took of the memory is given back.

    Args:
        try_one: goes forward and backward with so many sequences and drops the gradients; `trial` makes it. What it
            raises for want of memory is torch.OutOfMemoryError; anything else passes through.
        largest: sequences of a whole batch.
        start: tried first.
        later: bytes that a run holds from its first update on, and not yet: the state of the optimizer.
        margin: share of the memory that stays free besides.
    """
    try:
        with _limited(later, margin):
            return doubled(lambda size: _has_memory_for(try_one, size), largest, start)
    finally:
        _give_back()


def doubled(fits: Callable[[int], bool], largest: int, start: int = 1) -> int:
    """The last of `start`, 2 `start`, 4 `start`, ..., `largest` before one that does not fit; or halved, down to 1."""
    size = min(start, largest)
    if fits(size):
        while size < largest and fits(min(2 * size, largest)):
            size = min(2 * size, largest)
        return size
    size //= 2
    while size > 1 and not fits(size):
        size //= 2
    return max(size, 1)


def trial(trainer: Trainer, first: MicroBatch) -> Callable[[int], None]:
    """What `largest_micro_batch` tries: as many rows of `first`, all of a batch, forward and backward as in a step.

    They go through twice, since from a step's second micro-batch on the gradients are there while activations are, and
    with a target at every token, since other batches may have more than the first. Afterwards the trainer is as before.
    """
    device = trainer.device

    def try_one(size: int) -> None:
        documents = None if first.documents is None else first.documents[:size]
        micro = MicroBatch(first.inputs[:size], first.targets[:size].clamp(min=0), 0, documents)
        batches, training = trainer.batches, trainer.model.training
        buffers = [(buffer, buffer.clone()) for buffer in trainer.model.buffers()]
        trainer.batches = lambda _step: Batch((micro, micro), 0, 0.0)
        trainer.model.train()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                trainer.backward()
        finally:
            trainer.optimizer.zero_grad()
            trainer.model.train(training)
            trainer.batches = batches
            for buffer, before in buffers:
                buffer.copy_(before)

    return try_one


def allowed_share(free: int, reserved: int, total: int, later: int, margin: float) -> float:
    """Share of a device's `total` bytes that trials may reserve.

    That is what the process has `reserved` and what is `free`, other processes aside, less what it will hold `later`
    and the `margin`.
    """
    return min(1.0, max(0.0, (reserved + free - later) / total - margin))


def _has_memory_for(try_one: Callable[[int], None], size: int) -> bool:
    try:
        try_one(size)
    except torch.OutOfMemoryError:
        pass
    else:
        return True
    _give_back()  # now that the error is gone, which held what was being computed
    return False


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def _limited(later: int, margin: float) -> Iterator[None]:
    """Inside, torch runs out of a GPU's memory when `later` and the margin are left; elsewhere no limit is set."""
    if not torch.cuda.is_initialized():
        yield
        return
    _give_back()
    free, total = torch.cuda.mem_get_info()
    before = torch.cuda.get_per_process_memory_fraction()
    share = allowed_share(free, torch.cuda.memory_reserved(), total, later, margin)
    torch.cuda.set_per_process_memory_fraction(min(before, share))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before)
