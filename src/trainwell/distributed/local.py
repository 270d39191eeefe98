"""Several processes on this machine, joined by gloo: for proofs and tests of what ranks do together.

Knows processes and their end, no training. Torch is imported in the processes that it starts, not here.
"""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PATIENCE_S = 5.0
"""So long a process has to end by itself before it is killed."""
_IMPORTED = ["torch", "torch.distributed.fsdp"]
"""What takes seconds to import, and is done once for all processes."""


class RankError(RuntimeError):
    """A process failed, ended without a word, or took too long; the message has its traceback."""


class CannotSendError(RankError):
    """The function or an argument cannot be sent to another process."""


@dataclass(frozen=True)
class _Rank:
    number: int
    process: BaseProcess
    pipe: Connection


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `fn(rank, world_size, *args)` in `world_size` processes, and return what each returned, in order of ranks.

    In each, `torch.distributed` is initialised with gloo and the cores are shared out evenly. `fn` is defined at the
    top level of a module that can be imported; it, its arguments and its result can be sent to another process.

    Raises:
        RankError: with the traceback of the rank that failed first; also where that takes longer than `timeout_s`.
        CannotSendError: for a function or an argument that cannot be sent.
    """
    if world_size < 1:
        raise ValueError(f"world_size: {world_size} is no number of processes; give at least 1")
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="trainwell-ranks-") as folder:
        try:
            for number in range(world_size):
                ranks.append(_start(fn, number, world_size, Path(folder) / "store", args, timeout_s))
            return _collect(ranks, timeout_s)
        finally:
            _end(ranks)


def _start(
    fn: Callable[..., Any], number: int, world_size: int, store: Path, args: Sequence[Any], timeout_s: float
) -> _Rank:
    # a fork of this process would inherit torch's threads, and hang; one of a server that only imports has none
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload(_IMPORTED)
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_rank,
        args=(dict(os.environ), theirs, fn, number, world_size, str(store), args, timeout_s),
        name=f"trainwell-rank-{number}",
        daemon=True,
    )
    try:
        process.start()
    except (AttributeError, TypeError, ValueError) as error:
        raise _cannot_send(fn, error) from error
    except Exception as error:
        if type(error).__name__ != "PicklingError":  # the class is multiprocessing's own affair
            raise
        raise _cannot_send(fn, error) from error
    theirs.close()
    return _Rank(number, process, ours)


def _cannot_send(fn: Callable[..., Any], error: Exception) -> CannotSendError:
    name = getattr(fn, "__qualname__", str(fn))
    return CannotSendError(
        f"{name} or an argument of it cannot be sent to another process ({error}); define functions and classes at "
        "the top level of a module"
    )


def _rank(environ: dict[str, str], pipe: Connection, *asked: Any) -> None:
    """The life of one process: join the others, call, tell. The server's environment is that of an earlier moment."""
    os.environ.clear()
    os.environ.update(environ)
    try:
        told = True, _joined(*asked)
    except Exception:  # noqa: BLE001  whatever it was, the process that asked must hear of it
        told = False, traceback.format_exc()
    pipe.send(told)
    pipe.poll(None)  # tensors are handed over in shared memory, which lives as long as this process


def _joined(
    fn: Callable[..., Any], rank: int, world_size: int, store: str, args: Sequence[Any], timeout_s: float
) -> Any:
    from datetime import timedelta

    import torch
    from torch import distributed

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(store, world_size),  # a file needs no free port
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    result = fn(rank, world_size, *args)
    distributed.barrier()  # who is early must not hang up on who is late
    distributed.destroy_process_group()
    return result


def _collect(ranks: Sequence[_Rank], timeout_s: float) -> list[Any]:
    until = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        left = [each for each in ranks if each.number not in results]
        ready = wait([each.pipe for each in left], timeout=max(0.0, until - time.monotonic()))
        if not ready:
            late = ", ".join(str(each.number) for each in left)
            raise RankError(f"after {timeout_s:g} s there is no answer from rank {late}; they wait for each other")
        for each in left:
            if each.pipe in ready:
                results[each.number] = _answer(each)
    return [results[each.number] for each in ranks]


def _answer(rank: _Rank) -> Any:
    """What a rank returned; RankError with what it raised, or how it ended."""
    try:
        fine, told = rank.pipe.recv()
    except (EOFError, ConnectionError):
        rank.process.join(_PATIENCE_S)
        raise RankError(f"rank {rank.number} ended without an answer, exit code {rank.process.exitcode}") from None
    if not fine:
        raise RankError(f"rank {rank.number} failed:\n{told.rstrip()}")
    return told


def _end(ranks: Sequence[_Rank]) -> None:
    """Let every process go; those that do not are killed."""
    for rank in ranks:
        rank.pipe.close()  # what waits for a word from here ends with it
    until = time.monotonic() + _PATIENCE_S
    for rank in ranks:
        if rank.process.exitcode is None and len(ranks) > 1:
            rank.process.join(0.2)
        if rank.process.is_alive():
            rank.process.terminate()
            rank.process.join(max(0.1, until - time.monotonic()))
        if rank.process.is_alive():
            rank.process.kill()
            rank.process.join()
