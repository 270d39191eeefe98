"""Token shards: one file of token ids with a header that proves it whole, read through a memory map.

Knows no text and no tokenizer. The file is a 256-byte header and then the ids, all little-endian:

    offset  size
         0     8  magic, "TRAINWEL"
         8     4  version, 1
        12     4  bytes per token, 2 or 4
        16     8  number of tokens
        24     8  vocabulary size; every token is below it
        32    32  SHA-256 of the whole file, taken with these 32 bytes at zero
        64   192  zeros
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainwell.errors import DataError

Tokens = NDArray[np.unsignedinteger[Any]]

MAGIC = b"TRAINWEL"
_VERSION = 1
_FIELDS = struct.Struct("<8sIIQQ32s192x")
_DTYPES: dict[int, np.dtype[np.unsignedinteger[Any]]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_DIGEST = slice(32, 64)
_BLOCK_BYTES = 2**24


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Choose the type that stores ids below `vocab_size`: 16 bits up to 65,536 of them, else 32."""
    return _DTYPES[2 if vocab_size <= 2**16 else 4]


def write_shard(path: Path, parts: Iterable[NDArray[np.integer[Any]]], vocab_size: int) -> int:
    """Write the ids of `parts`, each of shape (n,), one after the other as the shard `path`; return how many there are.

    The file appears whole or not at all, and how its ids were divided leaves no trace in it.
    Raises DataError if there are no tokens, or if one of them is not in [0, vocab_size).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    dtype = token_dtype(vocab_size)
    count = 0
    try:
        with unfinished.open("wb+") as file:
            file.write(bytes(_FIELDS.size))  # no header yet: whatever ends this early leaves no shard
            for tokens in parts:
                _check_range(path, tokens, vocab_size)
                file.write(np.ascontiguousarray(tokens, dtype=dtype).data)
                count += tokens.size
            if count == 0:
                raise DataError(f"{path}: there are no tokens to store.")
            file.seek(_FIELDS.size)
            digest = _digest(file, _header(dtype.itemsize, count, vocab_size, bytes(32)))
            file.seek(0)
            file.write(_header(dtype.itemsize, count, vocab_size, digest))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def open_shard(path: Path, *, vocab_size: int | None = None, whole: bool = True) -> Tokens:
    """Map the tokens of the shard `path`, shape (n,), read-only, after checking every byte of it, or its size alone.

    Raises DataError if the file is missing or damaged, or if its vocabulary is not the `vocab_size` asked for.
    """
    try:
        with path.open("rb") as file:
            fields = file.read(_FIELDS.size)
            itemsize, count, stored_vocab_size = _check(path, fields, os.fstat(file.fileno()).st_size)
            header = _header(itemsize, count, stored_vocab_size, bytes(32))
            digest = _digest(file, header) if whole else fields[_DIGEST]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if fields != _header(itemsize, count, stored_vocab_size, digest):
        raise _damaged(path, "its contents do not match its SHA-256")
    if vocab_size not in {None, stored_vocab_size}:
        raise DataError(f"{path} has a vocabulary of {stored_vocab_size:,}, but {vocab_size:,} is expected.")
    return np.memmap(path, dtype=_DTYPES[itemsize], mode="r", offset=_FIELDS.size, shape=(count,))


def _check_range(path: Path, tokens: NDArray[np.integer[Any]], vocab_size: int) -> None:
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{path}: token id {low if low < 0 else high} is outside the vocabulary of {vocab_size:,} (ids 0 to "
            f"{vocab_size - 1:,}). Use the tokenizer that made these ids, or one that keeps to its vocabulary."
        )


def _digest(file: BinaryIO, blank_header: bytes) -> bytes:
    """SHA-256 of a header without its digest, and of what is left of `file`."""
    digest = hashlib.sha256(blank_header)
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.digest()


def _header(itemsize: int, count: int, vocab_size: int, digest: bytes) -> bytes:
    return _FIELDS.pack(MAGIC, _VERSION, itemsize, count, vocab_size, digest)


def _check(path: Path, fields: bytes, size: int) -> tuple[int, int, int]:
    """Read bytes per token, number of tokens and vocabulary size from a header that fits a file of `size` bytes."""
    if len(fields) < _FIELDS.size:
        raise _damaged(path, f"it has {len(fields)} bytes, and the header alone has {_FIELDS.size}")
    magic, version, itemsize, count, vocab_size, _ = _FIELDS.unpack(fields)
    if magic != MAGIC:
        raise _damaged(path, "it does not begin like a token shard")
    if version != _VERSION or itemsize not in _DTYPES:
        raise _damaged(path, f"version {version} with {itemsize} bytes per token is unknown here")
    expected = _FIELDS.size + count * itemsize
    if size != expected:
        raise _damaged(path, f"it has {size:,} bytes instead of {expected:,}")
    return itemsize, count, vocab_size


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Delete it; the next run writes it again.")
