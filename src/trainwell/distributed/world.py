"""This process among those that share a step: who it is, and the words they exchange. Knows no model and no run.

Numbers of a step travel on the default group, which gives up on a rank that does not answer after TRAINWELL_TIMEOUT_S.
Words (errors, votes, small results) have a group of gloo to themselves, which waits as long as work on one rank may
take; a rank that ends is noticed on both at once, since its connections close.
"""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from trainwell.distributed.meeting import meeting_store
from trainwell.errors import ConfigError, TrainwellError

_T = TypeVar("_T")

TIMEOUT_S = 1800.0
"""So long a rank waits for the others' part of a step, unless TRAINWELL_TIMEOUT_S says otherwise: one of them may have
to compile. The watchdog names a rank that hangs long before."""

_PATIENCE_S = 3600.0
"""So long ranks wait for what one of them does alone, such as preparing data or writing a checkpoint."""


class _Failure(NamedTuple):
    """An error on its way to other ranks: its class where it is one of ours, and what it says."""

    kind: type[TrainwellError] | None
    text: str


@dataclass(frozen=True)
class World:
    """This process among those that share a step; alone, every method below does nothing but its work.

    All methods except `main` are collective: every rank calls them, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Which of the ranks on this machine it is."""
    local_size: int = 1
    """How many ranks this machine has."""
    channel: Any = field(default=None, repr=False, compare=False)
    """A weak reference to the group for words; None for the one that all of a process share."""

    @property
    def main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, to the same bits on each; returns it."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        return flag if self.size == 1 else any(self.collect(bool(flag)))

    def collect(self, word: Any) -> list[Any]:
        """What each rank brought, in order of ranks: something small, such as numbers and text."""
        if self.size == 1:
            return [word]
        words: list[Any] = [None] * self.size
        distributed.all_gather_object(words, word, group=self._words())
        return words

    def from_main(self, make: Callable[[], _T]) -> _T:
        """What `make` returns on rank 0, on every rank: something small. No other rank calls it.

        Where it raises, all ranks raise the same error; one that is none of trainwell's becomes a TrainwellError on
        the others.
        """
        if self.size == 1:
            return make()
        if not self.main:
            told = self._broadcast(None)
            if isinstance(told, _Failure):
                raise _rebuilt(told, 0)
            return told  # type: ignore[no-any-return]
        try:
            made = make()
        except Exception as error:
            self._broadcast(_failure(error))
            raise
        return self._broadcast(made)  # type: ignore[no-any-return]

    def together(self, work: Callable[[], _T]) -> _T:
        """What `work` returns on this rank, once it has gone well on all of them.

        Where it fails on one, all raise: the rank's own error where it has one, else that of the first that failed,
        its message beginning with "rank R: ".
        """
        if self.size == 1:
            return work()
        try:
            result = work()
        except Exception as error:
            self.collect(_failure(error))
            raise
        for rank, told in enumerate(self.collect(None)):
            if told is not None:
                raise _rebuilt(told, rank, named=True)
        return result

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            distributed.barrier(group=self._words())

    def beside(self) -> "World":
        """The same ranks, with words that do not mix with these: for a thread beside the one that trains."""
        if self.size == 1:
            return self
        return replace(self, channel=weakref.ref(_new_group()))

    def _words(self) -> Any:
        """The group for words."""
        return _shared_words() if self.channel is None else self.channel()

    def _broadcast(self, word: Any) -> Any:
        words = [word]
        distributed.broadcast_object_list(words, src=0, group=self._words(), device=torch.device("cpu"))
        return words[0]


ALONE = World()


def current() -> World:
    """This process in the group that it has joined; ALONE where it has joined none.

    Without LOCAL_RANK and LOCAL_WORLD_SIZE all ranks are on one machine. ConfigError where one is no number.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    rank, size = distributed.get_rank(), distributed.get_world_size()
    local_rank = _number(os.environ, "LOCAL_RANK", str(rank))
    return World(rank, size, local_rank, _number(os.environ, "LOCAL_WORLD_SIZE", str(size)))


@contextmanager
def joined(device: Literal["auto", "cpu", "cuda"] | str = "auto") -> Iterator[World]:
    """Join the processes that torchrun (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) started.

    Without those variables this process is ALONE, and nothing is touched. A group that is there already is used, and
    left there. On `cuda` each process gets the GPU of its LOCAL_RANK.

    Raises:
        ConfigError: for variables that are no numbers, or a GPU that is not there.
        TrainwellError: where the others cannot be reached.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield current()
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    rank, size = _number(os.environ, "RANK"), _number(os.environ, "WORLD_SIZE")
    _join(rank, size, on_gpu=device == "cuda" or (device == "auto" and torch.cuda.is_available()))
    try:
        yield current()
    finally:
        distributed.destroy_process_group()


def _join(rank: int, size: int, *, on_gpu: bool) -> None:
    if on_gpu:
        local, there = _number(os.environ, "LOCAL_RANK", str(rank)), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(
                f"rank {rank}: LOCAL_RANK {local} has no GPU of its own, this machine has {there}; start at most "
                f"{there} processes here, or give device cpu"
            )
        torch.cuda.set_device(local)
    timeout = timedelta(seconds=_number(os.environ, "TRAINWELL_TIMEOUT_S", str(TIMEOUT_S)))
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",  # whichever suits where a tensor lies
            store=meeting_store(rank, size, timeout),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainwellError(
            f"rank {rank}: the {size} processes did not find each other ({str(error).splitlines()[0]}); MASTER_ADDR "
            "and MASTER_PORT name a machine and a free port that all of them reach"
        ) from error


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise ConfigError(f"{name}: {text!r} is set in the environment, and is no number from 0 on; torchrun sets it")
    return value


_words_of: tuple[weakref.ref[Any], weakref.ref[Any]] | None = None
"""The default group, and the group for words beside it. Torch holds them: what were held here would outlive its end."""


def _shared_words() -> Any:
    """The group for words, made when the first is exchanged."""
    global _words_of
    default = distributed.group.WORLD
    group = _words_of[1]() if _words_of is not None and _words_of[0]() is default else None
    if group is None:
        group = _new_group()
        _words_of = weakref.ref(default), weakref.ref(group)
    return group


def _new_group() -> Any:
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=_PATIENCE_S))


def _failure(error: Exception) -> _Failure:
    if isinstance(error, TrainwellError):
        return _Failure(type(error), str(error))
    return _Failure(None, f"{type(error).__name__}: {error}")


def _rebuilt(failure: _Failure, rank: int, *, named: bool = False) -> TrainwellError:
    if failure.kind is None:
        return TrainwellError(f"rank {rank}: {failure.text}")
    return failure.kind(f"rank {rank}: {failure.text}" if named else failure.text)
