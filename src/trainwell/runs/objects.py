"""Objects in a folder behind a URL, through fsspec: read, written, listed and removed whole; nothing is ever renamed.

Knows no run. Whatever the client of a store raises becomes one message that names the URL.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from trainwell.errors import ConfigError, StorageError, TrainwellError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]+(.*)", re.DOTALL)
"""Two letters at least: C:/ is a drive. A Path makes `s3:/x` of `s3://x`, so one slash will do."""
_PASSWORD = re.compile(r"[^/@:]*:[^/@]*@")
_WITH_FOLDERS = frozenset({"file", "local", "memory", "sftp", "ssh", "smb", "ftp", "webdav", "hdfs", "webhdfs"})
"""Here a folder is a thing of its own. Elsewhere it is part of a name, and making or removing one is about a bucket."""
_PACKAGES = "s3:// needs the package s3fs, gs:// gcsfs, az:// and abfs:// adlfs, sftp:// paramiko"


def is_url(name: str | PurePath) -> bool:
    """Whether a run is named by a URL: `s3://bucket/runs/demo`, or what a Path made of that, `s3:/bucket/runs/demo`."""
    return _URL.match(str(name)) is not None


def canonical(name: str | PurePath) -> str:
    """The one spelling of a URL; raise ConfigError for one that names no folder, or carries a password."""
    match = _URL.match(str(name))
    if match is None:
        raise ConfigError(f"{name} is no URL of a folder; write scheme://place/of/the/run, as s3://bucket/runs/demo")
    scheme, rest = match.group(1).lower(), match.group(2)
    if _PASSWORD.match(rest):
        raise ConfigError(
            f"{scheme}://...@{rest.rpartition('@')[2]}: a password in a URL ends up in files and on screens; give it "
            "to the store's own configuration, its environment variables or fsspec's configuration file"
        )
    parts = [part for part in re.split(r"[/\\]", rest) if part not in {"", "."}]
    if not parts or ".." in parts:
        raise ConfigError(f"{name} names no folder; write scheme://place/of/the/run, as s3://bucket/runs/demo")
    return f"{scheme}://{'/' if scheme in {'file', 'local'} else ''}{'/'.join(parts)}"


class Objects:
    """The objects below `url`, each by its name: `config.yaml`, `checkpoints/step-4/manifest.json`.

    Every method raises StorageError for what the store refuses, ConfigError for a store that is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = canonical(url)
        self._folders = self.url.partition(":")[0] in _WITH_FOLDERS

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """The file system, and the folder in its own spelling. Nothing is connected before this is asked for."""
        import fsspec

        try:
            store, folder = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise ConfigError(f"{self.url}: {error}. {_PACKAGES}") from error
        except ValueError as error:
            raise ConfigError(f"{self.url}: {error}. file:// needs no package, {_PACKAGES}") from error
        except Exception as error:
            raise self._refused("be opened", error) from error
        return store, str(folder).rstrip("/")

    def read(self, name: str) -> bytes | None:
        """The content of an object; None where there is none."""
        store, folder = self._store
        with self._speaking(f"{name} cannot be read"):
            try:
                return bytes(store.cat_file(f"{folder}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a whole object, over the one of that name."""
        store, folder = self._store
        with self._speaking(f"{name} cannot be written"):
            self._in_folder(name)
            store.pipe_file(f"{folder}/{name}", content)

    def upload(self, name: str, file: Path) -> None:
        """Write a whole object from a file, without holding it in memory."""
        store, folder = self._store
        with self._speaking(f"{name} cannot be written"):
            self._in_folder(name)
            store.put_file(str(file), f"{folder}/{name}")

    def download(self, name: str, file: Path) -> None:
        """Write an object into a local file, without holding it in memory."""
        store, folder = self._store
        with self._speaking(f"{name} cannot be read"):
            store.get_file(f"{folder}/{name}", str(file))

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is removed already."""
        store, folder = self._store
        with self._speaking(f"{name} cannot be removed"), suppress(FileNotFoundError):
            store.rm_file(f"{folder}/{name}")

    def remove_folder(self, name: str) -> None:
        """Remove a folder that is empty, where folders are things of their own; one that is not stays."""
        if self._folders:
            store, folder = self._store
            with suppress(OSError):
                store.rmdir(f"{folder}/{name}")

    def list(self, name: str = "") -> dict[str, int | None]:
        """The names directly in a folder with their sizes in bytes, None for a folder; empty where there is none."""
        store, folder = self._store
        place = f"{folder}/{name}".rstrip("/")
        found: dict[str, int | None] = {}
        with self._speaking(f"{name or 'the folder'} cannot be listed"):
            store.invalidate_cache()  # another process may have written
            try:
                entries = store.ls(place, detail=True)
            except FileNotFoundError:
                return {}
            for entry in entries:
                path = str(entry["name"]).rstrip("/")
                if path.lstrip("/") != place.lstrip("/"):
                    found[path.rpartition("/")[2]] = None if entry["type"] == "directory" else int(entry["size"] or 0)
        return found

    def _in_folder(self, name: str) -> None:
        if self._folders:
            store, folder = self._store
            store.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        """Turn what a store's client raises, which is of a type of its own, into a message."""
        try:
            yield
        except TrainwellError:
            raise
        except Exception as error:
            raise self._refused(what, error) from error

    def _refused(self, what: str, error: Exception) -> StorageError:
        said = " ".join(str(error).split()) or type(error).__name__
        return StorageError(
            f"{self.url}: {what} ({type(error).__name__}: {said}); check the connection, the name, and the credentials "
            "that the store's own tools use"
        )
