"""Writes, verifies, finds and removes checkpoints. A checkpoint appears whole or not at all.

Order of a save: a temporary directory beside the final name, tensors, fsync, manifest last, one rename, fsync of the
parent, opened again and compared with memory; only then do older checkpoints go, and only while two good ones stay.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainwell import faults
from trainwell.checkpoint.layout import (
    LEFT_BEHIND,
    TENSORS,
    Manifest,
    candidates,
    directory_of,
    read_manifest,
    saved_steps,
    sync_directory,
    write_manifest,
)
from trainwell.checkpoint.state import apart, describe, pack, same_bits, unpack
from trainwell.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CheckpointStore:
    """The checkpoints of one run, in `folder`.

    Kept are the newest `keep` (at least two), those that `protected` names, and the first of each stretch of
    `keep_every` steps. A checkpoint that does not verify counts for nothing: the ones before it stay.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_every: int | None = None) -> None:
        self.folder = folder
        self.keep = max(keep, 2)
        self.keep_every = keep_every

    def save(self, step: int, state: Any, meta: dict[str, Any], protected: Collection[int] = ()) -> Path:
        """Write the checkpoint of state `step`, verify it, remove what retention no longer keeps; return its place."""
        plain, tensors = pack(state)
        final = self.write(step, plain, apart(tensors), meta)
        self.retain(protected)
        return final

    def write(self, step: int, plain: Any, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
        """Write and verify a state that is packed, its tensors on the CPU and each in memory of its own."""
        final = directory_of(self.folder, step)
        try:
            self._commit(final, Manifest(step, plain, describe(tensors), meta), tensors)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{final} could not be written: {why(error)}") from error
        return final

    def _commit(self, final: Path, manifest: Manifest, tensors: dict[str, Tensor]) -> None:
        step = manifest.step
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = final.with_name(f"{final.name}.tmp-{secrets.token_hex(4)}")
        beside.mkdir()
        try:
            faults.reach("ckpt.tmp_open", step)
            save_file(tensors, beside / TENSORS)
            if faults.armed("ckpt.mid_write", step):
                os.truncate(beside / TENSORS, (beside / TENSORS).stat().st_size // 2)
            faults.reach("ckpt.mid_write", step)
            with (beside / TENSORS).open("rb+") as file:
                os.fsync(file.fileno())
            faults.reach("ckpt.before_manifest", step)
            write_manifest(beside, manifest)
            sync_directory(beside)
            faults.reach("ckpt.before_rename", step)
            if final.exists():
                final.rename(final.with_name(f"{final.name}.replaced-{secrets.token_hex(4)}"))
            beside.rename(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_directory(self.folder)
        faults.reach("ckpt.after_rename", step)
        try:
            self._compare(final, tensors)
        except (OSError, SafetensorError, StorageError):
            final.rename(final.with_name(f"{final.name}.replaced-{secrets.token_hex(4)}"))
            raise

    def _compare(self, final: Path, tensors: dict[str, Tensor]) -> None:
        """Raise StorageError unless a checkpoint reads back as what was in memory."""
        read_manifest(final, verify_files=False)
        for name, tensor in tensors.items():
            with safe_open(final / TENSORS, "pt") as file:  # anew for each: what is read stays mapped until it closes
                same = same_bits(tensor, file.get_tensor(name))
            if not same:
                raise StorageError(
                    f"{final}: {name} reads back differently from what was written; the disk is not to be trusted"
                )

    def retain(self, protected: Collection[int] = ()) -> None:
        """Remove what retention no longer keeps, and what killed saves left; StorageError where that fails."""
        try:
            self._remove(protected)
        except OSError as error:
            raise StorageError(f"{self.folder}: an older checkpoint could not be removed: {error}") from error

    def _remove(self, protected: Collection[int]) -> None:
        for left in [entry for entry in self.folder.iterdir() if LEFT_BEHIND.fullmatch(entry.name)]:
            shutil.rmtree(left)
        for step in self._outdated(protected):
            outdated = directory_of(self.folder, step)
            removed = outdated.with_name(f"{outdated.name}.removed-{secrets.token_hex(4)}")
            outdated.rename(removed)
            (removed / TENSORS).unlink(missing_ok=True)
            faults.reach("ckpt.mid_gc", step)
            shutil.rmtree(removed)

    def _outdated(self, protected: Collection[int]) -> list[int]:
        """What may go: older than the newest `keep`, counted from the second newest checkpoint that verifies on."""
        saved = saved_steps(self.folder)
        old = [step for step in saved[: -self.keep] if step not in protected and step not in self._milestones(saved)]
        if not old:
            return []
        good = 0
        for step in reversed(saved):
            good += self.problem(step) is None
            if good == 2:
                return [each for each in old if each < step]
        return []

    def to_come(self, step: int, num_steps: int) -> int:
        """So many more checkpoints will lie here by the end of a run that is at `step`, one in the making included."""
        saved = saved_steps(self.folder)
        kept = len(saved) - len(self._milestones(saved))
        every = self.keep_every
        return max(1, self.keep + 1 - kept) + (0 if every is None else num_steps // every - step // every)

    def _milestones(self, saved: list[int]) -> set[int]:
        if self.keep_every is None:
            return set()
        first: dict[int, int] = {}
        for step in saved:
            first.setdefault(step // self.keep_every, step)
        return {step for stretch, step in first.items() if stretch}

    def verify(self, step: int) -> None:
        """Raise StorageError unless the checkpoint of `step` is there and every byte of it is as its manifest says."""
        directory = directory_of(self.folder, step)
        if not directory.is_dir():
            have = ", ".join(map(str, saved_steps(self.folder))) or "none"
            raise StorageError(f"{self.folder} has no checkpoint of step {step}; it has: {have}")
        manifest = read_manifest(directory)
        if manifest.step != step:
            raise StorageError(f"{directory}: its manifest is that of step {manifest.step}; the checkpoint is damaged")

    def problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None when it verifies."""
        try:
            self.verify(step)
        except StorageError as error:
            return str(error)
        return None

    def load(self, step: int) -> tuple[Any, dict[str, Any]]:
        """State and meta of a checkpoint, verified; raise StorageError when it is missing or damaged.

        The tensors are copies: the file may go or change while they are in use.
        """
        self.verify(step)
        directory = directory_of(self.folder, step)
        manifest = read_manifest(directory, verify_files=False)
        try:
            tensors = {name: tensor.clone() for name, tensor in load_file(directory / TENSORS).items()}
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{directory}: {TENSORS} cannot be read ({error}); the checkpoint is damaged") from error
        return unpack(manifest.state, tensors), manifest.meta

    def newest(self, say: Callable[[str], None]) -> int | None:
        """The newest step that verifies; `say` hears of each that was passed over, and why.

        None where nothing was ever saved; StorageError where something was, and none of it is whole: to begin again
        at step 0 is for the user to decide.
        """
        steps = candidates(self.folder)
        for step in reversed(steps):
            problem = self.problem(step)
            if problem is None:
                return step
            say(f"passed over {problem}")
        if steps:
            raise StorageError(
                f"{self.folder}: none of its checkpoints is whole (steps {', '.join(map(str, steps))}); bring one back "
                "from a copy, or move that folder away to begin again at step 0"
            )
        return None


def why(error: Exception) -> str:
    """Say in words why nothing could be written, and what to do about it."""
    text = str(error)
    full = getattr(error, "errno", None) in _FULL or any(f"os error {number}" in text for number in _FULL)
    if full:
        return (
            f"{text}; there is no room: free some, remove old checkpoints, lower --checkpoint.keep, or train into a "
            "folder on another disk with --run"
        )
    return f"{text}; free space, give yourself the right to write there, or choose another folder with --run"
