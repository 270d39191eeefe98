"""What lies in a token store that was made from raw text, and how its files are read and written.

manifest.json            counts, sources, options, what was wrong, SHA-256 of each file
tokenizer.json           the tokenizer
train-00000-000.bin      ids of unit 0, its first shard; see `shards` for the layout
train-00000-000.docs     its documents, 20 bytes each: see DOCUMENTS
val-...                  the same of what is held out
units/                   while it is being made: what each unit has come to; gone when the manifest is there
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainwell.errors import StorageError

FORMAT = 1
MANIFEST = "manifest.json"
_BEGINNING = b'{\n "plan": {'
UNITS, PLAN = "units", "units/plan.json"
PARTS = ("train", "val")
DOCUMENTS = np.dtype([("end", "<u8"), ("place", "<u8"), ("source", "<u4")])
"""Of a document: where in its shard it ends, where in its source it begins, and the number of that source."""


def is_whole(folder: Path) -> bool:
    """Whether a folder has the manifest of a finished store, and not one of another kind."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except (OSError, ValueError):  # a name that no file can have
        return False


@dataclass(frozen=True)
class DocumentIndex:
    """Where the documents of a part of a store are, and where they came from."""

    ends: NDArray[np.int64]
    """Place in the part behind the last id of each document, that of its end included; shape (n,)."""
    _table: NDArray[np.void]
    _sources: Sequence[str]

    def source(self, number: int) -> str:
        """Where a document is from: its file, and behind a colon its line or number in there."""
        row = self._table[number]
        place = int(row["place"])
        return f"{self._sources[int(row['source'])]}{f':{place}' if place else ''}"


def read_index(folder: Path, manifest: Mapping[str, Any], part: str) -> DocumentIndex:
    """The index of a part of the store in `folder`; StorageError where a file of it is missing or cut off."""
    tables, ends, before = [np.empty(0, DOCUMENTS)], [np.empty(0, np.int64)], 0
    for shard in manifest["shards"]:
        if shard["part"] != part:
            continue
        file = folder / f"{shard['name']}.docs"
        try:
            table = np.fromfile(file, dtype=DOCUMENTS)
        except OSError as error:
            raise StorageError(f"{file} cannot be read: {error.strerror}. Prepare the store again.") from error
        if len(table) != shard["documents"]:
            raise StorageError(f"{file} is damaged: {len(table):,} documents, and it had {shard['documents']:,}.")
        tables.append(table)
        ends.append(table["end"].astype(np.int64) + before)
        before += shard["tokens"]
    return DocumentIndex(np.concatenate(ends), np.concatenate(tables), [each["name"] for each in manifest["sources"]])


def read_json(file: Path) -> dict[str, Any]:
    """A file of ours; StorageError where it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be read ({error}). Remove its folder, and prepare it again.") from error
    if not isinstance(found, dict):
        raise StorageError(f"{file} is not what was written. Remove its folder, and prepare it again.")
    return found


def write_json(file: Path, said: Mapping[str, Any]) -> None:
    """Write a file whole."""
    write_whole(file, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def sha256_of(file: Path) -> str:
    """The hash of a file, as sha256sum gives it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
