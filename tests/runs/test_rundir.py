"""Paths of a run, its lock, and how a run or a step of it is named."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainwell.errors import ConfigError, RunBusyError, StorageError
from trainwell.runs.rundir import RunDir, Target, is_run, next_free, parse_target

OWN_AND_WAIT = """
import sys, time
from pathlib import Path
from trainwell.runs.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_next_free_folder_has_the_name_then_the_name_with_a_number(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        free = next_free("demo", tmp_path)
        names.append(free.name)
        free.create()
    assert names == ["demo", "demo-2", "demo-3"]


def test_looking_for_a_free_folder_creates_nothing(tmp_path: Path) -> None:
    next_free("demo", tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_a_run_once_it_holds_a_config(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    RunDir(tmp_path).config_yaml.write_text("name: demo\n")
    assert is_run(tmp_path)


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    with run.lock(), pytest.raises(RunBusyError) as refused, run.lock():
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(refused.value)
    assert "--run" in str(refused.value)
    assert refused.value.exit_code == 73


def test_a_run_has_an_owner_only_while_it_is_locked(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    assert run.owner() is None
    with run.lock():
        assert run.owner() == f"process {os.getpid()} on {socket.gethostname()}"
    assert run.owner() is None


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    command = [sys.executable, "-c", OWN_AND_WAIT, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        assert run.owner() == f"process {owner.pid} on {socket.gethostname()}"
        with pytest.raises(RunBusyError, match=str(owner.pid)), run.lock():
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    with run.lock():
        assert run.owner() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_run_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot make the run folder .*file/demo.*--run"):
        RunDir(tmp_path / "file" / "demo").create()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("demo", Target("demo", None)),
        ("runs/demo", Target("runs/demo", None)),
        ("runs/demo@1200", Target("runs/demo", 1200)),
        ("runs/demo@0", Target("runs/demo", 0)),
        ("runs/demo@best", Target("runs/demo", "best")),
        ("runs/demo@last", Target("runs/demo", "last")),
        ("me@home/demo@7", Target("me@home/demo", 7)),
    ],
)
def test_a_target_is_a_name_and_perhaps_a_step(text: str, target: Target) -> None:
    assert parse_target(text) == target


def test_a_folder_whose_name_has_an_at_sign_is_not_a_step(tmp_path: Path) -> None:
    folder = tmp_path / "trial@best"
    folder.mkdir()
    assert parse_target(str(folder)) == Target(str(folder), None)


@pytest.mark.parametrize("text", ["runs/demo@soon", "runs/demo@", "runs/demo@-1", "runs/demo@1.5"])
def test_a_step_that_is_none_says_what_a_step_looks_like(text: str) -> None:
    with pytest.raises(ConfigError, match="write runs/demo@1200, runs/demo@best or runs/demo@last"):
        parse_target(text)


def test_a_step_of_nothing_asks_for_the_run() -> None:
    with pytest.raises(ConfigError, match="names a step of nothing"):
        parse_target("@1200")
