"""Files of token ids as trainwell and others write them, mapped into memory where they lie. Little-endian throughout.

    layout        begins with                               then
    trainwell     a header of 256 bytes, see `shards`       16 or 32 bits an id, as it says
    llm.c         256 int32: 20240520, 1, count             16 bits an id (GPT-2; modded-nanogpt writes it too)
    llm.c llama   256 int32: 20240801, 7, count             32 bits an id (Llama 3)
    npy           NumPy's own header                        16, 32 or 64 bits an id (build-nanogpt)
    raw           nothing                                   16 bits an id, 32 above 65,536 of them (nanoGPT, OLMo)

Sources: llm.c, dev/data/data_common.py; build-nanogpt, fineweb.py; nanoGPT, data/*/prepare.py; OLMo, olmo/data.
Knows no text and no tokenizer.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainwell.data.shards import MAGIC, Tokens, open_shard, token_dtype
from trainwell.errors import DataError

Layout = Literal["trainwell", "llm.c", "llm.c llama", "npy", "raw"]
SUFFIXES = (".bin", ".npy")
Dtype = np.dtype[np.unsignedinteger[Any]]
_HEADER = struct.Struct("<256i")
_LLM_C: dict[tuple[int, ...], tuple[Layout, Dtype]] = {
    (20240520, 1): ("llm.c", np.dtype("<u2")),
    (20240801, 7): ("llm.c llama", np.dtype("<u4")),
}
_NPY = b"\x93NUMPY"
_HELD_OUT = re.compile(r"(^|[^a-z])(val|valid|validation)([^a-z]|$)")


@dataclass(frozen=True)
class TokenFile:
    """A file of ids: how it is laid out, and the ids, shape (n,), read-only."""

    path: Path
    layout: Layout
    ids: Tokens

    @property
    def is_held_out(self) -> bool:
        """Whether its name says that it is for validation, as `val.bin` and `fineweb_val_000000.npy` do."""
        return _HELD_OUT.search(self.path.stem.lower()) is not None


def token_paths(path: Path) -> list[Path]:
    """The files of ids at a path, in the order of their names: the file itself, or those of a folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return [path] if path.suffix.lower() in SUFFIXES and path.is_file() else []


def open_token_file(path: Path, vocab_size: int | None = None) -> TokenFile:
    """Map a file of ids; `vocab_size` decides how wide those of a raw one are, 16 bits where it is not given.

    Raises DataError for a file that is cut off, is none of the layouts, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
        if head.startswith(MAGIC):
            return TokenFile(path, "trainwell", open_shard(path, whole=False))
        if head.startswith(_NPY):
            return TokenFile(path, "npy", _npy(path))
        if len(head) == _HEADER.size and (known := _LLM_C.get(_HEADER.unpack(head)[:2])) is not None:
            layout, dtype = known
            return TokenFile(path, layout, _mapped(path, dtype, _HEADER.size, _HEADER.unpack(head)[2]))
        return TokenFile(path, "raw", _mapped(path, token_dtype(vocab_size or 2**16), 0, None))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _mapped(path: Path, dtype: Dtype, offset: int, count: int | None) -> Tokens:
    size = path.stat().st_size - offset
    if size % dtype.itemsize or (count is not None and size != count * dtype.itemsize):
        expected = f"{count:,} ids of" if count is not None else "whole ids of"
        raise DataError(
            f"{path} is damaged: behind its header of {offset:,} bytes there are {size:,}, not {expected} "
            f"{dtype.itemsize} bytes each. Write or copy it again."
        )
    if not size:
        raise DataError(f"{path} holds no ids. Write or copy it again.")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(size // dtype.itemsize,))


def _npy(path: Path) -> Tokens:
    try:
        found: Tokens = np.load(path, mmap_mode="r")  # which unpickles nothing unless asked to
    except ValueError as error:
        raise DataError(f"{path} is damaged, or no array of ids: {error}. Write or copy it again.") from error
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or not len(found):
        raise DataError(
            f"{path} holds an array of shape {found.shape} and type {found.dtype}, and ids are one row of integers."
        )
    return found
