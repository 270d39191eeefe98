"""A run whose folder is a URL: it works in a local folder, its mirror, which is kept equal to the one behind the URL.

Whole objects are written, and none is renamed: the manifest of a checkpoint is written last and removed first, so it
alone says that a checkpoint is there. Knows names and digests, not what the files say.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from trainwell.errors import ConfigError, StorageError
from trainwell.runs import mirror
from trainwell.runs.lock import held
from trainwell.runs.mirror import CHECKPOINTS, CONFIG, LIGHT, LIGHT_FOLDERS, MANIFEST, Mirror, Synced
from trainwell.runs.objects import Objects, canonical
from trainwell.runs.owner import OWNER, Ownership, own, refuse_another

HEARTBEAT_S = 10.0
_INDEX = "mirror.json"
_SYNCING = ".syncing"
_AT_LEAST = 2
"""So many checkpoints stay behind the URL, whatever happens to the mirror."""


@dataclass(frozen=True)
class _Index:
    """What `mirror.json` says: which push was the last, and the SHA-256 of each light file after it."""

    version: str
    files: Mapping[str, str]


def _silent(_line: str) -> None:
    """Say nothing."""


class Remote:
    """The folder behind `url`, and its `mirror`: by default a folder in the cache that belongs to this URL alone.

    What the store refuses is StorageError, from every method. Writing where another process has taken the run over is
    RunBusyError.
    """

    def __init__(self, url: str | PurePath, mirror_path: Path | None = None) -> None:
        self.url = canonical(url)
        self.mirror = mirror.folder_of(self.url) if mirror_path is None else mirror_path
        self._local = Mirror(self.mirror)
        self._objects = Objects(self.url)
        self._tidy = False

    @classmethod
    def of(cls, folder: Path) -> "Remote | None":
        """What a local folder is the mirror of; None for any other folder."""
        url = Mirror(folder).url
        return None if url is None else cls(url, folder)

    def own(
        self, heartbeat_s: float = HEARTBEAT_S, say: Callable[[str], None] = _silent
    ) -> AbstractContextManager[Ownership]:
        """Own the folder while the block lasts; call it with the mirror locked, as `RunDir.lock` does.

        Raises RunBusyError, naming process and host, where another owner lives; ConfigError for a folder that holds
        something else than a run. Watching a silent owner takes two and a half of its heartbeats.
        """
        there = self._objects.list()
        foreign = [name for name in there if not name.startswith(".") and name not in {OWNER, _INDEX}]
        if foreign and CONFIG not in there:
            raise ConfigError(
                f"--run {self.url}: it exists and holds no run ({foreign[0]} lies there); name a new or empty folder, "
                "or one of a run"
            )
        self._local.mark(self.url)
        return own(self._objects, self.mirror, heartbeat_s, say)

    def pull(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Bring what is behind the URL into the mirror: the light files, and the manifests of its checkpoints.

        Where nobody else has written there since this mirror was last in step, the mirror may be ahead, and stays.
        Where somebody has, the mirror becomes what they wrote. Raises StorageError where a run was and is no more.
        Does nothing where `unless` says so once no other pull or push is under way.
        """
        self._local.mark(self.url)
        with held(self.mirror / _SYNCING):
            if not unless():
                self._pull()

    def _pull(self) -> None:
        index, there, synced = self._index(), self._objects.list(), self._local.synced()
        if index is None and CONFIG not in there:
            if synced.version:
                raise StorageError(
                    f"{self.url} holds no run any more, and {self.mirror} is a copy of the one that was there; bring "
                    "it back from that copy, or remove the copy to begin anew"
                )
            return
        steps = self.saved_steps()
        theirs = index is None or index.version not in {synced.version, synced.pending} - {""}
        if theirs:
            files = self._pull_light(there, {} if index is None else index.files)
            for step in self._local.checkpoints().keys() - set(steps):
                self._local.drop(step)  # of another run, or of a course of it that was given up
            self._local.remember(Synced("" if index is None else index.version, files=files))
        for step in steps:
            manifest = self._local.directory(step) / MANIFEST
            if (theirs or not manifest.is_file()) and (content := self._objects.read(_at(step, MANIFEST))) is not None:
                mirror.replace(manifest, content)

    def _pull_light(self, there: Mapping[str, int | None], digests: Mapping[str, str]) -> dict[str, str]:
        """Make the light files those behind the URL; return the SHA-256 of each."""
        names = [name for name in LIGHT if there.get(name) is not None]
        for folder in LIGHT_FOLDERS:
            inside = self._objects.list(folder) if folder in there else {}
            names += [f"{folder}/{name}" for name, size in inside.items() if size is not None and mirror.is_plain(name)]
        files = {}
        for name in names:
            local = self.mirror / name
            if local.is_file() and mirror.digest(local) == digests.get(name):
                files[name] = digests[name]
            elif (content := self._objects.read(name)) is not None:
                mirror.replace(local, content)
                files[name] = sha256(content).hexdigest()
        for name in self._local.light():
            if name not in files:
                mirror.unlink(self.mirror / name)
        return files

    def fetch(self, step: int) -> Path:
        """Bring the files of a checkpoint that are not in the mirror; return its local directory.

        Each is compared with size and SHA-256 in the manifest: StorageError says what is missing or damaged.
        """
        manifest = self._objects.read(_at(step, MANIFEST))
        if manifest is None:
            have = ", ".join(map(str, self.saved_steps())) or "none"
            raise StorageError(f"{self.url} has no checkpoint of step {step}; it has: {have}")
        directory, files = self._local.directory(step), self._files_of(step, manifest)
        with held(self.mirror / _SYNCING):  # two readers would write the same unfinished file
            for name, expected in files.items():
                if mirror.problem(directory / name, expected) is not None:
                    self._download(step, name, expected)
            mirror.replace(directory / MANIFEST, manifest)
        return directory

    def problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint behind the URL, all of which is read; None when it is whole."""
        manifest = self._objects.read(_at(step, MANIFEST))
        if manifest is None:
            return "its manifest is missing"
        if manifest != mirror.read(self._local.directory(step) / MANIFEST):
            return "its manifest is another than in the mirror"
        read = self.mirror / f".read-{secrets.token_hex(4)}"
        try:
            for name, expected in self._files_of(step, manifest).items():
                self._objects.download(_at(step, name), read)
                if wrong := mirror.problem(read, expected):
                    return f"{name} {wrong}"
        except StorageError as error:
            return str(error)
        finally:
            read.unlink(missing_ok=True)
        return None

    def _download(self, step: int, name: str, expected: Mapping[str, Any]) -> None:
        target = self._local.directory(step) / name
        unfinished = target.with_name(f".{name}.unfinished")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._objects.download(_at(step, name), unfinished)
            if problem := mirror.problem(unfinished, expected):
                raise StorageError(f"{self.url}/{_at(step, name)} {problem}; the checkpoint is damaged")
            unfinished.replace(target)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror}; free space") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _files_of(self, step: int, manifest: bytes) -> dict[str, dict[str, Any]]:
        return mirror.files_of(manifest, f"{self.url}/{_at(step, MANIFEST)}")

    def push(self) -> None:
        """Make the folder behind the URL equal to the mirror: for its owner, after each save, and to try again.

        First the light files, for a checkpoint means nothing without the metrics before it; then the checkpoints that
        are not there, newest first; then those go that the mirror no longer keeps.
        """
        self.push_light()
        there, local = set(self.saved_steps()), self._local.checkpoints()
        for step, directory in sorted(local.items(), reverse=True):
            if mirror.is_whole(directory) and not (step in there and self._is_pushed(step)):
                self.push_checkpoint(directory)
                there.add(step)
        if len(there & local.keys()) >= _AT_LEAST:
            for step in there - local.keys():
                self.delete_checkpoint(step)

    def _is_pushed(self, step: int) -> bool:
        return self._objects.read(_at(step, MANIFEST)) == mirror.read(self._local.directory(step) / MANIFEST)

    def push_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint: every file, the manifest last, which commits it; sizes and manifest are read back.

        One that is there under the same name loses its manifest first. A push that is cut off leaves no checkpoint.
        """
        refuse_another(self._objects, self.mirror)
        step = mirror.step_of(directory)
        manifest = mirror.read(directory / MANIFEST)
        files = self._files_of(step, manifest)
        self._clear_left_over()
        self._tidy = False
        self._objects.remove(_at(step, MANIFEST))
        for name in files:
            self._objects.upload(_at(step, name), directory / name)
        sizes = self._objects.list(_at(step))
        for name, expected in files.items():
            if sizes.get(name) != expected["size"]:
                raise self._untrue(_at(step, name), f"has {sizes.get(name, 'no')} bytes, not {expected['size']}")
        self._objects.write(_at(step, MANIFEST), manifest)
        if self._objects.read(_at(step, MANIFEST)) != manifest:
            self._objects.remove(_at(step, MANIFEST))
            raise self._untrue(_at(step, MANIFEST), "reads back differently")
        self._tidy = True

    def _untrue(self, name: str, what: str) -> StorageError:
        return StorageError(f"{self.url}/{name} {what} after it was written; the store is not to be trusted")

    def push_light(self) -> None:
        """Write the light files that have changed, whole: such stores cannot append. The index follows them."""
        refuse_another(self._objects, self.mirror)
        self._local.mark(self.url)
        with held(self.mirror / _SYNCING):
            synced = self._local.synced()
            if not synced.version or self._index() is None:
                self._write_index(synced)  # from here on the folder is this mirror's
            changed = False
            for name in self._local.light():
                content = mirror.read(self.mirror / name)
                digest = sha256(content).hexdigest()
                if synced.files.get(name) != digest:
                    self._objects.write(name, content)
                    synced.files[name], changed = digest, True
            if changed:
                self._write_index(synced)

    def _write_index(self, synced: Synced) -> None:
        """Give the folder a new version; the mirror knows it as its own before it is there."""
        synced.pending = secrets.token_hex(8)
        self._local.remember(synced)
        self._objects.write(_INDEX, json.dumps({"version": synced.pending, "files": synced.files}, indent=1).encode())
        synced.version = synced.pending
        self._local.remember(synced)

    def _index(self) -> _Index | None:
        content = self._objects.read(_INDEX)
        if content is None:
            return None
        try:
            found = json.loads(content)
            return _Index(str(found["version"]), {str(name): str(digest) for name, digest in found["files"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return _Index("", {})  # half written, or damaged: everything is looked at

    def delete_checkpoint(self, step: int) -> None:
        """Remove a checkpoint: its manifest first, then the files that it names; whatever else lies there stays."""
        refuse_another(self._objects, self.mirror)
        tidy, self._tidy = self._tidy, False
        manifest = self._objects.read(_at(step, MANIFEST))
        self._objects.remove(_at(step, MANIFEST))
        try:
            files = {} if manifest is None else self._files_of(step, manifest)
        except StorageError:  # damaged, and going
            files = {}
        self._remove_files(step, set(files))
        self._tidy = tidy

    def saved_steps(self) -> list[int]:
        """Steps of the checkpoints that are committed behind the URL, ascending; nothing is verified."""
        return [step for step in self._named_steps() if MANIFEST in self._objects.list(_at(step))]

    def _named_steps(self) -> list[int]:
        return mirror.steps_in(list(self._objects.list(CHECKPOINTS)))

    def _clear_left_over(self) -> None:
        """Remove what a push or a removal that was cut off has left, and no manifest names."""
        if not self._tidy:
            for step in set(self._named_steps()) - set(self.saved_steps()):
                self._remove_files(step, set())

    def _remove_files(self, step: int, names: set[str]) -> None:
        for name in self._objects.list(_at(step)):
            if name in names or name.endswith(".safetensors"):
                self._objects.remove(_at(step, name))
        self._objects.remove_folder(_at(step))


def bring(directory: Path) -> None:
    """Complete a checkpoint's directory in a mirror, of which only the manifest may be there; elsewhere do nothing."""
    remote = Remote.of(directory.parent.parent)
    if remote is not None and (directory / MANIFEST).is_file() and not mirror.is_whole(directory):
        remote.fetch(mirror.step_of(directory))


def _at(step: int, name: str = "") -> str:
    return f"{CHECKPOINTS}/step-{step}/{name}".rstrip("/")
