"""exit.json: whole, written once, read back."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainwell.errors import StorageError
from trainwell.runs.exits import EXIT, Exit, forget_exit, read_exit, write_exit

FIRST = Exit(70, 1, "the loss was not finite, says \u201crank 1\u201d")


def test_the_first_end_stays_and_is_read_back(tmp_path: Path) -> None:
    assert write_exit(tmp_path, FIRST)
    assert not write_exit(tmp_path, Exit(3, 0, "a rank hangs"))
    assert read_exit(tmp_path) == FIRST
    assert json.loads((tmp_path / EXIT).read_text()) == {"code": 70, "rank": 1, "message": FIRST.message}
    assert [path.name for path in tmp_path.iterdir()] == [EXIT]


def test_of_many_that_end_at_once_one_is_the_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda rank: write_exit(tmp_path, Exit(3, rank, "x" * 10_000)), range(32)))
    assert sum(won) == 1
    assert read_exit(tmp_path) == Exit(3, won.index(True), "x" * 10_000)


def test_where_none_ended_or_nothing_can_be_read_there_is_none(tmp_path: Path) -> None:
    assert read_exit(tmp_path) is None
    for text in ("", "[]", "{}", '{"code": null, "rank": 0, "message": ""}'):
        (tmp_path / EXIT).write_text(text)
        assert read_exit(tmp_path) is None


def test_a_fresh_start_forgets_the_end_and_may_do_so_twice(tmp_path: Path) -> None:
    write_exit(tmp_path, FIRST)
    forget_exit(tmp_path)
    forget_exit(tmp_path)
    assert read_exit(tmp_path) is None
    assert write_exit(tmp_path, FIRST)


def test_what_cannot_be_written_or_removed_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*exit\.json"):
        write_exit(tmp_path / "missing", FIRST)
    (tmp_path / EXIT).mkdir()
    with pytest.raises(StorageError, match=r"cannot remove .*exit\.json"):
        forget_exit(tmp_path)
