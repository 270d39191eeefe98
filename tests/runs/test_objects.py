"""URLs of folders: their one spelling, and stores that cannot be used."""

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from trainwell.errors import ConfigError, StorageError
from trainwell.runs.objects import Objects, canonical, is_url
from trainwell.runs.rundir import local_folder

pytestmark = pytest.mark.usefixtures("line")


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("s3://bucket/runs/demo", "s3://bucket/runs/demo"),
        (PurePosixPath("s3://bucket/runs/demo"), "s3://bucket/runs/demo"),
        (PureWindowsPath("s3://bucket/runs/demo"), "s3://bucket/runs/demo"),
        ("S3://bucket//runs/./demo/", "s3://bucket/runs/demo"),
        ("memory://runs/demo", "memory://runs/demo"),
        ("memory:///runs/demo", "memory://runs/demo"),
        (PurePosixPath("file:///tmp/x/demo"), "file:///tmp/x/demo"),
        ("abfs://box@account.dfs.core.windows.net/demo", "abfs://box@account.dfs.core.windows.net/demo"),
    ],
)
def test_a_url_has_one_spelling_even_after_a_path_collapsed_its_slashes(name: Any, spelled: str) -> None:
    assert is_url(name)
    assert canonical(name) == spelled


@pytest.mark.parametrize("name", ["demo", "runs/demo", "/tmp/runs", "C:/runs/demo", "dialect:nanogpt", "a b://c", "."])
def test_a_path_or_a_name_is_no_url(name: str, tmp_path: Path) -> None:
    assert not is_url(name)
    assert local_folder(name) == Path(name)


@pytest.mark.parametrize("name", ["memory://", "s3:///", "file:///a/../b"])
def test_a_url_of_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="names no folder; write scheme://place"):
        canonical(name)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="a password in a URL") as refused:
        canonical("ftp://me:hunter2@host/runs")
    assert "hunter2" not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        known_implementations, "faraway", {"class": "nowhere.Nothing", "err": "Install nowherefs to access faraway"}
    )
    with pytest.raises(ConfigError, match=r"faraway://b/x: Install nowherefs to access faraway\. s3:// needs.*s3fs"):
        local_folder("faraway://b/x")


def test_an_unknown_scheme_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"nonsense://b/x: .*nonsense.*file:// needs no package.*s3fs.*gcsfs"):
        local_folder("nonsense://b/x")


def test_a_store_that_only_reads_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(StorageError, match=r"memory://x/demo: .*NotImplementedError"):
        Objects("memory://x/demo").write("a", b"")
