"""Who owns a run in a store without locks: told from one that is dead by watching, refused, replaced, noticed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.errors import RunBusyError
from trainwell.runs.objects import Objects
from trainwell.runs.remote import Remote
from trainwell.runs.rundir import RunDir, local_folder

pytestmark = pytest.mark.usefixtures("line")

Behind = Callable[[str], dict[str, bytes]]
Until = Callable[[Callable[[], object]], None]


def test_a_second_owner_on_another_machine_is_refused_and_told_who_the_first_is(
    url: str, tmp_path: Path, behind: Behind
) -> None:
    a, b = Remote(url, tmp_path / "a"), Remote(url, tmp_path / "b")
    heard: list[str] = []
    with a.own(0.3), pytest.raises(RunBusyError) as refused, b.own(0.3, heard.append):
        pass
    assert f"{url} is in use by process {os.getpid()} on {socket.gethostname()}" in str(refused.value)
    assert "--run" in str(refused.value)
    assert refused.value.exit_code == 73
    assert "watching for 0.75 s whether it still is" in heard[0]
    with b.own(0.05, heard.append):
        assert json.loads(behind(url)["owner.json"])["process"] == os.getpid()
    assert "owner.json" not in behind(url)
    assert len(heard) == 1


def test_a_dead_owner_is_replaced_after_two_and_a_half_of_its_beats(
    url: str, tmp_path: Path, behind: Behind, dead_owner: Callable[..., None]
) -> None:
    dead_owner(url)
    begin = time.monotonic()
    with Remote(url, tmp_path / "a").own(heartbeat_s=0.02):
        assert 0.1 <= time.monotonic() - begin < 5
        assert json.loads(behind(url)["owner.json"])["nonce"] != "dead"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"heartbeat_s": "NaN"}', '{"heartbeat_s": 1e300}', "{}"])
def test_an_owner_file_that_says_nothing_useful_is_watched_all_the_same(tmp_path: Path, text: str) -> None:
    Objects("memory://x/demo").write("owner.json", text.encode())
    begin = time.monotonic()
    with Remote("memory://x/demo", tmp_path / "a").own(heartbeat_s=0.04) as ownership:
        assert time.monotonic() - begin >= 0.1
        assert ownership.lost is None


OWN_AND_WAIT = """
import sys, time
from trainwell.runs.rundir import RunDir, local_folder
with RunDir(local_folder(sys.argv[1])).lock(heartbeat_s=0.4):
    print("owned", flush=True)
    time.sleep(60)
"""


def test_a_process_is_seen_to_live_from_another_machine_and_seen_to_be_dead(tmp_path: Path, behind: Behind) -> None:
    url, elsewhere = f"file://{tmp_path}/far/demo", Remote(f"file://{tmp_path}/far/demo", tmp_path / "elsewhere")
    command = [sys.executable, "-c", OWN_AND_WAIT, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "owned\n"
        with pytest.raises(RunBusyError, match=f"process {owner.pid} on {socket.gethostname()}"), elsewhere.own():
            pass
        with pytest.raises(RunBusyError, match=str(owner.pid)), RunDir(local_folder(url)).lock():
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert json.loads(behind(url)["owner.json"])["process"] == owner.pid
    with elsewhere.own(heartbeat_s=0.1):
        assert json.loads(behind(url)["owner.json"])["process"] == os.getpid()


def test_a_killed_run_is_continued_at_once_in_the_mirror_it_worked_in(
    url: str, tmp_path: Path, dead_owner: Callable[..., None]
) -> None:
    dead_owner(url, heartbeat_s=60)
    remote = Remote(url, tmp_path / "a")
    remote.mirror.mkdir()
    (remote.mirror / ".owner").write_text("dead")  # the kernel gave its lock back, so it is dead
    begin = time.monotonic()
    with remote.own(heartbeat_s=0.05):
        assert time.monotonic() - begin < 5


def test_of_two_who_begin_at_once_the_one_who_wrote_first_gives_way(
    faulty: str, tmp_path: Path, line: Any, behind: Behind, dead_owner: Callable[..., None]
) -> None:
    def other(_name: str) -> None:
        line.after = None
        dead_owner(faulty)

    line.after = other
    with pytest.raises(RunBusyError, match="process 4711 on elsewhere"), Remote(faulty, tmp_path / "a").own(0.05):
        pass
    assert json.loads(behind(faulty)["owner.json"])["nonce"] == "dead"


def test_a_heartbeat_that_cannot_be_written_is_trouble_and_not_the_end(
    faulty: str, tmp_path: Path, line: Any, until: Until
) -> None:
    with Remote(faulty, tmp_path / "a").own(0.02) as ownership:
        assert ownership.trouble is None
        line.left = 0
        until(lambda: ownership.trouble)
        assert "line cut" in str(ownership.trouble)
        line.left = None
        until(lambda: ownership.trouble is None)
        assert ownership.lost is None


def test_the_heart_beats_until_the_run_ends(url: str, tmp_path: Path, behind: Behind, until: Until) -> None:
    def beat() -> int:
        return int(json.loads(behind(url)["owner.json"] or b'{"beat": 0}')["beat"])

    with Remote(url, tmp_path / "a").own(0.02):
        assert "trainwell-heartbeat" in {thread.name for thread in threading.enumerate()}
        until(lambda: beat() >= 3)
    assert "trainwell-heartbeat" not in {thread.name for thread in threading.enumerate()}
