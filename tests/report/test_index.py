"""The runs of a folder: how each stands, by its owner, its lines and its verdict."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from trainwell.report.index import entries, write_index
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Maker = Callable[..., Path]


def test_each_run_says_how_it_stands(make_run: Maker, tmp_path: Path) -> None:
    make_run(60, name="a")
    make_run(60, 30, name="b")
    make_run(60, 0, name="c")
    running, stalled = make_run(60, 30, name="d"), make_run(60, 30, name="e")
    lost = make_run(60, 30, name="f")
    MetricsFile(lost / "metrics.jsonl").append(*({"step": 30 + n, "train/loss": float("nan")} for n in range(6)))
    (make_run(60, 30, name="g") / "exit.json").write_text(json.dumps({"code": 70, "rank": 0, "message": "lost"}))
    (make_run(60, name="h") / "metrics.jsonl").write_text("{\n{\n")
    old = time.time() - 3600
    os.utime(stalled / "metrics.jsonl", (old, old))
    with RunDir(running).lock(), RunDir(stalled).lock():
        found = entries(tmp_path)
    assert [(entry.name, entry.state) for entry in found] == [
        ("a", "finished"), ("b", "stopped"), ("c", "not started"), ("d", "running"),
        ("e", "stalled"), ("f", "diverged"), ("g", "diverged"), ("h", "damaged"),
    ]  # fmt: skip
    assert found[3].left == "3 s"
    assert found[0].best_loss == 1.33


def test_runs_in_folders_of_their_own_are_found(make_run: Maker, tmp_path: Path) -> None:
    (tmp_path / "lr").mkdir()
    make_run(20, name="lr/optim.lr=1e-3")
    assert [entry.name for entry in entries(tmp_path)] == ["lr/optim.lr=1e-3"]
    page = write_index(tmp_path, entries(tmp_path)).read_text(encoding="utf-8")
    assert "lr/optim.lr=1e-3" in page
    assert "<a href" not in page.split("<main")[1]  # no report was written
    (tmp_path / "lr" / "optim.lr=1e-3" / "report.html").touch()
    page = write_index(tmp_path, entries(tmp_path)).read_text(encoding="utf-8")
    assert '<a href="lr/optim.lr%3D1e-3/report.html">' in page
