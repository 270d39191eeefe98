"""Stores to keep runs in: fsspec's memory and local file systems, and one that can be cut off and made to lie."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from trainwell.runs.objects import Objects


class Faulty(MemoryFileSystem):  # type: ignore[misc]
    """Objects without folders and without renaming, over a line that can be cut, watched and made to lie."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    said: ClassVar[list[str]] = []
    left: ClassVar[int | None] = None
    """So many more writes and removals succeed; None: all of them."""
    after: ClassVar[Callable[[str], None] | None] = None
    """What happens after each write or removal, to the name of the object."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).replace("faulty://", "memory://")))

    def _changing(self, what: str, path: str) -> None:
        if Faulty.left is not None and Faulty.left <= 0:
            raise RuntimeError("line cut")  # a client's own type, of which we cannot know
        if Faulty.left is not None:
            Faulty.left -= 1
        Faulty.said.append(f"{what} {path.rpartition('demo/')[2]}")

    def _changed(self, path: str) -> None:
        if Faulty.after is not None:
            Faulty.after(path.rpartition("demo/")[2])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._changing("write", path)
        super().pipe_file(path, value, mode, **kwargs)
        self._changed(path)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        self._changing("write", rpath)
        super().pipe_file(rpath, Path(lpath).read_bytes())
        self._changed(rpath)

    def rm_file(self, path: str) -> None:
        if not self.exists(path):
            raise FileNotFoundError(path)
        self._changing("remove", path)
        super().rm_file(path)
        self._changed(path)

    def mv(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("this store cannot rename")

    move = rename = mv_file = copy = cp_file = mv


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    """The line to faulty://, whole; stores that are empty, and a cache of the test's own."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path / "cache"))
    yield Faulty
    Faulty.store.clear()
    Faulty.said.clear()
    Faulty.left, Faulty.after = None, None
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "file", "faulty"])
def url(request: pytest.FixtureRequest, tmp_path: Path, line: type[Faulty]) -> str:
    """Of a run that is not there yet, in each kind of store."""
    return (
        f"file://{tmp_path}/far/demo" if request.param == "file" else f"{request.param}://{secrets.token_hex(4)}/demo"
    )


@pytest.fixture
def faulty(line: type[Faulty]) -> str:
    """Of a run that is not there yet, in the store that can be cut off."""
    return f"faulty://{secrets.token_hex(4)}/demo"


@pytest.fixture
def behind() -> Callable[[str], dict[str, bytes]]:
    """Every object below a URL, read past our own code."""

    def read(url: str) -> dict[str, bytes]:
        store, place = fsspec.core.url_to_fs(url)
        return {name[len(place) :].lstrip("/"): bytes(store.cat_file(name)) for name in store.find(place)}

    return read


@pytest.fixture
def dead_owner() -> Callable[..., None]:
    """Write what an owner leaves that was killed."""

    def write(url: str, **changes: Any) -> None:
        about = {"host": "elsewhere", "process": 4711, "nonce": "dead", "beat": 7, "heartbeat_s": 0.04} | changes
        Objects(url).write("owner.json", json.dumps(about).encode())

    return write


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds, ten seconds at most."""

    def wait(done: Callable[[], object]) -> None:
        begin = time.monotonic()
        while not done():
            assert time.monotonic() - begin < 10
            time.sleep(0.005)

    return wait
