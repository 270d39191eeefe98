"""A lock that the kernel holds: waited for, and not for ever."""

import threading
import time
from pathlib import Path

import pytest

from trainwell.errors import RunBusyError, StorageError
from trainwell.runs.lock import held, take


def test_a_lock_is_free_again_once_its_file_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+b") as first, (tmp_path / "lock").open("a+b") as second:
        assert take(first)
        assert not take(second)
        first.close()
        assert take(second)


def test_who_comes_second_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with held(tmp_path / "new" / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(tmp_path / "new" / "lock"):
        thread.start()
        waiting.wait()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_waiting_ends_and_names_the_folder(tmp_path: Path) -> None:
    with (
        held(tmp_path / "lock"),
        pytest.raises(RunBusyError, match=rf"busy with {tmp_path}"),
        held(tmp_path / "lock", wait_s=0),
    ):
        pass


def test_a_lock_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), held(tmp_path / "file" / "lock"):
        pass
