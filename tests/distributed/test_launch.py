"""Ranks started through the elastic agent: what they are told, how they end together, and in whose words."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.distributed.launch import LAUNCHED, Ended, Ranks, Verdict, announce, launch, threads_each, verdict
from trainwell.runs.exits import Exit, write_exit
from trainwell.supervise import on_stop_signals

RANK = """
import os, pathlib, signal, sys, time
from trainwell.distributed.launch import announce
stopped = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: stopped.append(number))
announce()
rank, mode = os.environ["RANK"], sys.argv[1]
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE OMP_NUM_THREADS TORCHELASTIC_RESTART_COUNT"
pathlib.Path(f"seen-{rank}").write_text(" ".join(os.environ[name] for name in names.split()))
if mode == "kill" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if mode.isdigit():
    sys.exit(int(mode) if rank == "1" else 0)
until = time.monotonic() + 60
while mode != "fine" and not stopped and time.monotonic() < until:
    time.sleep(0.02)
pathlib.Path(f"heard-{rank}").write_text(" ".join(map(str, stopped)))
while mode == "wait" and len([*pathlib.Path().glob("heard-*")]) < 2 and time.monotonic() < until:
    time.sleep(0.02)  # when the first rank ends, torchrun ends the others by another signal
sys.exit(75 if stopped else 0)
"""
Launch = Callable[..., int]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Launch:
    """Launches two ranks of RANK in a folder of their own; the mode says what they do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "rank.py").write_text(RANK)

    def start(mode: str) -> int:
        before = dict(os.environ)
        command = [sys.executable, "rank.py", mode]
        code = launch(command, 2, tmp_path, say=said.append, on_signals=on_stop_signals)
        assert dict(os.environ) == before
        return code

    return start


@pytest.mark.slow
def test_ranks_have_torchruns_variables_and_their_share_of_the_cores(
    started: Launch, tmp_path: Path, said: list[str]
) -> None:
    assert started("fine") == 0
    for rank in range(2):
        assert (tmp_path / f"seen-{rank}").read_text() == f"{rank} 2 {rank} 2 {threads_each(2)} 0"
    assert said == []


@pytest.mark.slow
def test_the_exit_code_of_a_rank_is_the_exit_code_of_all(started: Launch, said: list[str]) -> None:
    assert started("65") == 65
    assert said == []  # it has said so itself


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_the_others_are_asked_to_end(
    started: Launch, tmp_path: Path, said: list[str]
) -> None:
    assert started("kill") == 128 + signal.SIGKILL
    assert said == ["rank 1 was killed by SIGKILL"]
    assert (tmp_path / "heard-0").read_text() == str(int(signal.SIGTERM))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_reaches_every_rank_once(
    started: Launch, tmp_path: Path, said: list[str], number: signal.Signals
) -> None:
    def send() -> None:
        until = time.monotonic() + 60
        while not all((tmp_path / f"seen-{rank}").exists() for rank in range(2)) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert started("wait") == 75
    assert said == [f"{number.name}: finishing this step and saving; once more to end at once"]
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2


@pytest.mark.slow
def test_a_command_that_is_not_there_is_one_message(tmp_path: Path, said: list[str]) -> None:
    from trainwell.errors import TrainwellError

    with pytest.raises(TrainwellError, match=r"the 2 processes could not be started: .*no-such-program"):
        launch([str(tmp_path / "no-such-program")], 2, tmp_path, say=said.append, on_signals=on_stop_signals)


def test_the_first_rank_that_was_killed_is_named_although_another_said_that_it_lost_it() -> None:
    lost = Exit(3, 0, "connection closed by peer")
    assert verdict([Ended(1, -9), Ended(0, 3)], lost, asked=False) == Verdict(137, "rank 1 was killed by SIGKILL")
    assert verdict([Ended(2, -11)], None, asked=False) == Verdict(139, "rank 2 was killed by SIGSEGV")


def test_what_a_rank_said_is_not_said_again_and_its_code_is_the_code_of_all() -> None:
    said = Exit(74, 1, "rank 1: no space left")
    assert verdict([Ended(1, 74), Ended(0, -15)], said, asked=False) == Verdict(74)
    assert verdict([Ended(0, 3), Ended(1, 74)], said, asked=False) == Verdict(74)
    assert verdict([Ended(0, 73), Ended(1, -15)], None, asked=False) == Verdict(73)


def test_ranks_that_were_asked_to_stop_have_stopped_unless_one_says_otherwise() -> None:
    assert verdict([Ended(0, -15), Ended(1, 75)], None, asked=True) == Verdict(75)
    assert verdict([Ended(0, 75), Ended(1, 75)], Exit(75, 0, "stopped at step 4"), asked=True) == Verdict(75)
    assert verdict([Ended(1, 75), Ended(0, 3)], None, asked=True) == Verdict(75)
    assert verdict([Ended(0, 74), Ended(1, -15)], Exit(74, 0, "no space left"), asked=True) == Verdict(74)


codes = st.integers(-15, 75).filter(bool)
ends = st.none() | st.builds(Exit, st.integers(1, 75), st.integers(0, 3), st.just("said"))


@given(st.lists(codes, min_size=1, max_size=4), ends, st.booleans())
def test_ranks_that_failed_never_end_well(failed: list[int], end: Exit | None, asked: bool) -> None:
    found = verdict([Ended(rank, code) for rank, code in enumerate(failed)], end, asked=asked)
    assert 0 < found.code < 256


def test_each_process_has_at_least_one_thread() -> None:
    assert threads_each(1) >= 1
    assert threads_each(10_000) == 1


def test_a_signal_is_passed_on_to_whoever_is_known_by_then_and_once(tmp_path: Path, said: list[str]) -> None:
    heard = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        ranks = Ranks(tmp_path, said.append, echoes=False)
        ranks.hear(signal.SIGTERM)
        ranks.pass_on()
        assert heard == []
        (tmp_path / "rank-0").write_text(str(os.getpid()))
        for _ in range(3):
            ranks.pass_on()
        assert heard == [signal.SIGTERM]
        ranks.hear(signal.SIGTERM)
        ranks.pass_on()
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(said) == 1


def test_the_same_signal_twice_at_once_is_one_where_it_comes_by_two_ways(tmp_path: Path, said: list[str]) -> None:
    heard = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        (tmp_path / "rank-0").write_text(str(os.getpid()))
        ranks = Ranks(tmp_path, said.append, echoes=True)
        for _ in range(2):
            ranks.hear(signal.SIGTERM)
            ranks.pass_on()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_process_that_nobody_launched_announces_nothing(tmp_path: Path) -> None:
    for environment in ({}, {LAUNCHED: str(tmp_path)}, {"RANK": "0"}):
        announce(environment)
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "trainwell-orphan" for thread in threading.enumerate())


def test_exit_json_of_the_first_rank_stays(tmp_path: Path) -> None:
    assert write_exit(tmp_path, Exit(65, 1, "first"))
    assert not write_exit(tmp_path, Exit(2, 0, "second"))
    assert verdict([Ended(0, 2), Ended(1, 65)], Exit(65, 1, "first"), asked=False).code == 65
