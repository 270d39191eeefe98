"""Sinks against the real libraries, written to disk and read back; and none of them can stop a run."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainwell.config.checks import SINKS
from trainwell.errors import ConfigError
from trainwell.fit import fit
from trainwell.runs.metrics import MetricsFile, Row
from trainwell.runs.sinks import MAKERS, Sinks, TensorBoard, numbers_of

ROWS: list[Row] = [
    {"step": 0, "tokens": 64, "train/loss": 5.5, "train/clipped": True, "note": "text", "train/mfu": None},
    {"step": 1, "tokens": 128, "train/loss": float("nan"), "train/lr": 1e-3},
    {"step": 2, "tokens": 128, "val/loss": 4.5},
]


class Broken:
    """A sink that breaks at its second row."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        self.rows = 0

    def write(self, row: Row) -> None:
        self.rows += 1
        if self.rows > 1:
            raise RuntimeError("the server said no\x1b[31m")

    def close(self) -> None:
        raise AssertionError("it was left out")


def missing(run: Path, config: Mapping[str, Any], step: int) -> Broken:
    raise ModuleNotFoundError("No module named 'wandb'", name="wandb")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_finite_numbers_are_taken_under_their_names() -> None:
    assert numbers_of(ROWS[0]) == {"tokens": 64.0, "train/loss": 5.5, "train/clipped": 1.0}
    assert numbers_of(ROWS[1]) == {"tokens": 128.0, "train/lr": 1e-3}


@pytest.mark.filterwarnings("ignore")  # TensorBoard's reader complains about itself
def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, {}, 0)
    for row in ROWS:
        sink.write(row)
    sink.close()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == [(0, 5.5)]
    assert found["val/loss"] == [(2, 4.5)]
    assert found["tokens"] == [(0, 64.0), (1, 128.0), (2, 128.0)]


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_goes_on_takes_the_place_of_what_came_after(tmp_path: Path) -> None:
    for start, loss in ((0, 5.0), (2, 3.0)):
        sink = TensorBoard(tmp_path, {}, start)
        for step in range(start, 4):
            sink.write({"step": step, "train/loss": loss})
        sink.close()
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["train/loss"]] == [0, 1, 2, 3]
    assert scalars(tmp_path / "tensorboard")["train/loss"][2:] == [(2, 3.0), (3, 3.0)]


def test_one_that_fails_is_said_once_and_left_out(tmp_path: Path) -> None:
    said = list[str]()
    sinks = Sinks(("tensorboard", "wandb"), tmp_path, {}, said.append, {"tensorboard": Broken, "wandb": missing})
    sinks.write(ROWS)
    sinks.write(ROWS)
    sinks.close()
    assert len(said) == 2
    assert "pip install 'trainwell[wandb]'" in said[0]
    assert "tensorboard failed (RuntimeError: the server said no" in said[1]


def test_every_sink_that_a_configuration_may_name_can_be_opened() -> None:
    assert {*SINKS} == {*MAKERS}


def test_no_row_opens_nothing(tmp_path: Path) -> None:
    said = list[str]()
    sinks = Sinks(("wandb",), tmp_path, {}, said.append, {"wandb": missing})
    sinks.write([])
    sinks.close()
    assert said == []


@pytest.mark.filterwarnings("ignore")
def test_a_run_writes_every_row_there_and_its_numbers_stay(build_tiny: Callable[..., Any], own_folders: Path) -> None:
    plain = fit(build_tiny(run_dir="runs/plain"))
    told = fit(build_tiny(run_dir="runs/told", log={"sinks": "tensorboard"}))
    rows = MetricsFile(told.run_dir.metrics_jsonl).read()
    without = MetricsFile(plain.run_dir.metrics_jsonl).read()
    assert [row["train/loss"] for row in rows.train] == [row["train/loss"] for row in without.train]
    found = scalars(told.run_dir.path / "tensorboard")
    for key, own in (("train/loss", rows.train), ("val/loss", rows.val)):
        assert [step for step, _ in found[key]] == [row["step"] for row in own]
        assert [value for _, value in found[key]] == pytest.approx([row[key] for row in own])


def test_a_sink_that_is_none_suggests_the_nearest(build_tiny: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"log\.sinks: 'tensorbord' is none; .*did you mean tensorboard"):
        build_tiny(log={"sinks": "tensorbord"})


WRITE = """
import sys
from pathlib import Path
from trainwell.runs.sinks import Sinks
rows = [{"step": step, "train/loss": 5.0 - step, "val/loss": 4.0} for step in range(3)]
sinks = Sinks((sys.argv[1],), Path("run"), {"optim": {"lr": 1e-3}}, print)
sinks.write(rows)
sinks.close()
"""


def written(name: str, folder: Path) -> str:
    """Write three rows in a process of its own, and give what it printed."""
    (folder / "run").mkdir()
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WRITE, name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.slow
def test_wandb_writes_an_offline_run_that_it_can_read(tmp_path: Path) -> None:
    assert "failed" not in written("wandb", tmp_path)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"optim" in content


@pytest.mark.slow
def test_trackio_keeps_the_rows_in_its_store(tmp_path: Path) -> None:
    assert "failed" not in written("trackio", tmp_path)
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        "print(json.dumps([(row['step'], row['train/loss']) for row in S.get_logs('trainwell', 'run')]))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[[0, 5.0], [1, 4.0], [2, 3.0]]")
