"""Real signals to a real process: it saves, ends with 75, and goes on as if nothing had been; a second one ends it.

And the interrupt of a notebook, wherever it comes: the run is whole, its folder free, and building it again goes on.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell import faults
from trainwell.checkpoint.layout import read_manifest, saved_steps

STEPS = 300
KEYS: dict[str, object] = {
    "duration": STEPS,
    "batch-size": 4,
    "micro-batch": 4,
    "data.path": "text.txt",
    "data.seq-len": 16,
    "data.val-fraction": 0.25,
    "model.num-layers": 1,
    "model.num-heads": 2,
    "model.width": 16,
    "model.dropout": 0.1,
    "eval.every": "none",
    "sample.every": "none",
    "checkpoint.every": 50,
    "log.every": 1,
}


def train(run: str, **changes: object) -> list[str]:
    """The arguments that start or continue a run that takes seconds."""
    keys = KEYS | changes
    return [
        "-m",
        "trainwell",
        "train",
        "demo",
        "--run",
        run,
        *(str(x) for key in keys for x in (f"--{key}", keys[key])),
    ]


def until_step(process: subprocess.Popen[str], step: int) -> None:
    """Read what it prints until it has taken `step`, and has hundreds left."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return
    raise AssertionError(f"it ended before step {step}: {process.communicate()[1]}")


@pytest.mark.slow
def test_interrupted_terminated_and_killed_a_run_goes_on_to_the_same_bits(
    start: Callable[..., subprocess.Popen[str]],
    end: Callable[..., str],
    outcome_of: Callable[[Path, int], Any],
    tmp_path: Path,
) -> None:
    straight = start(*train("straight"), OMP_NUM_THREADS="1")
    run = tmp_path / "signalled"
    for number, step, twice in ((signal.SIGINT, 10, False), (signal.SIGTERM, 60, True)):
        process = start(*train("signalled"), OMP_NUM_THREADS="1")
        until_step(process, step)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"{number.name}: finishing this step and saving")
        if twice:
            process.send_signal(number)
        err = process.stderr.read()
        assert process.wait(timeout=60) == 75
        stopped_at = saved_steps(run / "checkpoints")[-1]
        assert stopped_at < STEPS - 50
        if twice:
            assert err == "trainwell: interrupted\n"
            assert stopped_at >= 50  # where it was saved last, at least
        else:
            assert stopped_at > step
            assert f"stopped at step {stopped_at} of {STEPS} and saved; continue: trainwell train signalled" in err
        assert read_manifest(run / "checkpoints" / f"step-{stopped_at}").step == stopped_at
    killed = start(*train("signalled"), OMP_NUM_THREADS="1")
    until_step(killed, 130)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert "continuing signalled from step 1" in end(
        start("-m", "trainwell", "train", "signalled", OMP_NUM_THREADS="1")
    )
    end(straight)
    assert outcome_of(run, STEPS) == outcome_of(tmp_path / "straight", STEPS)


@pytest.mark.slow
def test_a_long_evaluation_is_given_up_when_the_process_is_asked_to_stop(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    words = (tmp_path / "text.txt").read_text()
    (tmp_path / "long.txt").write_text(words * 3000)
    long = {"data.path": "long.txt", "data.val-fraction": 0.9, "eval.every": 100, "eval.batches": 0}
    process = start(*train("long", **long), OMP_NUM_THREADS="1")
    assert process.stdout is not None
    assert any(line.startswith("about ") for line in process.stdout)  # now it evaluates, for a minute if nobody comes
    process.send_signal(signal.SIGUSR1)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert time.monotonic() - began < 20
    assert err.startswith("SIGUSR1: finishing this step and saving")
    assert "val loss" not in out
    assert saved_steps(tmp_path / "long" / "checkpoints")[-1] <= 1


BETWEEN_OPEN_AND_WITH = "ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning"
"""Where a save in the background raises the interrupt, the loop may be just about to enter the file it has opened."""
INTERRUPTED_AT = (
    "after_backward@0",
    "after_backward@6",
    "after_update@6",
    "log.before_line@6",
    "log.after_line@6",
    "eval.mid@0",
    "eval.mid@4",
    "sample.mid@4",
    "ckpt.tmp_open@4",
    "ckpt.before_manifest@8",
    "ckpt.before_rename@4",
    "ckpt.after_rename@8",
    "ckpt.mid_gc@4",
)
OBSERVED: dict[str, Any] = {
    "eval": {"every": 4, "batches": 2},
    "sample": {"every": 4, "tokens": 3},
    "checkpoint": {"every": 4, "keep": 2, "best": False},
}


def interrupt() -> None:
    """What the stop button of a notebook does."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {}


@pytest.fixture
def straight(known: dict[str, Any], build_tiny: Callable[..., Any], outcome_of: Callable[[Path, int], Any]) -> Any:
    """How the run ends that nobody interrupts; trained once."""
    from trainwell.fit import fit

    if not known:
        fit(build_tiny(run_dir="straight", **OBSERVED))
        known["outcome"] = outcome_of(Path("straight"), 12)
    return known["outcome"]


def goes_on(build_tiny: Callable[..., Any], outcome_of: Callable[[Path, int], Any], straight: Any) -> None:
    """The run is whole, nobody owns it, and built again it comes to the same bits."""
    from trainwell.fit import fit
    from trainwell.runs.rundir import RunDir

    run_dir = RunDir(Path("cut"))
    assert run_dir.owner() is None
    for step in saved_steps(run_dir.checkpoints):
        read_manifest(run_dir.checkpoints / f"step-{step}")
    fit(build_tiny(run_dir="cut", **OBSERVED))
    assert outcome_of(Path("cut"), 12) == straight
    assert not [entry for entry in run_dir.checkpoints.iterdir() if ".tmp-" in entry.name]


@pytest.mark.filterwarnings(BETWEEN_OPEN_AND_WITH)
@pytest.mark.parametrize("place", INTERRUPTED_AT)
def test_a_notebook_interrupted_anywhere_leaves_a_run_that_goes_on_to_the_same_bits(
    build_tiny: Callable[..., Any], outcome_of: Callable[[Path, int], Any], straight: Any, place: str
) -> None:
    from trainwell.fit import fit

    with faults.at(place, interrupt), pytest.raises(KeyboardInterrupt):
        fit(build_tiny(run_dir="cut", **OBSERVED))
    goes_on(build_tiny, outcome_of, straight)


def test_an_interrupt_in_the_body_of_a_loop_leaves_a_run_that_goes_on_to_the_same_bits(
    build_tiny: Callable[..., Any], outcome_of: Callable[[Path, int], Any], straight: Any
) -> None:
    from trainwell.fit import steps

    def cell() -> None:
        with build_tiny(run_dir="cut", **OBSERVED) as run:
            for result in steps(run):
                if result.step == 6:
                    interrupt()

    with pytest.raises(KeyboardInterrupt):
        cell()
    goes_on(build_tiny, outcome_of, straight)
