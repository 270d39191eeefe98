"""`trainwell check TARGET --prove`: what is printed, what a program reads, how it ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainwell.cli import parts
from trainwell.cli.prove import show_proof
from trainwell.errors import CheckError, ConfigError
from trainwell.model.loss import token_loss

TINY: dict[str, Any] = {
    "duration": 40,
    "batch_size": 2,
    "micro_batch": 2,
    "precision": "fp32",
    "data.seq_len": 16,
    "data.val_fraction": 0.25,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.width": 16,
}


def mean_loss(model: Any, batch: Any) -> Any:
    return token_loss(model, batch) / batch.targets.numel()


def test_a_step_of_a_run_is_not_proved() -> None:
    with pytest.raises(ConfigError, match="not of a step; write `trainwell check runs/a --prove`"):
        show_proof("runs/a@12", None, {}, small=False, as_json=False)


@pytest.mark.slow
def test_parts_of_a_script_are_proved_and_what_breaks_is_named_with_where_to_look(
    own_folders: Path, one_thread: None, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**TINY, "data.path": str(text)}
    with (
        parts.given({"loss": mean_loss}),
        pytest.raises(CheckError, match=r"demo: \d of 9 proofs do not hold: k micro"),
    ):
        show_proof("demo", None, flags, small=False, as_json=False)
    out = capsys.readouterr().out
    assert " 1/10 PASS  resume equals uninterrupted" in out
    assert "FAIL  k micro-batches equal one batch" in out
    assert "first at  step 0, loss" in out
    assert "look at   the loss must be a SUM" in out


@pytest.mark.slow
def test_a_program_reads_verdicts_totals_the_command_and_the_settings(
    own_folders: Path, one_thread: None, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**TINY, "data.path": str(text)}
    show_proof("demo", None, flags, small=True, as_json=True)
    read = json.loads(capsys.readouterr().out)
    assert read["totals"]["FAIL"] == 0
    assert [verdict["name"] for verdict in read["verdicts"]][:2] == ["resume", "observing"]
    assert read["command"].startswith("trainwell check demo --prove --small --duration 40 --batch-size 2")
    assert "micro-batch 2" in read["settings"]
    assert read["notes"] == ["scaled down: nothing, it is small as it is"]
    assert all(verdict["command"] == read["command"] for verdict in read["verdicts"])


@pytest.mark.slow
def test_the_demo_keeps_its_promises_in_a_process_of_its_own(own_folders: Path) -> None:
    command = [sys.executable, "-m", "trainwell", "check", "demo", "--prove", "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10/10 PASS  two ranks equal one" in done.stdout
    assert "demo: all 10 proofs hold" in done.stdout
    assert not (own_folders / "runs").exists()
