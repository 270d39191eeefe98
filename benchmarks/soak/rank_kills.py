"""A run of two ranks of which one is killed at a random moment, while its launcher starts all of them again.

Whether the weights end the same to the bit, and how soon steps go on.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 120.0

KILLED = (
    *("--duration", "900", "--checkpoint.every", "25", "--eval.every", "none", "--sample.every", "none"),
    *("--log.every", "1", "--log.plots", "false", "--data.seq-len", "32", "--model.width", "32"),
)
"""A run of some seconds that says each step when it is done; two ranks share its steps."""
_BEGINS, _STEP = "2 ranks, ddp", " | loss: "
"""What every attempt says before its first step, and what the line of a step has in it."""
_TRAINWELL = [sys.executable, "-m", "trainwell"]
_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3", "-m", "--"]
LAUNCHERS: dict[str, list[str]] = {
    "trainwell --nproc 2 --restarts 3": [*_TRAINWELL, "train", "demo", "--nproc", "2", "--restarts", "3"],
    "torchrun --max-restarts 3": [sys.executable, *_TORCHRUN, "trainwell", "train", "demo"],
}


class Killed(NamedTuple):
    """What became of a run whose rank was killed."""

    launcher: str
    seed: int
    rank: int
    at_step: int
    """The last step on record before."""
    code: int
    resumed_s: float | None
    """From the kill to the end of the first step after it; None where none came."""
    same: bool
    """Whether the weights are those of the run that nobody disturbed, bit for bit."""
    said: str
    """The end of what it wrote to stderr, where something is wrong."""


def start(command: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
    """Start a run in `folder`/run, what it says in `folder`/out and `folder`/said."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    with (folder / "out").open("w") as out, (folder / "said").open("w") as said:
        return subprocess.Popen(
            [*command, "--run", "run", *KILLED],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=said,
            text=True,
        )


def process_of(run: Path, rank: int) -> int | None:
    """The process of a rank, as its sign of life has it; None where there is none."""
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads((run / ".heartbeat" / f"rank-{rank}").read_text())["process"])
    return None


def wait_for(what: Callable[[], Any], seconds: float = _PATIENCE_S) -> Any:
    """What it returns once that is something; TimeoutError where it never is."""
    until = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError("a run that was started did not get so far")
        time.sleep(0.005)
    return found


def has_begun_again(out: Path, start: int) -> bool:
    """Whether, after `start` characters of what a run says, another attempt begins and finishes a step."""
    return _STEP in out.read_text(errors="replace")[start:].partition(_BEGINS)[2]


def last_step(out: Path) -> int:
    """The last step that a run says it has done; -1 before there is one."""
    text = out.read_text(errors="replace") if out.exists() else ""
    lines = [line for line in text.splitlines() if _STEP in line]
    return int(lines[-1].split()[1]) if lines else -1


def weights(run: Path) -> dict[str, bytes]:
    """Every tensor file of the last checkpoint."""
    steps = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*[0-9]")]
    last = run / "checkpoints" / f"step-{max(steps)}"
    return {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}


def straight(command: Sequence[str], folder: Path) -> tuple[float, dict[str, bytes]]:
    """Seconds from the first sign of life to the end, and the weights, of a run that nobody disturbs."""
    process = start(command, folder)
    wait_for(lambda: process_of(folder / "run", 1))
    begin = time.monotonic()
    if process.wait(_PATIENCE_S) != 0:
        raise RuntimeError(f"a run that nobody disturbed failed: {(folder / 'said').read_text()[-1000:]}")
    return time.monotonic() - begin, weights(folder / "run")


def kill_once(launcher: str, seed: int, folder: Path, length_s: float, expected: Mapping[str, bytes]) -> Killed:
    """Kill a rank at a moment, both drawn from the seed, and let the launcher bring the run to its end."""
    dice = random.Random(seed)
    rank, share = dice.randrange(2), dice.random()
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        process = start(LAUNCHERS[launcher], folder)
        number = wait_for(lambda: process_of(folder / "run", 1) and process_of(folder / "run", rank))
        with suppress(subprocess.TimeoutExpired):
            process.wait(share * length_s)
        if process.poll() is None:
            break
        share *= 0.9  # it was done before: sooner
    out, before = folder / "out", last_step(folder / "out")
    length = len(out.read_text(errors="replace"))
    os.kill(number, signal.SIGKILL)
    killed_at, resumed_s = time.monotonic(), None
    with suppress(TimeoutError):
        wait_for(lambda: has_begun_again(out, length) or process.poll() is not None)
        resumed_s = time.monotonic() - killed_at if has_begun_again(out, length) else None
    code = process.wait(_PATIENCE_S)
    same = code == 0 and weights(folder / "run") == expected
    wrong = "" if same else (folder / "said").read_text()[-1500:]
    return Killed(launcher, seed, rank, before, code, resumed_s, same, wrong)


def kills(count: int, say: Callable[[str], None]) -> list[Killed]:
    """Kill `count` runs, of each launcher in turn."""
    found = []
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        length_s, expected = straight(LAUNCHERS["trainwell --nproc 2 --restarts 3"], Path(folder) / "straight")
        for seed in range(count):
            launcher = list(LAUNCHERS)[seed % len(LAUNCHERS)]
            one = kill_once(launcher, seed, Path(folder) / "killed", length_s, expected)
            say(f"seed {seed}: rank {one.rank} after step {one.at_step}, {one.launcher}: {_outcome(one)}")
            found.append(one)
    return found


def _outcome(one: Killed) -> str:
    resumed = "no step came" if one.resumed_s is None else f"the next step after {one.resumed_s:.1f} s"
    return f"{resumed}, {'the same weights' if one.same else f'NOT THE SAME, exit code {one.code}: {one.said}'}"


def summary(found: Sequence[Killed]) -> dict[str, Any]:
    """How many ended the same, and the median and the 95th percentile of the time until steps went on."""
    times = sorted(one.resumed_s for one in found if one.resumed_s is not None)
    return {
        "kills": len(found),
        "same weights": sum(one.same for one in found),
        "median, s": statistics.median(times) if times else None,
        "95th percentile, s": times[min(len(times) - 1, -(-95 * len(times) // 100) - 1)] if times else None,
    }
