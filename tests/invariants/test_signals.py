"""Real signals to a real process: it saves, ends with 75, and goes on as if nothing had been; a second one ends it."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.checkpoint.layout import read_manifest, saved_steps

pytestmark = pytest.mark.slow

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
    raise AssertionError(f"it ended before step {step}")


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
