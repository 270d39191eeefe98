"""Before step 1: do once what will be needed later, so that faults show now and not at step 500.

Nothing is recorded, and nothing that training depends on changes.
"""

import math
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainwell.checkpoint.layout import write_synced
from trainwell.checkpoint.store import why
from trainwell.compiling import CompiledLoss
from trainwell.data.batches import MicroBatch, Prefetch
from trainwell.errors import StorageError
from trainwell.evaluate import evaluate
from trainwell.planning.memory import in_bytes
from trainwell.runs.console import short_time

if TYPE_CHECKING:
    from trainwell.run import Run

_BACKWARD_AND_UPDATE = 3.2
"""A training step takes about so many times its forward pass."""


def rehearse(run: "Run") -> None:
    """Take the memory to save from; see that there is room and right to save; draw a token, evaluate a batch.

    Raises StorageError for a folder that cannot be written or cannot take what the run will save.
    """
    run.saver.prepare()
    # a stream's batch would be used up, and with fsdp a gradient travels as soon as it is there
    if isinstance(run.loss, CompiledLoss) and isinstance(run.batches, Prefetch) and run.settings.parallel != "fsdp":
        run.loss.prepare(run.batches.source(run.trainer.step).micro_batches[0], run.settings.autocast)
    _save(run)
    if run.samples:
        run.generate(1)
    if run.val is not None:
        _evaluate(run, next(iter(run.val())))


def _save(run: "Run") -> None:
    """Write a checkpoint of the state as it is, and a file as large as one will be; see that all that are kept fit.

    Of several ranks the first writes its own part, for all.
    """
    size = run.saver.estimate(all_ranks=True)
    run.world.from_main(lambda: _try_disk(run, size))


def _try_disk(run: "Run", size: int) -> None:
    folder = run.run_dir.path
    more = run.saver.store.to_come(run.trainer.step, run.num_steps) + run.config.checkpoint.best
    trial = folder / ".rehearsal"
    _remove(trial)
    try:
        trial.mkdir()
        _allocate(trial / "size", size)
        run.saver.rehearse(trial)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot take a checkpoint of {in_bytes(size)}: {why(error)}"
            if trial.exists()
            else f"{folder} cannot be written: {error}; choose another folder with --run"
        ) from error
    finally:
        _remove(trial)
    check_room(folder, shutil.disk_usage(folder).free, size, more)


def check_room(folder: Path, free: int, size: int, more: int) -> None:
    """Raise StorageError unless `more` checkpoints of `size` bytes fit into the `free` bytes of a folder's disk."""
    if free < more * size:
        raise StorageError(
            f"{folder} has {in_bytes(free)} free, and this run needs room for {more} more checkpoints of "
            f"{in_bytes(size)}: free some, lower --checkpoint.keep, or train into a folder on another disk with --run"
        )


def _allocate(path: Path, size: int) -> None:
    """Give a file its full size, where the system can do that without writing it."""
    write_synced(path, bytes(4096))
    if hasattr(os, "posix_fallocate") and size:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


def _remove(trial: Path) -> None:
    """Remove the folder of a rehearsal, a file of an older one too; what cannot be is what the message is about."""
    shutil.rmtree(trial, ignore_errors=True)
    with suppress(OSError):
        trial.unlink(missing_ok=True)


def _evaluate(run: "Run", first: MicroBatch) -> None:
    seconds = math.inf
    for _ in range(2):
        begin = time.perf_counter()
        evaluate(run.model, lambda: [first], run.loss, autocast=run.settings.autocast, world=run.world)
        seconds = min(seconds, time.perf_counter() - begin)
    before = run.plan.batch.examples_before
    at_once = run.settings.micro_batch * run.world.size
    micro_batches = (before(run.num_steps) - before(run.trainer.step)) / at_once
    left = micro_batches * seconds * _BACKWARD_AND_UPDATE
    run.console.message(f"about {short_time(left)} to go, judged by one forward pass")
