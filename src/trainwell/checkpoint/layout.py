"""How a checkpoint lies on disk: `step-N/` with tensors, and a manifest that makes it one. Pure files; never torch.

The manifest is the commit: it is written last, names every file with size and SHA-256, and carries its own digest. A
directory whose manifest does not verify is not a checkpoint.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from trainwell.errors import StorageError
from trainwell.runs.remote import bring

FORMATS = (1, 2)
"""With the tensors in one file, and in one for each rank."""
MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
LEFT_BEHIND = re.compile(r"step-\d+\.(tmp|replaced|removed)-[0-9a-f]{8}")
"""What a killed save leaves, what a save took the place of, and what is half removed."""
_SHARD = re.compile(r"shard-\d{5,}-model-00001-of-00001\.safetensors")
_NAME = re.compile(r"step-(\d+)")


def directory_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of state `step` lies."""
    return folder / f"step-{step}"


def shard_name(rank: int) -> str:
    """The file of a rank's part of the tensors; the name is torch.distributed.checkpoint's."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def is_shard(name: str) -> bool:
    """Whether a file of this name holds the part of one rank."""
    return _SHARD.fullmatch(name) is not None


def saved_steps(folder: Path) -> list[int]:
    """Steps whose directories have the name and a manifest, ascending; nothing is verified."""
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir()]
    return sorted(int(match.group(1)) for match, entry in named if match and (entry / MANIFEST).is_file())


def candidates(folder: Path) -> list[int]:
    """Steps whose directories have the name, ascending, with or without a manifest."""
    if not folder.is_dir():
        return []
    named = [_NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir()]
    return sorted(int(match.group(1)) for match in named if match)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds: the state as JSON with tensors named, and free facts about the run in `meta`."""

    step: int
    state: Any
    tensors: dict[str, dict[str, Any]]
    meta: dict[str, Any]


def write_manifest(directory: Path, manifest: Manifest, files: dict[str, dict[str, Any]] | None = None) -> None:
    """Write and fsync the manifest of the files that lie in `directory`, or of `files`, described already."""
    if files is None:
        files = {path.name: describe_file(path) for path in directory.iterdir()}
    content = {
        "format": 2 if any(map(is_shard, files)) else 1,
        "step": manifest.step,
        "files": dict(sorted(files.items())),
        "tensors": manifest.tensors,
        "meta": manifest.meta,
        "state": manifest.state,
    }
    write_synced(directory / MANIFEST, _written(content))


def read_manifest(directory: Path, *, verify_files: bool = True) -> Manifest:
    """Read a manifest and verify it, and the files it names; raise StorageError saying what does not hold.

    In the mirror of a folder behind a URL the files are brought first.
    """
    if verify_files:
        bring(directory)
    content = _verified(directory)
    if verify_files:
        for problem in _damaged(directory, content["files"]):
            raise StorageError(f"{directory}: {problem}; the checkpoint is damaged")
    return Manifest(content["step"], content["state"], content["tensors"], content["meta"])


def _verified(directory: Path) -> dict[str, Any]:
    """What a manifest says, if it is as it was written."""
    try:
        text = (directory / MANIFEST).read_bytes()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise StorageError(f"{directory}: its manifest is missing; it is not a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{directory}: its manifest cannot be read ({error}); it is not a complete checkpoint"
        ) from error
    digest = content.pop("digest", None)
    if digest != _digest(content):
        raise StorageError(f"{directory}: its manifest does not match its own digest; the checkpoint is damaged")
    if content["format"] not in FORMATS:
        raise StorageError(
            f"{directory}: format {content['format']}, this trainwell reads {' and '.join(map(str, FORMATS))}; use the "
            "one it was made with"
        )
    if text != _written(content):
        raise StorageError(f"{directory}: its manifest is not as it was written; the checkpoint is damaged")
    return content


def _damaged(directory: Path, files: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != expected["size"]:
            yield f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        elif describe_file(path) != expected:
            yield f"the SHA-256 of {name} differs"


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _written(content: dict[str, Any]) -> bytes:
    """The one way in which a manifest is written: a bit that changes no value, 1e-05 to 1E-05, is damage too."""
    return json.dumps(content | {"digest": _digest(content)}, indent=1).encode()


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and force it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Force a directory's entries to the disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
