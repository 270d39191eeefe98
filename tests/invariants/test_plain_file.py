"""The plain file that `show RECIPE --code` prints gives the losses of the run it stands for: to the bit."""

import os
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trainwell.cli.app import run
from trainwell.fit import deterministic
from trainwell.runs.metrics import MetricsFile

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "own_folders")]

ALONE = """
import runpy, sys
sys.modules["trainwell"] = None  # importing it is an error from here on
runpy.run_path(sys.argv[1], run_name="__main__")
"""
PRINTED = "loss: {loss_sum.item():.6f}"
TO_THE_BIT = "loss: {loss_sum.item()!r}"


def write_plain_file(capsys: pytest.CaptureFixture[str], *tokens: str) -> Path:
    """Write what `show --code` prints, its losses printed in full, and return where."""
    capsys.readouterr()
    assert run(["show", *tokens, "--code"]) == 0
    source = capsys.readouterr().out
    assert len(source.splitlines()) <= 150
    assert "import trainwell" not in source
    assert "from trainwell" not in source
    assert source.count(PRINTED) == 1
    file = Path("plain.py")
    file.write_text(source.replace(PRINTED, TO_THE_BIT))
    return file.resolve()


def losses_in(lines: list[str]) -> list[float]:
    return [float(line.split("loss: ")[1].split(" |")[0]) for line in lines]


def losses_of(recipe: str, *tokens: str) -> list[float]:
    """The losses that `train RECIPE --kernels reference` records."""
    never = [token for key in ("eval", "sample", "checkpoint") for token in (f"--{key}.every", "none")]
    folder = ["--run", "ours", "--kernels", "reference", "--eval.batches", "1"]
    assert run(["train", recipe, *folder, *never, *tokens]) == 0
    return [row["train/loss"] for row in MetricsFile(Path("ours/metrics.jsonl")).read().train]


def test_the_first_50_losses_of_the_demo_are_those_of_a_file_without_trainwell(
    start: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_plain_file(capsys, "demo")
    horizon = (
        next(line for line in file.read_text().splitlines() if line.startswith("PEAK")).split("=")[1].split(",")[3]
    )
    plain = start("-u", "-c", ALONE, str(file), OMP_NUM_THREADS="1")
    recorded = losses_of("demo", "--duration", "50", "--schedule.horizon", horizon.strip())
    assert plain.stdout is not None
    printed = losses_in([next(plain.stdout) for _ in range(50)])
    plain.kill()
    plain.communicate(timeout=60)
    assert printed == recorded
    assert len(set(printed)) == 50


def test_the_losses_of_shakespeare_char_are_those_of_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path(os.environ.get("TRAINWELL_DATA_DIR", "missing")).is_dir():
        pytest.skip("TRAINWELL_DATA_DIR is not set")
    file = write_plain_file(capsys, "shakespeare-char", "--duration", "20")
    with deterministic(True):
        runpy.run_path(str(file), run_name="__main__")
    printed = losses_in(capsys.readouterr().out.splitlines())
    assert printed == losses_of("shakespeare-char", "--duration", "20")
    assert len(set(printed)) == 20
