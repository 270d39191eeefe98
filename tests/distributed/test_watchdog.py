"""Who hangs is named, with real processes that take steps together; and nothing is said of those that do not hang."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from trainwell.distributed.heartbeat import HEARTBEATS, Sign, State
from trainwell.distributed.watchdog import STACKS, VARIABLE, Evidence, Watchdog, judge
from trainwell.errors import ConfigError
from trainwell.runs.exits import Exit, read_exit, write_exit

TIMEOUT_S = 0.5
SIGN = Sign(rank=0, process=4711, host="here", place="", born="", step=40, at="loader.py:7 in read")

RANK = """
import contextlib, os, re, sys, time
from pathlib import Path
from trainwell.distributed.watchdog import Watchdog
from meeting import meet

folder, rank, size, steps, timeout_s = Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5])
with Watchdog(folder / sys.argv[7], rank, size, timeout_s=timeout_s) as watchdog:
    for step in range(1, steps + 1):
        exec(sys.argv[6])
        meet(folder, rank, size, step)
        watchdog.beat(step)
        print(step, flush=True)
"""
"""A rank whose step is a piece of code, and a meeting with all other ranks."""

MEETING = """
import time

def meet(folder, rank, size, step):
    (folder / f"{step}-{rank}").touch()
    while not all((folder / f"{step}-{each}").exists() for each in range(size)):
        time.sleep(0.002)
"""
"""Where ranks wait for each other; it stands where torch's collectives do."""

Ranks = Sequence["subprocess.Popen[str]"]


