"""A run that is kept going: by hand-written processes that end as told, by real ones, and by `train --restarts`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.checkpoint.layout import saved_steps
from trainwell.errors import StorageError
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir
from trainwell.supervise import FINAL, FIRST_WAIT_S, LONGEST_WAIT_S, SUPERVISED, newest_state, supervise

SCRIPT = """
import os, pathlib, signal, sys
attempts = pathlib.Path("attempts.txt")
with attempts.open("a") as file:
    file.write(os.environ["TRAINWELL_SUPERVISED"] + "\\n")
number = len(attempts.read_text().splitlines())
with pathlib.Path("metrics.jsonl").open("a") as file:
    file.write('{"step": %d, "train/loss": 1.0}\\n' % number)
if number <= int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""
LISTENS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""
TINY = {
    "duration": 60,
    "batch-size": 4,
    "micro-batch": 4,
    "data.path": "text.txt",
    "data.seq-len": 16,
    "data.val-fraction": 0.25,
    "model.num-layers": 1,
    "model.num-heads": 2,
    "model.width": 16,
    "eval.every": "none",
    "sample.every": "none",
    "checkpoint.every": 20,
}


def attempt(code: int, reached: int = 0, lasts_s: float = 1.0) -> tuple[int, int, float]:
    """A process that brings the record to state `reached`, and ends with `code` after `lasts_s`."""
    return code, reached, lasts_s


@dataclass
class World:
    """A clock that only the world moves, a run on disk, and the processes that will be started, in order."""

    run: RunDir
    coming: list[tuple[int, int, float]]
    now_s: float = 1000.0
    waits_s: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    signal_in_wait: int | None = None
    signal_in_child: int | None = None

    def start(self, command: Sequence[str]) -> "World":
        assert command == ["train", "it"]
        self.waits_s.append(0.0)
        return self

    def wait(self) -> int:
        if self.signal_in_child is not None:
            os.kill(os.getpid(), self.signal_in_child)
        code, reached, lasts_s = self.coming.pop(0)
        self.now_s += lasts_s
        if reached:
            self.run.create()
            MetricsFile(self.run.metrics_jsonl).append({"step": reached - 1, "train/loss": 1.0})
        return code

    def send_signal(self, sig: int, /) -> None:
        self.signals.append(sig)

    def sleep(self, seconds: float) -> None:
        if self.signal_in_wait is not None:
            os.kill(os.getpid(), self.signal_in_wait)
        self.now_s += seconds
        self.waits_s[-1] += seconds

    def supervise(self, restarts: int) -> int:
        return supervise(
            ["train", "it"],
            self.run,
            restarts=restarts,
            say=self.said.append,
            start=self.start,
            sleep=self.sleep,
            clock=lambda: self.now_s,
        )


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def make(*coming: tuple[int, int, float]) -> World:
        return World(RunDir(tmp_path / "run"), list(coming))

    return make


@pytest.mark.parametrize("code", [0, 2, 65, 70, 71, 73])
def test_what_would_end_in_the_same_way_is_never_started_again(world: Callable[..., World], code: int) -> None:
    made = world(attempt(code), attempt(0))
    assert made.supervise(restarts=5) == code
    assert len(made.coming) == 1
    assert made.said == []


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (75, "stopped on a signal"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-64, "killed by "),
        (1, "ended with exit code 1"),
        (3, "ended with exit code 3"),
        (74, "ended with exit code 74"),
    ],
)
def test_a_stop_and_a_crash_are_followed_by_another_attempt(world: Callable[..., World], code: int, why: str) -> None:
    made = world(attempt(code, reached=5), attempt(0, reached=9))
    assert made.supervise(restarts=3) == 0
    (line,) = made.said
    assert line.startswith(why)
    assert line.endswith("; restart 1 of 3 in 1 s, from the beginning")


def test_the_waits_double_up_to_a_limit(world: Callable[..., World]) -> None:
    made = world(*(attempt(3, reached=step) for step in range(1, 13)), attempt(0))
    assert made.supervise(restarts=12) == 0
    expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 0]
    assert made.waits_s == pytest.approx(expected)


def test_after_an_attempt_that_lasted_the_waits_begin_anew(world: Callable[..., World]) -> None:
    made = world(attempt(3, 1), attempt(3, 2), attempt(3, 3, lasts_s=LONGEST_WAIT_S + 1), attempt(3, 4), attempt(0))
    assert made.supervise(restarts=9) == 0
    assert made.waits_s == pytest.approx([1, 2, 1, 2, 0])


def test_two_attempts_in_a_row_without_a_new_step_end_it(world: Callable[..., World]) -> None:
    made = world(attempt(-9, reached=7), attempt(-9, reached=7), attempt(-9, reached=3), attempt(0))
    assert made.supervise(restarts=9) == 137
    assert len(made.coming) == 1
    assert made.said[-1] == (
        "killed by SIGKILL; two attempts in a row came no further than step 7, so it is not started again; "
        f"continue by hand: trainwell train {made.run.path}"
    )


def test_one_attempt_without_a_new_step_is_forgiven(world: Callable[..., World]) -> None:
    made = world(attempt(3, 7), attempt(3, 7), attempt(3, 8), attempt(3, 8), attempt(0, 12))
    assert made.supervise(restarts=9) == 0


def test_steps_that_were_on_record_before_are_no_progress(world: Callable[..., World]) -> None:
    made = world(attempt(74), attempt(74), attempt(0))
    made.run.create()
    MetricsFile(made.run.metrics_jsonl).append({"step": 41, "train/loss": 1.0})
    assert made.supervise(restarts=9) == 74
    assert "came no further than step 42" in made.said[-1]


