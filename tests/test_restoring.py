"""A run takes up where its folder stands, says from where, and keeps as evidence what is past that."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from trainwell.checkpoint.layout import directory_of
from trainwell.errors import RunBusyError
from trainwell.restoring import load_newest, on_file, own_folder, set_aside
from trainwell.run import Run
from trainwell.runs.console import Console
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.samples import Sample

Make = Callable[..., Run]
Advance = Callable[[Run, int], None]

pytestmark = pytest.mark.usefixtures("one_thread")


class Heard(Console):
    """A screen that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(num_steps=12, log_every=1)
        self.lines = list[str]()

    def message(self, text: str) -> None:
        """Remember it."""
        self.lines.append(text)


def again(build_tiny: Make, **keys: Any) -> tuple[Run, list[str]]:
    """The run in `runs/it` built once more, and what it will say."""
    run, heard = build_tiny(run_dir="runs/it", **keys), Heard()
    run.console = heard
    return run, heard.lines


def steps_on_record(run: Run) -> list[int]:
    return [int(row["step"]) for row in MetricsFile(run.run_dir.metrics_jsonl).read().train]


def test_a_folder_is_owned_until_the_resources_are_given_back(build_tiny: Make) -> None:
    run, _ = again(build_tiny)
    with ExitStack() as resources:
        own_folder(run, resources)
        assert run.run_dir.owner() is not None
        with ExitStack() as others, pytest.raises(RunBusyError, match="runs/it is in use"):
            own_folder(again(build_tiny)[0], others)
    assert run.run_dir.owner() is None
    with ExitStack() as resources:
        own_folder(run, resources)


def test_a_fresh_run_begins_in_silence(build_tiny: Make) -> None:
    run, said = again(build_tiny)
    load_newest(run)
    set_aside(run)
    assert (run.trainer.step, said) == (0, [])


def test_a_run_goes_on_from_the_newest_state_that_verifies_and_says_which(build_tiny: Make, advance: Advance) -> None:
    advance(again(build_tiny)[0], 10)
    run, said = again(build_tiny)
    load_newest(run)
    assert run.trainer.step == 8
    assert said == ["continuing runs/it from step 8 of 12"]

    manifest = directory_of(run.run_dir.checkpoints, 8) / "manifest.json"
    assert manifest.is_file()
    manifest.write_text("{}")
    run, said = again(build_tiny)
    load_newest(run)
    assert run.trainer.step == 4
    assert said[-1] == "continuing runs/it from step 4 of 12"


def test_a_finished_run_says_that_it_is(build_tiny: Make, advance: Advance) -> None:
    advance(again(build_tiny)[0], 12)
    run, said = again(build_tiny)
    load_newest(run)
    assert (run.trainer.step, said) == (12, ["runs/it is finished: 12 of 12 steps"])


def test_a_branch_begins_with_the_state_it_branches_from(build_tiny: Make, advance: Advance) -> None:
    advance(again(build_tiny)[0], 12)
    heard = Heard()
    branch = build_tiny("runs/it@8", run_dir="runs/branch")
    branch.console = heard
    load_newest(branch)
    assert branch.trainer.step == 8
    assert heard.lines == ["branching from runs/it at step 8 into runs/branch"]


@pytest.mark.parametrize(("until", "moved"), [(8, None), (9, "one line"), (11, "3 lines")])
def test_what_is_on_record_past_the_state_is_moved_not_lost(
    build_tiny: Make, advance: Advance, until: int, moved: str | None
) -> None:
    first = again(build_tiny)[0]
    advance(first, until)
    lines = first.run_dir.metrics_jsonl.read_text().splitlines()
    for step in range(len(lines), until):  # what was taken after the last flush
        lines.append(json.dumps({"step": step, "train/loss": 1.0, "train/lr": 1.0, "train/grad_norm": 1.0}))
    first.run_dir.metrics_jsonl.write_text("".join(f"{line}\n" for line in lines))
    first.samples_file.append(Sample(8, "prompt", "kept"))
    first.samples_file.append(Sample(until + 1, "prompt", "moved"))

    run, said = again(build_tiny)
    load_newest(run)
    set_aside(run)
    assert steps_on_record(run) == list(range(8))
    assert [sample.text for sample in run.samples_file.read()] == ["kept"]
    told = [] if moved is None else [f"{moved} of metrics past step 8, kept in {run.run_dir.attempts}"]
    assert said[1:] == told
    kept = "".join(path.read_text() for path in run.run_dir.attempts.rglob("*") if path.is_file())
    assert "moved" in kept
    assert all(line in kept for line in lines[8:])


def test_an_evaluation_and_a_sample_are_on_file_where_they_are_of_the_very_state(
    build_tiny: Make, advance: Advance
) -> None:
    run, _ = again(build_tiny, eval={"every": 4})
    advance(run, 12)
    run, _ = again(build_tiny, eval={"every": 4})
    load_newest(run)
    assert on_file(run) == (True, False)
    run.samples_file.append(Sample(11, "prompt", "text"))
    assert on_file(run) == (True, False)
    run.samples_file.append(Sample(12, "prompt", "text"))
    assert on_file(run) == (True, True)
    run.trainer.step = 11
    assert on_file(run) == (False, True)
