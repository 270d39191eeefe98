"""Writes, verifies, finds and removes checkpoints. A checkpoint appears whole or not at all.

Order of a save: a temporary directory beside the final name, tensors, fsync, manifest last, one rename, fsync of the
parent, opened again and compared with memory; only then do older checkpoints go, and only while two good ones stay.
Of several ranks each writes and compares its share, and the first does the rest once all say that theirs is good.
"""

import errno
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from trainwell import faults
from trainwell.checkpoint.layout import (
    LEFT_BEHIND,
    MANIFEST,
    Manifest,
    candidates,
    directory_of,
    read_manifest,
    saved_steps,
    sync_directory,
    write_manifest,
)
from trainwell.checkpoint.shards import Share, compare_share, share, stored, write_share
from trainwell.checkpoint.state import apart, unpack
from trainwell.distributed.world import ALONE, World
from trainwell.errors import StorageError

_T = TypeVar("_T")
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
        mine = share(state, main=True)
        final = self.write(step, replace(mine, tensors=apart(mine.tensors)), meta)
        self.retain(protected)
        return final

    def write(self, step: int, mine: Share, meta: dict[str, Any], world: World = ALONE) -> Path:
        """Write and verify a state, its tensors on the CPU and each in memory of its own.

        All ranks of `world` call it, each with its share, in a folder that all of them see. Where it fails on one, all
        raise StorageError.
        """
        final = directory_of(self.folder, step)

        def tried(work: Callable[[], _T]) -> _T:
            try:
                return work()
            except (OSError, SafetensorError) as error:
                raise StorageError(f"{final} could not be written: {why(error)}") from error

        beside = world.from_main(lambda: tried(lambda: self._begin(final)))
        try:
            own = world.together(lambda: tried(lambda: write_share(mine, beside, step, world.rank)))
            manifest = Manifest(step, mine.plain, mine.about, meta)
            files = dict(filter(None, world.collect(own)))
            world.from_main(lambda: tried(lambda: self._commit(beside, final, manifest, files)))
        finally:
            if world.main:
                shutil.rmtree(beside, ignore_errors=True)
        faults.reach("ckpt.after_rename", step, world.rank)
        try:
            world.together(lambda: tried(lambda: compare_share(mine, final, world.rank)))
        except StorageError:
            if world.main:
                final.rename(final.with_name(f"{final.name}.replaced-{secrets.token_hex(4)}"))
            raise
        return final

    def _begin(self, final: Path) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = final.with_name(f"{final.name}.tmp-{secrets.token_hex(4)}")
        beside.mkdir()
        return beside

    def _commit(self, beside: Path, final: Path, manifest: Manifest, files: dict[str, Any]) -> None:
        faults.reach("ckpt.before_manifest", manifest.step)
        write_manifest(beside, manifest, files)
        sync_directory(beside)
        faults.reach("ckpt.before_rename", manifest.step)
        if final.exists():
            final.rename(final.with_name(f"{final.name}.replaced-{secrets.token_hex(4)}"))
        beside.rename(final)
        sync_directory(self.folder)

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
            next(removed.glob("*.safetensors"), removed / MANIFEST).unlink(missing_ok=True)
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

    def load(
        self, step: int, *, verify: bool = True, on_disk: Callable[[str], bool] = lambda _name: False
    ) -> tuple[Any, dict[str, Any]]:
        """State and meta of a checkpoint; raise StorageError when it is missing or damaged.

        The tensors are copies: the file may go or change while they are in use. Those whose names `on_disk` picks
        come as `Stored`, to be read later, by rows. Only where it was verified just now may `verify` be left out.
        """
        if verify:
            self.verify(step)
        directory = directory_of(self.folder, step)
        manifest = read_manifest(directory, verify_files=False)
        try:
            found = stored(directory, manifest.tensors)
            tensors = {name: each if on_disk(name) else each.whole() for name, each in found.items()}
        except (OSError, SafetensorError, ValueError) as error:
            raise StorageError(
                f"{directory}: its tensors cannot be read ({error}); the checkpoint is damaged"
            ) from error
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