@contextmanager
def started(
    folder: Path,
    step: str = "",
    *,
    size: int = 2,
    steps: int = 1000,
    timeout_s: float = TIMEOUT_S,
    runs: Sequence[str] = ("run", "run", "run"),
) -> Iterator[Ranks]:
    """Ranks that run `step` in every step, with their own `rank`, `step` and folder; killed in the end."""
    where = folder / "torch" / "distributed"
    where.mkdir(parents=True)
    (where / "meeting.py").write_text(MEETING)
    for run in runs:
        (folder / run).mkdir(exist_ok=True)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *map(str, (folder, rank, size, steps, timeout_s, step, runs[rank]))],
            env=os.environ | {"PYTHONPATH": str(where)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield ranks
    finally:
        for each in ranks:
            each.kill()
            each.communicate()


def reach(rank: "subprocess.Popen[str]", step: int) -> None:
    """Come back once a rank has finished a step."""
    assert rank.stdout is not None
    while int(rank.stdout.readline()) < step:
        pass


def codes(ranks: Ranks, timeout_s: float = 20.0) -> list[int]:
    return [each.wait(timeout_s) for each in ranks]


def end_of(folder: Path) -> Exit:
    found = read_exit(folder / "run")
    assert found is not None
    return found


def stacks_of(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in (folder / "run" / STACKS).glob("*")}


def nothing_happened(folder: Path, ranks: Ranks) -> bool:
    said = [each.communicate(timeout=20) for each in ranks]
    quiet = [each.returncode for each in ranks] == [0] * len(ranks) and not any(err for _, err in said)
    return quiet and sorted(path.name for path in (folder / "run").iterdir()) == [HEARTBEATS]


def test_a_rank_that_hangs_is_named_and_all_end(tmp_path: Path) -> None:
    with started(tmp_path, "if (rank, step) == (1, 3): time.sleep(60)") as ranks:
        assert codes(ranks) == [3, 3]
        end = end_of(tmp_path)
        assert (end.code, end.rank) == (3, 1)
        assert "rank 1 (process" in end.message
        assert "hangs after step 2, while others wait for it: it is at <string>:1 in <module>" in end.message
        assert sum(each.communicate()[1] == f"trainwell: {end.message}\n" for each in ranks) == 1
    stacks = stacks_of(tmp_path)
    assert set(stacks) == {"rank-0", "rank-1"}
    assert "meeting.py" in stacks["rank-0"]
    assert "meeting.py" not in stacks["rank-1"]
    assert all(end.message in text and "The loop is thread 0x" in text for text in stacks.values())


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_before_the_timeout(tmp_path: Path) -> None:
    with started(tmp_path, size=3, timeout_s=3.0) as ranks:
        reach(ranks[1], 5)
        ranks[1].kill()
        begin = time.monotonic()
        assert codes(ranks) == [3, -signal.SIGKILL, 3]
        assert time.monotonic() - begin < 2.5
    end = end_of(tmp_path)
    assert end.rank == 1
    assert "rank 1 (process" in end.message
    assert "is gone; it was last heard of after" in end.message
    assert set(stacks_of(tmp_path)) == {"rank-0", "rank-2"}


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_found_within_the_stated_time(tmp_path: Path) -> None:
    with started(tmp_path, "time.sleep(0.05)", size=3, timeout_s=1.0) as ranks:
        reach(ranks[2], 4)
        ranks[2].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        assert codes(ranks[:2]) == [3, 3]
        assert 1.0 < time.monotonic() - begin < 1.0 + 10 * 0.3 + 2.0  # the timeout, ten slow steps, and some patience
        ranks[2].send_signal(signal.SIGCONT)
        assert ranks[2].wait(20) == 3  # it finds the alarm
    assert end_of(tmp_path).rank == 2
    assert "is stopped, as by SIGSTOP" in end_of(tmp_path).message
    assert {"rank-0", "rank-1"} <= set(stacks_of(tmp_path))


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_found_while_all_are_busy_with_what_they_do_together(tmp_path: Path) -> None:
    evaluating = """
if step == 4:
    with watchdog.busy("evaluating"):
        for part in range(1000):
            watchdog.beat()
            meet(folder, rank, size, 10_000 + part)
            time.sleep(0.01)
"""
    with started(tmp_path, evaluating) as ranks:
        reach(ranks[1], 3)
        time.sleep(0.5)
        ranks[1].send_signal(signal.SIGSTOP)
        assert ranks[0].wait(10) == 3  # thirty timeouts would be 15 s
    assert end_of(tmp_path).rank == 1


@pytest.mark.slow
def test_a_rank_that_never_lets_go_of_the_interpreter_is_named_by_the_others(tmp_path: Path) -> None:
    with started(tmp_path, "if (rank, step) == (0, 3): re.match('(a+)+$', 'a' * 60 + 'b')") as ranks:
        assert ranks[1].wait(30) == 3
    assert end_of(tmp_path).rank == 0
    assert "gave no sign of life" in end_of(tmp_path).message


@pytest.mark.slow
def test_an_error_of_one_rank_is_what_the_others_name(tmp_path: Path) -> None:
    with started(tmp_path, "if (rank, step) == (1, 3): raise OSError('no such thing')") as ranks:
        assert codes(ranks) == [3, 1]
    assert end_of(tmp_path).rank == 1
    assert "left with an error, OSError: no such thing" in end_of(tmp_path).message


@pytest.mark.slow
def test_the_first_end_of_an_attempt_stays(tmp_path: Path) -> None:
    with started(tmp_path, "if (rank, step) == (1, 3): time.sleep(60)") as ranks:
        reach(ranks[0], 1)
        write_exit(tmp_path / "run", Exit(70, 0, "diverged"))
        assert codes(ranks) == [3, 3]
    assert end_of(tmp_path) == Exit(70, 0, "diverged")
    assert set(stacks_of(tmp_path)) == {"rank-0", "rank-1"}


@pytest.mark.slow
def test_a_watcher_that_cannot_write_still_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / HEARTBEATS).write_text("a file in the way")
    (tmp_path / "run" / STACKS).write_text("another")
    with started(tmp_path, "if (rank, step) == (1, 3): time.sleep(60)", timeout_s=0.05) as ranks:
        assert codes(ranks) == [3, 3]  # after thirty timeouts: a rank that was never heard of may be busy


