"""metrics.jsonl: what is appended is read back; what a resume overtakes is moved, not lost."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import StorageError
from trainwell.runs.metrics import MetricsFile, Records


def train(step: int, loss: float = 1.0) -> dict[str, float]:
    return {"step": step, "train/loss": loss}


def val(step: int, loss: float = 1.0) -> dict[str, float]:
    return {"step": step, "val/loss": loss}


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.jsonl")


def test_a_run_without_a_file_has_no_rows(metrics: MetricsFile) -> None:
    assert metrics.read() == Records((), ())


def test_rows_of_steps_and_of_evaluations_are_read_apart(metrics: MetricsFile) -> None:
    metrics.append(val(0, 5.5), train(0), train(1), val(2, 4.5))
    records = metrics.read()
    assert [row["step"] for row in records.train] == [0, 1]
    assert [row["val/loss"] for row in records.val] == [5.5, 4.5]


def test_of_two_rows_for_one_step_the_later_one_wins(metrics: MetricsFile) -> None:
    metrics.append({"step": 3, "train/loss": 2.0, "train/lr": 0.1}, {"step": 3, "train/loss": 1.5})
    assert metrics.read().train == ({"step": 3, "train/loss": 1.5, "train/lr": 0.1},)


def test_every_line_is_strict_json_and_says_which_number_was_not_finite(metrics: MetricsFile) -> None:
    metrics.append({"step": 0, "train/loss": math.nan, "train/grad_norm": math.inf, "x": -math.inf})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(metrics.path.read_text(), parse_constant=refuse) == {
        "step": 0,
        "train/loss": None,
        "train/loss/nonfinite": "nan",
        "train/grad_norm": None,
        "train/grad_norm/nonfinite": "inf",
        "x": None,
        "x/nonfinite": "-inf",
    }


@given(values=st.dictionaries(st.text().filter(lambda name: not name.endswith("/nonfinite")), st.floats()))
def test_any_record_is_read_back_as_it_was(values: dict[str, float], tmp_path_factory: pytest.TempPathFactory) -> None:
    metrics = MetricsFile(tmp_path_factory.mktemp("any") / "metrics.jsonl")
    record = values | {"step": 3, "train/loss": 1.0}
    metrics.append(record)
    (row,) = metrics.read().train
    assert row.keys() == record.keys()
    assert all(row[key] == record[key] or (math.isnan(row[key]) and math.isnan(record[key])) for key in record)


def test_a_torn_last_line_is_left_out(metrics: MetricsFile) -> None:
    metrics.append(train(0), train(1))
    metrics.path.write_text(metrics.path.read_text()[:-5])
    assert [row["step"] for row in metrics.read().train] == [0]


def test_a_damaged_line_in_the_middle_is_named(metrics: MetricsFile) -> None:
    metrics.append(train(0))
    with metrics.path.open("a") as file:
        file.write("garbage\n")
    metrics.append(train(2))
    with pytest.raises(StorageError, match=r"metrics\.jsonl line 2 is damaged: garbage"):
        metrics.read()


def test_a_rewind_moves_what_lies_past_the_state_and_keeps_the_rest(metrics: MetricsFile, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    metrics.append(val(0), *(train(step) for step in range(4)), val(4), train(4), train(5), val(6))
    assert metrics.rewind(4, attempts) == 3
    records = metrics.read()
    assert [row["step"] for row in records.train] == [0, 1, 2, 3]
    assert [row["step"] for row in records.val] == [0, 4]
    moved = MetricsFile(attempts / "001.jsonl").read()
    assert [row["step"] for row in moved.train] == [4, 5]
    assert [row["step"] for row in moved.val] == [6]


def test_a_rewind_with_nothing_past_the_state_writes_nothing(metrics: MetricsFile, tmp_path: Path) -> None:
    metrics.append(train(0), val(1))
    assert metrics.rewind(1, tmp_path / "attempts") == 0
    assert not (tmp_path / "attempts").exists()


def test_a_torn_line_is_moved_as_it_is_so_that_the_next_line_is_whole(metrics: MetricsFile, tmp_path: Path) -> None:
    metrics.append(train(0))
    with metrics.path.open("a") as file:
        file.write('{"step": 1, "tra')
    assert metrics.rewind(1, tmp_path / "attempts") == 1
    assert (tmp_path / "attempts" / "001.jsonl").read_text() == '{"step": 1, "tra'
    metrics.append(train(1))
    assert [row["step"] for row in metrics.read().train] == [0, 1]


def test_every_rewind_gets_a_file_of_its_own(metrics: MetricsFile, tmp_path: Path) -> None:
    for _ in range(3):
        metrics.append(train(0))
        metrics.rewind(0, tmp_path / "attempts")
    assert sorted(file.name for file in (tmp_path / "attempts").iterdir()) == ["001.jsonl", "002.jsonl", "003.jsonl"]


@given(done=st.integers(0, 30), back=st.integers(0, 30), every=st.integers(1, 7))
def test_a_rewind_loses_no_line_and_keeps_only_the_past(
    done: int, back: int, every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rewind")
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in range(done):
        metrics.append(*([val(step)] if step % every == 0 else []), train(step))
    before = metrics.path.read_text().splitlines() if done else []
    metrics.rewind(back, folder / "attempts")
    kept = metrics.read()
    moved = [line for file in folder.glob("attempts/*") for line in file.read_text().splitlines()]
    assert sorted(moved + (metrics.path.read_text().splitlines() if done else [])) == sorted(before)
    assert all(row["step"] < back for row in kept.train)
    assert all(row["step"] <= back for row in kept.val)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write") as failed:
        MetricsFile(tmp_path / "gone" / "metrics.jsonl").append(train(0))
    assert failed.value.exit_code == 74
