"""A branch that leaves batches out reads what its parent would have read later, exactly, wherever it is stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.build import assemble, build
from trainwell.fit import steps
from trainwell.given import Given
from trainwell.planning.target import find_start
from trainwell.report.load import load_run
from trainwell.report.step_text import window_indices
from trainwell.run import Run

Build = Callable[..., Run]
Advance = Callable[[Run, int], None]
Bits = Callable[[Any], Any]


def branch(into: str, **flags: object) -> Run:
    """A branch of runs/a at step 4 that leaves three batches out, or what there is of it."""
    return assemble(find_start("runs/a@4", run=Path(into), skip=3, flags=flags), Given())


def finished(run: Run) -> Run:
    """The run at its end, without its pictures."""
    with run:
        for _ in steps(run):
            pass
    return run


def losses(run: Run) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in load_run(run.run_dir.path).train]


def test_the_windows_of_a_branch_are_those_of_its_parent_so_many_steps_later(build_tiny: Build) -> None:
    parent = finished(build_tiny(run_dir="runs/a"))
    left_out = finished(branch("runs/b"))
    assert [step for step, _ in losses(left_out)] == list(range(4, 12))
    for step in range(4, 9):
        assert window_indices(left_out.plan, step) == window_indices(parent.plan, step + 3)
    row = load_run(left_out.run_dir.path).train[-1]
    assert row["tokens"] == parent.plan.batch.tokens_before(12)
    assert row["epoch"] == pytest.approx(parent.plan.epoch(15))
    assert left_out.config.data.skip == "4+3"
    assert load_run(left_out.run_dir.path).env["parent"] == "runs/a@4"


@pytest.mark.parametrize("stop", [4, 7])
def test_a_branch_stopped_at_or_after_its_skip_equals_one_that_was_not(
    build_tiny: Build, advance: Advance, bits_of: Bits, stop: int
) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    straight = finished(branch("runs/b"))
    advance(branch("runs/c", **{"checkpoint.every": 1}), stop)
    stopped = finished(branch("runs/c"))
    assert bits_of(stopped.trainer.state_dict()) == bits_of(straight.trainer.state_dict())
    assert losses(stopped) == losses(straight)


def test_a_branch_stopped_before_its_first_save_begins_again_at_its_parents_step(
    build_tiny: Build, advance: Advance, bits_of: Bits
) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    straight = finished(branch("runs/b"))
    advance(branch("runs/c"), 6)
    assert not list(Path("runs/c/checkpoints").glob("step-*"))
    stopped = finished(build("runs/c"))
    assert bits_of(stopped.trainer.state_dict()) == bits_of(straight.trainer.state_dict())
    assert losses(stopped) == losses(straight)


def test_a_micro_batch_that_is_changed_is_the_one_that_is_used(build_tiny: Build, advance: Advance) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    again = build_tiny(run_dir="runs/a", micro_batch=4)
    assert (again.settings.micro_batch, again.config.micro_batch) == (4, 4)
    assert len(again.batches(4).micro_batches) == 1
    advance(again, 9)
    assert build("runs/a").settings.micro_batch == 4


def test_an_allowed_rate_is_the_one_that_is_used(build_tiny: Build, advance: Advance) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    start = find_start("runs/a", flags={"optim.lr": 1e-4}, allow=("optim.lr",))
    run = assemble(start, Given())
    with run:
        run.restore()
        assert run.trainer.take_step().lr == run.plan.lr(4) < 1e-4