HEALTHY = {
    "steps": "time.sleep(0.02)",
    "steps that get slower": "time.sleep(min(0.04 * 3 ** step, 1.2)) if step < 5 else None",
    "work that comes with every step": """
with watchdog.busy("the body of the loop", every_step=True):
    time.sleep(1.5 if step == 5 and rank == 1 else 0.01)
""",
    "a first step that takes long": "time.sleep(2 if step == 1 else 0.01)",
    "one rank that is busy while the others wait": """
if (rank, step) == (0, 5):
    with watchdog.busy("saving"):
        time.sleep(1.5)
    time.sleep(0.3)
""",
    "one rank that says that it gets on while the others wait": """
if (rank, step) == (1, 5):
    for part in range(15):
        watchdog.beat()
        time.sleep(0.1)
""",
    "files of all ages and a clock that jumps": """
time.time = lambda: 1e9 * (-1) ** step
for path in (folder / "run" / ".heartbeat").glob("rank-?"):
    os.utime(path, (1e9 * (step % 3), 1e9 * (step % 3)))
time.sleep(0.02)
""",
    "a rank that cannot write": """
if (rank, step) == (1, 3):
    in_the_way = folder / "run" / ".heartbeat" / "rank-1.1.tmp"
    while not in_the_way.is_dir():
        with contextlib.suppress(OSError):
            in_the_way.mkdir()
time.sleep(0.05 if step < 20 else 0.3 if step < 25 else 0)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HEALTHY)
def test_nothing_happens_with(what: str, tmp_path: Path) -> None:
    with started(tmp_path, HEALTHY[what], steps=30) as ranks:
        assert nothing_happened(tmp_path, ranks)


@pytest.mark.slow
def test_nothing_happens_where_ranks_have_no_folder_in_common(tmp_path: Path) -> None:
    busy = HEALTHY["one rank that is busy while the others wait"]
    with started(tmp_path, busy, steps=30, runs=("run", "another")) as ranks:
        assert nothing_happened(tmp_path, ranks)


@pytest.mark.slow
def test_nothing_happens_when_the_machine_sleeps(tmp_path: Path) -> None:
    with started(tmp_path, "time.sleep(0.01)", steps=40) as ranks:
        reach(ranks[1], 5)
        for each in ranks:
            each.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        for each in ranks:
            each.send_signal(signal.SIGCONT)
        assert nothing_happened(tmp_path, ranks)


@pytest.mark.slow
def test_what_an_earlier_attempt_left_behind_is_no_news(tmp_path: Path) -> None:
    with started(tmp_path / "first", "if (rank, step) == (1, 3): time.sleep(60)") as ranks:
        assert codes(ranks) == [3, 3]
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "run").rename(tmp_path / "second" / "run")
    old_end = end_of(tmp_path / "second")
    with started(tmp_path / "second", "time.sleep(0.02 if step > 1 else 1.0)", steps=10) as ranks:
        assert codes(ranks) == [0, 0]
    assert end_of(tmp_path / "second") == old_end


def test_leaving_ends_the_thread_and_leaves_word(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 2, timeout_s=0.3) as watchdog:
        watchdog.beat(7)
        assert any(each.name == "trainwell-watchdog" for each in threading.enumerate())
    assert not any(each.name == "trainwell-watchdog" for each in threading.enumerate())
    sign = Sign.read((tmp_path / HEARTBEATS / "rank-0").read_bytes())
    assert sign is not None
    assert (sign.rank, sign.process, sign.step, sign.left) == (0, os.getpid(), 7, "")


def test_an_error_leaves_its_name(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Watchdog(tmp_path, 0, 2, timeout_s=0.3):
        raise KeyError("lost")
    assert json.loads((tmp_path / HEARTBEATS / "rank-0").read_text())["left"] == "KeyError: 'lost'"


@pytest.mark.parametrize(("size", "timeout_s"), [(1, 60.0), (2, 0.0)])
def test_one_rank_and_no_timeout_need_no_watchdog(size: int, timeout_s: float, tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, size, timeout_s=timeout_s) as watchdog, watchdog.busy("saving"):
        watchdog.beat(1)
        assert not any(each.name == "trainwell-watchdog" for each in threading.enumerate())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "removed", 0, 2, timeout_s=0.3):
        pass
    assert not list(tmp_path.iterdir())


def test_the_stated_time_grows_with_the_slowest_step_and_not_with_what_is_no_step(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 2, timeout_s=6.0) as watchdog:
        watchdog.beat(1)
        with watchdog.busy("saving"):
            time.sleep(0.2)
        watchdog.beat(2)
        assert 6.0 <= watchdog.limit_s < 7.5
        time.sleep(0.2)
        watchdog.beat(3)
        assert 8.0 <= watchdog.limit_s < 11.0


def test_the_timeout_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "7.5")
    assert Watchdog(tmp_path, 0, 2).limit_s == 7.5
    monkeypatch.delenv(VARIABLE)
    assert Watchdog(tmp_path, 0, 2).limit_s == 60.0


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_timeout_that_is_none_is_a_message(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{VARIABLE}: '{text}' is no number of seconds; write one such as 60"):
        Watchdog(tmp_path, 0, 2)


WAITS = replace(SIGN, waits=True)
VERDICTS: dict[str, tuple[list[Sign | None], list[State], str]] = {
    "left with an error": ([WAITS, replace(SIGN, left="OSError: x")], ["runs", "gone"], "left with an error, OSError"),
    "gone": ([SIGN, SIGN], ["runs", "gone"], "is gone; it was last heard of after step 40"),
    "stopped": ([SIGN, SIGN], ["runs", "stopped"], "is stopped, as by SIGSTOP; it was last heard of after step 40"),
    "never heard of": ([WAITS, None], ["runs", "unknown"], "gave no sign of life since this one began"),
    "behind": ([replace(SIGN, step=41), WAITS], ["runs", "runs"], "hangs after step 40, while others are past step 41"),
    "not begun": ([SIGN, replace(SIGN, step=None)], ["runs", "runs"], "hangs after the beginning, while others are"),
    "elsewhere": ([WAITS, SIGN], ["runs", "runs"], "hangs after step 40, while others wait for it: it is at loader.py"),
    "busy": ([WAITS, replace(SIGN, busy="saving")], ["runs", "runs"], "in read, busy with saving; the job got nowhere"),
    "has left": ([WAITS, replace(SIGN, left="")], ["runs", "gone"], "has left the loop after step 40, and others wait"),
}


@pytest.mark.parametrize("what", VERDICTS)
def test_a_rank_is_named_that(what: str) -> None:
    signs, states, words = VERDICTS[what]
    verdict = judge(
        [
            Evidence(rank, sign and replace(sign, rank=rank), state)
            for rank, (sign, state) in enumerate(zip(signs, states, strict=True))
        ],
        61.0,
    )
    assert verdict.rank == 1
    assert verdict.message.startswith("rank 1")
    assert words in verdict.message
    assert "the job got nowhere for 61 s" in verdict.message


def test_a_silent_rank_is_named_before_those_that_wait_for_it() -> None:
    evidence = [Evidence(0, SIGN, "runs"), Evidence(1, replace(SIGN, rank=1), "unknown", silent=True)]
    assert judge(evidence, 61.0).message.startswith("rank 1 (process 4711 on here) gave no sign of life for 61 s")


def test_who_is_late_alone_is_named_though_the_others_have_left() -> None:
    evidence = [Evidence(0, SIGN, "runs"), Evidence(1, replace(SIGN, rank=1, left=""), "gone")]
    assert judge(evidence, 61.0).message.startswith("rank 0 (process 4711 on here) hangs after step 40: it is at")


def test_several_are_named_together() -> None:
    evidence = [Evidence(rank, replace(SIGN, rank=rank), "gone" if rank else "runs") for rank in range(4)]
    assert judge(evidence, 61.0).rank == 1
    assert "after step 40; so it is with rank 2, 3; the job" in judge(evidence, 61.0).message


@pytest.mark.parametrize("waits", [False, True])
def test_where_nothing_tells_them_apart_it_says_so(waits: bool) -> None:
    evidence = [Evidence(rank, replace(SIGN, rank=rank, waits=waits), "runs") for rank in (0, 1)]
    told = "no rank got on for 61 s after step 40, and which one hangs cannot be told: rank 0 is at loader.py:7 in read"
    assert judge(evidence, 61.0).message.startswith(told)
