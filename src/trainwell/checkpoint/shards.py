"""A state as one rank writes it, and tensors as they are read: from one file, or by rows from those of many ranks.

A rank's file names its tensors as the whole ones are named and says where its rows begin, in the words of
torch.distributed.checkpoint, whose HuggingFaceStorageReader reads it too. Knows files and ranks, no manifest.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainwell import faults
from trainwell.checkpoint.layout import TENSORS, describe_file, read_manifest, shard_name
from trainwell.checkpoint.state import describe, pack, same_bits
from trainwell.distributed.parallel import is_copy, is_sharded, local, rows_here
from trainwell.errors import StorageError

_WHERE, _STARTS, _VERSION = "DCP_SHARDING_INFO", "saved_offsets", {"DCP_VERSION": "1.0", "format": "pt"}


@dataclass(frozen=True)
class Share:
    """What one rank writes of a state."""

    plain: Any
    """All of the state but tensors, as JSON; the first rank's is the one that is written."""
    about: dict[str, dict[str, Any]]
    """Type and shape of every tensor as a whole."""
    tensors: dict[str, Tensor]
    """This rank's rows of those that are in parts; on the first rank, all others too."""
    starts: dict[str, list[int]] | None = None
    """Where each of `tensors` begins in the whole, by dimension; None where nothing is in parts."""

    def file(self, rank: int) -> str:
        """The name of the file that holds it."""
        return TENSORS if self.starts is None else shard_name(rank)

    @property
    def header(self) -> dict[str, str] | None:
        """What that file says besides its tensors."""
        if self.starts is None:
            return None
        return {_WHERE: json.dumps({name: {_STARTS: start} for name, start in self.starts.items()})} | _VERSION


def share(state: Any, *, main: bool) -> Share:
    """Split a state, nothing copied; raise ConfigError naming a value that no checkpoint holds.

    Of rows that several ranks have (hybrid sharding) the first of those ranks writes them.
    """
    plain, tensors = pack(state)
    about = describe(tensors)
    if not any(map(is_sharded, tensors.values())):
        return Share(plain, about, tensors)
    mine, starts = dict[str, Tensor](), dict[str, list[int]]()
    for name, tensor in tensors.items():
        start = [0] * tensor.dim()
        if not is_sharded(tensor):
            if main:
                mine[name], starts[name] = tensor, start
        elif local(tensor).numel() and not is_copy(tensor):
            start[0], _ = rows_here(tensor)
            mine[name], starts[name] = local(tensor), start
    return Share(plain, about, mine, starts)


def write_share(mine: Share, beside: Path, step: int, rank: int) -> tuple[str, Any] | None:
    """Write a rank's file and force it to the disk; its name, and what a manifest says of it. None without tensors."""
    path = beside / mine.file(rank)
    faults.reach("ckpt.tmp_open", step, rank)
    if mine.starts is not None and not mine.tensors:
        return None
    if not beside.is_dir():
        raise StorageError(f"rank {rank} does not see {beside}; the run's folder must be where all ranks see it")
    save_file(mine.tensors, path, mine.header)
    if faults.armed("ckpt.mid_write", step, rank):
        os.truncate(path, path.stat().st_size // 2)
    faults.reach("ckpt.mid_write", step, rank)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path.name, describe_file(path)


def compare_share(mine: Share, final: Path, rank: int) -> None:
    """Raise StorageError unless a rank's file reads back as what it has in memory."""
    read_manifest(final, verify_files=False)
    path = final / mine.file(rank)
    for name, tensor in mine.tensors.items():
        with safe_open(path, "pt") as file:  # anew for each: what is read stays mapped until it closes
            same = same_bits(tensor, file.get_tensor(name))
        if not same:
            raise StorageError(
                f"{final}: {name} reads back differently from what was written; the disk is not to be trusted"
            )


class _Piece(NamedTuple):
    """Some rows of a tensor, in a file."""

    file: Path
    start: int
    stop: int


class Stored:
    """A tensor on disk, of which rows can be had without the others."""

    def __init__(self, name: str, dtype: str, shape: list[int], pieces: list[_Piece]) -> None:
        self.shape = torch.Size(shape)
        self._name = name
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._pieces = pieces

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows from `start` up to `stop`, a copy."""
        found = torch.empty((stop - start, *self.shape[1:]), dtype=self._dtype)
        for piece in self._pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                with safe_open(piece.file, "pt") as file:
                    found[first - start : last - start] = file.get_slice(self._name)[
                        first - piece.start : last - piece.start
                    ]
        return found

    def whole(self) -> Tensor:
        """All of it, a copy."""
        if len(self._pieces) > 1:
            return self.rows(0, self.shape[0])
        with safe_open(self._pieces[0].file, "pt") as file:
            tensor: Tensor = file.get_tensor(self._name)
        return tensor.clone()


def stored(directory: Path, about: dict[str, dict[str, Any]]) -> dict[str, Stored]:
    """The tensors in the files of `directory`, by name; `about` says which there are, as `Share.about` does.

    Raises ValueError for one that is not there from its first row to its last.
    """
    pieces: dict[str, list[_Piece]] = {name: [] for name in about}
    for file in sorted(directory.glob("*.safetensors")):
        for name, start, rows in _contents(file):
            if name in pieces:
                pieces[name].append(_Piece(file, start, start + rows))
    for name, parts in pieces.items():
        parts.sort(key=lambda piece: piece.start)
        shape = about[name]["shape"]
        ends = [0, *(piece.stop for piece in parts)]
        if not parts or [piece.start for piece in parts] != ends[:-1] or ends[-1] != (shape[0] if shape else 1):
            raise ValueError(f"{name} is not whole")
    return {name: Stored(name, about[name]["dtype"], about[name]["shape"], parts) for name, parts in pieces.items()}


def _contents(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first row and number of rows of each tensor in a file; a number is one row."""
    with safe_open(path, "pt") as file:
        where = json.loads((file.metadata() or {}).get(_WHERE, "{}"))
        for name in file.keys():  # noqa: SIM118  it is no dict
            shape = file.get_slice(name).get_shape()
            start = where[name][_STARTS][0] if shape and where else 0
            yield name, start, shape[0] if shape else 1
