"""`train --restarts`, on the command line: what is run again, and where there is nothing to run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.checkpoint.layout import saved_steps
from trainwell.cli.restarts import written
from trainwell.supervise import SUPERVISED

Command = Callable[..., Any]
Refused = Callable[..., str]
Flags = Callable[..., list[str]]

WITHOUT_A_SCRIPT = """
from trainwell.cli import main
main(["train", "demo", "--restarts", "2"], data=[([1, 2], [2, 3])] * 8)
"""
OWN_SCRIPT = """
import os, pathlib, signal, torch
from trainwell.cli import main
from trainwell.model.gpt2 import GPT2, init_torch

def model(config):
    attempts = pathlib.Path("attempts.txt")
    with attempts.open("a") as file:
        file.write("x")
    if len(attempts.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    made = GPT2(vocab_size=257, seq_len=config.data.seq_len, num_layers=1, num_heads=2, width=16)
    init_torch(made, torch.Generator().manual_seed(0))
    return made

main(model=model)
"""


def python(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRAINWELL_CACHE_DIR": str(folder / "cache")} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_is_run_again_says_all_that_was_typed_and_no_value_is_taken_for_a_flag() -> None:
    values = {"allow-change": ["optim.lr", "optim.betas"], "skip": 3, "sample.prompt": "--a b", "data.skip": None}
    assert written("demo", config=Path("my.yaml"), switches={"strict": True, "download": False}, values=values) == [
        "demo",
        "--config=my.yaml",
        "--strict",
        "--allow-change=optim.lr",
        "--allow-change=optim.betas",
        "--skip=3",
        "--sample.prompt=--a b",
    ]


def test_every_value_that_a_flag_may_have_is_read_again_as_it_was(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    keys = {"sample.prompt": "--run x=y\n\t'\"", "extra.alpha": "-1", "optim.betas": "0.9,0.99", "eval.every": "none"}
    again = written("demo", config=None, switches={"dry-run": True}, values=keys)
    by_hand = [token for key, value in keys.items() for token in (f"--{key}", value)]
    first = command("train", "demo", "--dry-run", *by_hand)
    assert first.code == 0, first.err
    assert command("train", *again) == first


def test_mistakes_are_found_before_anything_is_started(refused: Refused, own_folders: Path) -> None:
    assert "optim.lr: -1 is not allowed" in refused(2, "train", "demo", "--restarts", "3", "--optim.lr", "-1")
    assert "missing.txt does not exist" in refused(65, "train", "demo", "--restarts", "3", "--data.path", "missing.txt")
    assert "--restarts" in refused(2, "train", "demo", "--restarts", "-1")


def test_a_dry_run_with_restarts_is_a_dry_run(command: Command, tiny_flags: Flags) -> None:
    said = command("train", "demo", "--dry-run", "--restarts", "3", *tiny_flags())
    assert said.code == 0
    assert "(nothing was written)" in said.out


def test_a_supervised_process_supervises_nobody(
    refused: Refused, tiny_flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SUPERVISED, "1")
    said = refused(2, "train", "demo", "--restarts", "3", *tiny_flags())
    assert said.startswith("--restarts: this process is supervised already")


def test_parts_that_come_from_no_script_cannot_be_started_again(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", WITHOUT_A_SCRIPT)
    assert done.returncode == 2
    assert "these were given without a script; put them into a file that calls trainwell.cli.main(...)" in done.stderr


@pytest.mark.slow
def test_a_script_that_gives_parts_is_run_again_with_its_parts(tmp_path: Path, tiny_flags: Flags) -> None:
    (tmp_path / "mine.py").write_text(OWN_SCRIPT)
    done = python(tmp_path, "mine.py", "train", "demo", "--restarts", "2", *tiny_flags())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "attempts.txt").read_text() == "xx"
    assert done.stderr == "trainwell: killed by SIGKILL; restart 1 of 2 in 1 s, from the beginning\n"
    assert saved_steps(tmp_path / "runs" / "demo" / "checkpoints")[-1] == 12
