"""The local side of a run whose folder is a URL: what lies in it, and what it remembers of the other side.

Knows names and a manifest's list of files, not what the files say, and nothing of the network.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from trainwell.errors import StorageError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
LIGHT = (CONFIG, "env.json", "starts.jsonl", "metrics.jsonl", "samples.txt", "tokenizer.json", "template.json")
LIGHT_FOLDERS = ("attempts", "incidents", "plots")
"""Files that are written whole, beside the checkpoints, and the folders of such files."""
_MARKER = ".remote"
_SYNCED = ".synced"
_STEP = re.compile(r"step-(\d+)")
_PLAIN_NAME = re.compile(r"[^./\\][^/\\]*")


@dataclass
class Synced:
    """What the mirror remembers of the other side."""

    version: str = ""
    """The version with which it was last in step; empty before there was one."""
    pending: str = ""
    """The version it was giving when it last began to: there or not, it is its own doing."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each light file there."""


@dataclass(frozen=True)
class Mirror:
    """A local folder that is kept equal to one behind a URL."""

    path: Path

    @property
    def url(self) -> str | None:
        """What it is a mirror of; None for a folder that is no mirror."""
        try:
            return (self.path / _MARKER).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None

    def mark(self, url: str) -> None:
        """Say what it is a mirror of."""
        if not (self.path / _MARKER).is_file():
            replace(self.path / _MARKER, url.encode())

    def synced(self) -> Synced:
        """What it remembers; nothing where that cannot be read."""
        try:
            found = json.loads((self.path / _SYNCED).read_text(encoding="utf-8"))
            return Synced(str(found["version"]), str(found["pending"]), dict(found["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Synced()

    def remember(self, synced: Synced) -> None:
        """Keep what `synced` says, over what was remembered."""
        replace(self.path / _SYNCED, json.dumps(asdict(synced)).encode())

    def light(self) -> Iterator[str]:
        """Names of the light files that are here."""
        yield from [name for name in LIGHT if (self.path / name).is_file()]
        for folder in LIGHT_FOLDERS:
            inside = sorted((self.path / folder).iterdir()) if (self.path / folder).is_dir() else []
            names = [file.name for file in inside if file.is_file() and file.suffix != ".tmp"]
            yield from [f"{folder}/{name}" for name in names if is_plain(name)]

    def directory(self, step: int) -> Path:
        """Where the checkpoint of state `step` lies."""
        return self.path / CHECKPOINTS / f"step-{step}"

    def checkpoints(self) -> dict[int, Path]:
        """The directories that hold a manifest, by their step; of some it may be the manifest alone."""
        folder = self.path / CHECKPOINTS
        names = [entry.name for entry in folder.iterdir() if (entry / MANIFEST).is_file()] if folder.is_dir() else []
        return {step: self.directory(step) for step in steps_in(names)}

    def drop(self, step: int) -> None:
        """Remove a checkpoint, its manifest first."""
        directory = self.directory(step)
        for file in [directory / MANIFEST, *directory.iterdir()]:
            unlink(file)
        directory.rmdir()


def folder_of(url: str) -> Path:
    """The mirror of a URL: a folder of its own in the cache, with the name of the run."""
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])
    return cache_folder() / "remote" / sha256(url.encode()).hexdigest()[:16] / name


def cache_folder() -> Path:
    """Where caches go: TRAINWELL_CACHE_DIR, else the user's own folder for them."""
    if chosen := os.environ.get("TRAINWELL_CACHE_DIR"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("trainwell", appauthor=False)


def steps_in(names: list[str]) -> list[int]:
    """The steps of those names that are a checkpoint's, ascending."""
    matches = [_STEP.fullmatch(name) for name in names]
    return sorted(int(match.group(1)) for match in matches if match)


def step_of(directory: Path) -> int:
    """The step of a checkpoint's directory."""
    (step,) = steps_in([directory.name])
    return step


def is_plain(name: str) -> bool:
    """Whether a name from elsewhere is that of a file in this folder, and not hidden."""
    return _PLAIN_NAME.fullmatch(name) is not None


def files_of(manifest: bytes, where: str) -> dict[str, dict[str, Any]]:
    """The files that a manifest names, each with `size` in bytes and `sha256`; raise StorageError, saying `where`."""
    try:
        files = json.loads(manifest)["files"]
        if all(is_plain(name) and set(file) >= {"size", "sha256"} for name, file in files.items()):
            return dict(files)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise StorageError(f"{where} cannot be read; the checkpoint is damaged")


def is_whole(directory: Path) -> bool:
    """Whether every file of a checkpoint is there in its size: not so where only the manifest was pulled."""
    try:
        files = files_of(read(directory / MANIFEST), str(directory))
        return all((directory / name).stat().st_size == file["size"] for name, file in files.items())
    except (OSError, StorageError):
        return False


def problem(path: Path, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with a file that a manifest describes so; None when it is that file."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected["size"]:
        return f"has {path.stat().st_size} bytes instead of {expected['size']}"
    return None if digest(path) == expected["sha256"] else "has another SHA-256 than its manifest says"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read(path: Path) -> bytes:
    """The content of a file, or StorageError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, or raise StorageError."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}; free space, or set TRAINWELL_CACHE_DIR to another folder"
        ) from error


def unlink(path: Path) -> None:
    """Remove a file, or raise StorageError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be removed: {error.strerror}") from error
