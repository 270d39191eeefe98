"""Writes, verifies, finds and removes checkpoints. A checkpoint appears whole or not at all.

Order of a save: a temporary directory beside the final name, tensors, fsync, manifest last, one rename, fsync of the
parent, opened again and compared with memory; only then do older checkpoints go.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainwell.checkpoint.layout import (
    TENSORS,
    Manifest,
    directory_of,
    read_manifest,
    saved_steps,
    sync_directory,
    write_manifest,
)
from trainwell.checkpoint.state import describe, pack, same_bits, unpack
from trainwell.errors import StorageError

_LEFT_BEHIND = re.compile(r"step-\d+\.(tmp|replaced)-[0-9a-f]{8}")
"""What a killed save leaves, and what a save took the place of."""


class CheckpointStore:
    """The checkpoints of one run, in `folder`; keeps the newest `keep` (at least two) and those `protected` names."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder
        self.keep = max(keep, 2)

    def save(self, step: int, state: Any, meta: dict[str, Any], protected: set[int] | None = None) -> Path:
        """Write the checkpoint of state `step`, verify it, remove what retention no longer keeps; return its place."""
        final = directory_of(self.folder, step)
        try:
            self._commit(final, step, state, meta)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{final} could not be written: {error}; free space or choose another folder with --run"
            ) from error
        self._retain(protected or set())
        return final

    def _commit(self, final: Path, step: int, state: Any, meta: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = final.with_name(f"{final.name}.tmp-{secrets.token_hex(4)}")
        beside.mkdir()
        try:
            plain, tensors = pack(state)
            tensors = _apart(tensors)
            save_file(tensors, beside / TENSORS)
            with (beside / TENSORS).open("rb+") as file:
                os.fsync(file.fileno())
            write_manifest(beside, Manifest(step, plain, describe(tensors), meta))
            sync_directory(beside)
            if final.exists():
                final.rename(final.with_name(f"{final.name}.replaced-{secrets.token_hex(4)}"))
            beside.rename(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_directory(self.folder)
        read_manifest(final, verify_files=False)
        written = load_file(final / TENSORS)
        wrong = [name for name, tensor in tensors.items() if not same_bits(tensor, written[name])]
        if wrong:
            raise StorageError(
                f"{final}: {wrong[0]} reads back differently from what was written; the disk is not to be trusted"
            )

    def _retain(self, protected: set[int]) -> None:
        for left in [entry for entry in self.folder.iterdir() if _LEFT_BEHIND.fullmatch(entry.name)]:
            shutil.rmtree(left)
        for step in saved_steps(self.folder)[: -self.keep]:
            if step not in protected:
                shutil.rmtree(directory_of(self.folder, step))

    def load(self, step: int) -> tuple[Any, dict[str, Any]]:
        """State and meta of a checkpoint, verified; raise StorageError when it is missing or damaged."""
        directory = directory_of(self.folder, step)
        if not directory.is_dir():
            have = ", ".join(map(str, saved_steps(self.folder))) or "none"
            raise StorageError(f"{self.folder} has no checkpoint of step {step}; it has: {have}")
        manifest = read_manifest(directory)
        try:
            tensors = load_file(directory / TENSORS)
        except SafetensorError as error:
            raise StorageError(f"{directory}: {TENSORS} cannot be read ({error}); the checkpoint is damaged") from error
        return unpack(manifest.state, tensors), manifest.meta

    def newest(self, say: Callable[[str], None]) -> int | None:
        """The newest step that verifies, or None; `say` hears of each that was passed over, and why."""
        for step in reversed(saved_steps(self.folder)):
            try:
                read_manifest(directory_of(self.folder, step))
            except StorageError as error:
                say(f"passed over {error}")
            else:
                return step
        return None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each contiguous and in memory of its own: the file format knows no views."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found
