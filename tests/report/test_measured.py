"""What two runs have measured at the steps of both, and a branch's rows behind those of its parents."""

import json
from collections.abc import Callable, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.report.load import Joined, joined, load_run
from trainwell.report.measured import Loss, measured
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Maker = Callable[..., Path]


def rows(steps: Sequence[int], key: str, loss: Callable[[int], float]) -> tuple[dict[str, Any], ...]:
    return tuple({"step": step, key: loss(step)} for step in steps)


def side(train: Sequence[int], val: Sequence[int] = (), loss: Callable[[int], float] = float) -> Joined:
    return Joined(rows(train, "train/loss", loss), rows(val, "val/loss", loss), (("runs/x", 0),))


@pytest.fixture
def branch_of(make_run: Maker) -> Callable[..., Path]:
    """A run that branches from another at a step: its rows before that are not there, and a loss is its step."""

    def make(parent: Path, step: int, name: str, add: float = 0.0) -> Path:
        folder = RunDir(make_run(name=name))
        env = json.loads(folder.env_json.read_text())
        folder.env_json.write_text(json.dumps(env | {"parent": f"{parent}@{step}"}))
        folder.metrics_jsonl.unlink()
        own: list[dict[str, Any]] = [{"step": at, "train/loss": at + add} for at in range(step, 1200)]
        own += [{"step": at, "val/loss": at + add} for at in range(step + 100, 1201, 100)]
        MetricsFile(folder.metrics_jsonl).append(*own)
        return folder.path

    return make


def test_a_run_that_began_by_itself_has_its_own_rows(make_run: Maker) -> None:
    run = load_run(make_run())
    assert joined(run) == Joined(run.train, run.val, ((str(run.dir.path), 0),))


def test_a_branch_has_its_parents_rows_up_to_its_step_and_then_its_own(
    make_run: Maker, branch_of: Callable[..., Path]
) -> None:
    parent = make_run()
    found = joined(load_run(branch_of(parent, 400, "b")))
    assert [row["step"] for row in found.train] == list(range(1200))
    assert found.train[:400] == load_run(parent).train[:400]
    assert found.train[400]["train/loss"] == 400
    assert [row["step"] for row in found.val] == [0, 200, 400, *range(500, 1201, 100)]  # 400 is the parent's state
    assert found.runs == ((str(parent), 0), (str(parent.parent / "b"), 400))
    assert found.missing == ""


def test_a_branch_of_a_branch_is_followed_to_the_first_run(make_run: Maker, branch_of: Callable[..., Path]) -> None:
    first = make_run()
    second = branch_of(first, 400, "b", 0.25)
    found = joined(load_run(branch_of(second, 600, "c", 0.5)))
    assert [name for name, _ in found.runs] == [str(first), str(second), str(first.parent / "c")]
    assert [begin for _, begin in found.runs] == [0, 400, 600]
    assert [row["step"] for row in found.train] == list(range(1200))
    assert [found.train[at]["train/loss"] - at for at in (400, 599, 600)] == [0.25, 0.25, 0.5]


def test_a_parent_that_is_gone_or_damaged_is_said(make_run: Maker, branch_of: Callable[..., Path]) -> None:
    branch = branch_of(Path("/gone/a"), 400, "b")
    gone = joined(load_run(branch))
    assert gone.missing == f"{branch} begins at step 400 of /gone/a, which is not there: its curve begins there too"
    assert gone.train == load_run(branch).train
    assert gone.runs == ((str(branch), 400),)
    parent = make_run()
    branch = branch_of(parent, 400, "c")
    RunDir(parent).metrics_jsonl.write_text("{\n{}\n")
    assert "which is damaged (" in joined(load_run(branch)).missing


def test_runs_that_name_each_other_as_parents_end(make_run: Maker, branch_of: Callable[..., Path]) -> None:
    folder = branch_of(Path("/gone/b"), 400, "a")
    env = RunDir(folder).env_json
    env.write_text(env.read_text().replace("/gone/b@400", f"{branch_of(folder, 600, 'b')}@600"))
    assert "which is a branch of it" in joined(load_run(folder)).missing


def test_only_steps_of_both_are_compared() -> None:
    found = measured(side([0, 1, 2, 3], [0, 2]), side([2, 3, 4], [2, 4], lambda step: step + 1.0))
    assert found is not None
    assert found.train == (Loss(2, 2, 3), Loss(3, 3, 4))
    assert found.val == (Loss(2, 2, 3),)
    assert found.first == Loss(2, 2, 3)
    assert found.last == 4
    assert found.marks == (((0, 0), (2, 2)), ((2, 3), (4, 5)))


def test_a_run_without_a_row_has_measured_nothing() -> None:
    assert measured(side([]), side([1])) is None
    assert measured(side([1]), side([])) is None


def test_runs_without_a_common_step_have_nothing_side_by_side() -> None:
    found = measured(side([0, 1]), side([2, 3]))
    assert found is not None
    assert (found.train, found.first, found.intervals()) == ((), None, [])


def test_a_loss_that_is_not_finite_is_no_number_and_equals_another() -> None:
    def broken(step: int) -> float:
        return nan if step == 1 else float(step)

    found = measured(side([0, 1, 2], [1], broken), side([0, 1, 2], [1], broken))
    assert found is not None
    assert isnan(found.train[1].left)
    assert found.first is None
    assert found.lines[0] == ((0, 0), (2, 2))
    assert found.marks == ((), ())
    other = measured(side([0, 1, 2], loss=broken), side([0, 1, 2]))
    assert other is not None
    assert other.first is not None
    assert other.first.step == 1


def test_a_table_has_the_common_evaluations_and_the_mean_of_the_steps_before_each() -> None:
    both = side(range(10), [0, 4, 10]), side(range(10), [0, 4, 8, 10], lambda step: 2.0 * step)
    found = measured(*both)
    assert found is not None
    first, second = found.intervals()
    assert (first.state, first.steps, first.train, first.val) == (4, 4, (1.5, 3.0), Loss(4, 4, 8))
    assert (second.state, second.steps, second.train, second.val) == (10, 6, (6.5, 13.0), Loss(10, 10, 20))


def test_without_an_evaluation_the_steps_are_divided() -> None:
    found = measured(side(range(1000)), side(range(1000)))
    assert found is not None
    table = found.intervals()
    assert len(table) == 6
    assert table[-1].state == 1000
    assert sum(at.steps for at in table) == 1000
    assert {at.val for at in table} == {None}


@given(st.integers(1, 3000))
def test_a_curve_of_any_length_is_some_two_hundred_means_of_all_its_losses(count: int) -> None:
    found = measured(side(range(count)), side(range(count)))
    assert found is not None
    line = found.lines[0]
    assert min(count, 100) <= len(line) <= 201
    size = (count - 1) // 200 + 1
    whole = count // size
    assert all(loss == pytest.approx(middle) for middle, loss in line[:whole])