@pytest.mark.parametrize(("restarts", "named"), [(1, "the only restart is used up"), (2, "all 2 restarts are used up")])
def test_when_all_restarts_are_used_up_the_last_exit_code_is_that_of_the_command(
    world: Callable[..., World], restarts: int, named: str
) -> None:
    made = world(*(attempt(3, reached=step) for step in range(1, restarts + 1)), attempt(75, reached=9), attempt(0))
    assert made.supervise(restarts) == 75
    assert len(made.coming) == 1
    assert named in made.said[-1]


@given(
    outcomes=st.lists(st.tuples(st.sampled_from([0, 2, 65, 70, 71, 73, 75, 3, 74, -9]), st.integers(0, 6))),
    restarts=st.integers(1, 6),
)
def test_whatever_happens_it_ends_in_time_and_says_why(
    tmp_path_factory: pytest.TempPathFactory, outcomes: list[tuple[int, int]], restarts: int
) -> None:
    coming = [attempt(code, reached) for code, reached in outcomes] + [attempt(0)]
    made = World(RunDir(tmp_path_factory.mktemp("any") / "run"), list(coming))
    ended = made.supervise(restarts)
    attempts = len(coming) - len(made.coming)
    last = coming[attempts - 1][0]
    assert 1 <= attempts <= restarts + 1
    assert ended == (last if last >= 0 else 128 - last)
    assert not any(code in FINAL for code, _, _ in coming[: attempts - 1])
    assert len(made.said) == attempts - (last in FINAL)


def test_a_signal_is_passed_on_and_then_nothing_is_started_again(world: Callable[..., World]) -> None:
    made = world(attempt(75, reached=5), attempt(0))
    made.signal_in_child = signal.SIGTERM
    before = signal.getsignal(signal.SIGTERM)
    assert made.supervise(restarts=3) == 75
    assert made.signals == [signal.SIGTERM]
    assert made.said == []
    assert len(made.coming) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_the_child_was_too_young_to_hear_is_a_stop(world: Callable[..., World]) -> None:
    made = world(attempt(-signal.SIGTERM), attempt(0))
    made.signal_in_child = signal.SIGTERM
    assert made.supervise(restarts=3) == 75


def test_a_signal_during_a_wait_ends_it_there(world: Callable[..., World]) -> None:
    made = world(attempt(-9, reached=5), attempt(0))
    made.signal_in_wait = signal.SIGINT
    assert made.supervise(restarts=3) == 137
    assert len(made.coming) == 1
    assert sum(made.waits_s) < FIRST_WAIT_S


def test_the_newest_state_is_that_of_a_checkpoint_or_of_the_metrics(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert newest_state(run) == 0
    run.create()
    MetricsFile(run.metrics_jsonl).append({"step": 6, "train/loss": 1.0})
    assert newest_state(run) == 7
    run.metrics_jsonl.write_text("damaged\nand more\n")
    with pytest.raises(StorageError):
        MetricsFile(run.metrics_jsonl).read()
    assert newest_state(run) == 0


def test_a_real_process_that_kills_itself_twice_is_brought_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT)
    said: list[str] = []
    command = [sys.executable, "train.py", "2"]
    assert supervise(command, RunDir(Path()), restarts=5, say=said.append, sleep=lambda _: None) == 0
    assert Path("attempts.txt").read_text() == "1\n1\n1\n"
    assert [line.split(";")[0] for line in said] == ["killed by SIGKILL"] * 2
    assert SUPERVISED not in os.environ


def test_a_real_signal_reaches_the_real_child(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LISTENS)
    code = (
        "import sys, pathlib; from trainwell.supervise import supervise; from trainwell.runs.rundir import RunDir;"
        "sys.exit(supervise([sys.executable, 'train.py'], RunDir(pathlib.Path()), restarts=3, say=print))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
        assert process.wait(timeout=30) == 75
        assert time.monotonic() - began < 30


def of_group(pid: int) -> list[int]:
    """The processes that `pid` started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child in /proc")
def test_train_with_restarts_survives_a_kill_and_reaches_the_same_bits(tmp_path: Path, text: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRAINWELL_CACHE_DIR": str(tmp_path / "cache")}

    def begin(run: str, *more: str) -> "subprocess.Popen[str]":
        flags = [token for key, value in TINY.items() for token in (f"--{key}", str(value))]
        return subprocess.Popen(
            [sys.executable, "-m", "trainwell", "train", "demo", "--run", run, *more, *flags],
            cwd=text.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with begin("kept", "--restarts", "3", "--log.every", "1", "--sample.prompt=--a b") as kept:
        assert kept.stdout is not None
        for line in kept.stdout:
            late = line.startswith("step ") and int(line.split()[1]) >= 25
            if late and saved_steps(tmp_path / "kept" / "checkpoints"):  # in the background, so maybe later than 20
                break
        (child,) = of_group(kept.pid)
        os.kill(child, signal.SIGKILL)
        out, err = kept.communicate(timeout=120)
    assert kept.returncode == 0, err
    told = re.fullmatch(r"trainwell: killed by SIGKILL; restart 1 of 3 in 1 s, from step (20|40)\n", err)
    assert told, err
    assert f"continuing kept from step {told[1]} of 60" in out
    with begin("straight") as straight:
        _, err = straight.communicate(timeout=120)
    assert straight.returncode == 0, err
    ends = [tmp_path / run / "checkpoints" / "step-60" for run in ("kept", "straight")]
    one, other = ((end / "tensors.safetensors").read_bytes() for end in ends)
    assert one == other
    assert saved_steps(tmp_path / "kept" / "checkpoints")[-1] == 60
    losses = [MetricsFile(tmp_path / run / "metrics.jsonl").read().train for run in ("kept", "straight")]
    of_each = [json.dumps([(row["step"], row["train/loss"]) for row in rows]) for rows in losses]
    assert of_each[0] == of_each[1]
