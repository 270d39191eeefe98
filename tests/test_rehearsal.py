"""What would end a run at its first save ends it before its first step."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from trainwell.checkpoint.layout import saved_steps
from trainwell.errors import StorageError
from trainwell.fit import fit, steps
from trainwell.rehearsal import check_room
from trainwell.run import Run
from trainwell.runs.metrics import MetricsFile

Build = Callable[..., Run]
Limit = Callable[[int], AbstractContextManager[None]]


def test_a_disk_that_cannot_take_a_checkpoint_is_found_before_the_first_step(
    build_tiny: Build, no_longer_than: Limit
) -> None:
    run = build_tiny(run_dir="runs/a")
    with no_longer_than(50_000), pytest.raises(StorageError) as refused:
        fit(run)
    assert "runs/a cannot take a checkpoint of 9" in str(refused.value)
    assert "there is no room: free some" in str(refused.value)
    assert MetricsFile(run.run_dir.metrics_jsonl).read().train == ()
    assert fit(build_tiny(run_dir="runs/a")).finished


def test_the_estimate_before_the_first_step_is_the_size_of_a_checkpoint_within_a_tenth(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a")
    before = run.saver.estimate()
    fit(run)
    (file,) = (run.run_dir.checkpoints / "step-12").glob("*.safetensors")
    assert 0.9 < before / file.stat().st_size < 1.1


def test_room_is_asked_for_as_many_checkpoints_as_will_be_kept_and_one_in_the_making() -> None:
    check_room(Path("runs/a"), free=400, size=100, more=4)
    with pytest.raises(StorageError, match="has 399 bytes free, and this run needs room for 4 more checkpoints of 100"):
        check_room(Path("runs/a"), free=399, size=100, more=4)


def test_a_rehearsal_leaves_nothing_behind(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a")
    with run:
        for _ in steps(run):
            assert not [path for path in run.run_dir.path.iterdir() if "rehearsal" in path.name]
            assert saved_steps(run.run_dir.checkpoints) == []
            break
