"""Fresh processes, each with its own interpreter and two threads, on a text and a cache of the test's own."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainwell.checkpoint.layout import read_manifest
from trainwell.runs.metrics import MetricsFile

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a fresh interpreter in this test's folder, which holds `text.txt`; an epoch of it is 8 steps of 4 x 16."""
    words = random.Random(7).choices(["the", "tide", "turns", "and", "every", "boat", "knows"], k=300)
    (tmp_path / "text.txt").write_text(" ".join(words)[:700])
    environment = os.environ | {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to the other process
        "TRAINWELL_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }

    def begin(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    begun: list[subprocess.Popen[str]] = []
    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def end() -> Callable[["subprocess.Popen[str]"], str]:
    """Wait for a process that must end with `code`; give what it printed."""

    def wait(process: "subprocess.Popen[str]", code: int = 0) -> str:
        out, err = process.communicate(timeout=250)
        assert process.returncode == code, err
        return out

    return wait


@pytest.fixture
def outcome_of() -> Callable[[Path, int], Any]:
    """Everything that must be equal to the bit at the end of two runs: the last checkpoint's bytes, and every loss."""

    def outcome(run: Path, step: int) -> Any:
        manifest = read_manifest(run / "checkpoints" / f"step-{step}")
        files = {name.name: name.read_bytes() for name in (run / "checkpoints" / f"step-{step}").glob("*.safetensors")}
        rows = MetricsFile(run / "metrics.jsonl").read().train
        losses = [(row["step"], row["train/loss"], row["train/grad_norm"], row["train/lr"]) for row in rows]
        assert len(losses) == step
        return files, json.dumps(manifest.state), losses

    return outcome
