"""What is on record of every step, and what its clock leaves out."""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch

from trainwell.checkpoint.layout import saved_steps
from trainwell.errors import DivergedError
from trainwell.evaluate import Evaluation
from trainwell.fit import fit, steps
from trainwell.incidents import numbered
from trainwell.model.loss import token_loss
from trainwell.recorder import Recorder
from trainwell.run import Run
from trainwell.runs.console import Console
from trainwell.runs.incidents import read_incident
from trainwell.runs.metrics import MetricsFile
from trainwell.trainer import StepResult

Build = Callable[..., Run]
Advance = Callable[[Run, int], None]
Limit = Callable[[int], AbstractContextManager[None]]

KEYS = {
    "step", "tokens", "epoch", "time", "train/loss", "train/lr", "train/grad_norm", "train/clipped", "train/skipped",
    "train/targets", "train/tokens_per_sec", "train/step_ms", "train/data_ms", "train/mfu",
}  # fmt: skip
AT_THE_LOG_CADENCE = {"train/update_norm", "train/weight_norm", "train/clipped_share"}


def result_of(step: int, loss: float = 2.0, norm: float = 0.5, *, skipped: bool = False) -> StepResult:
    return StepResult(
        step=step,
        loss=torch.tensor(loss),
        grad_norm=torch.tensor(norm),
        lr=1e-3,
        targets=torch.tensor(60),
        skipped=torch.tensor(skipped),
        parts={"ce": torch.tensor(1.5)},
    )


@pytest.fixture
def run(build_tiny: Build) -> Run:
    made = build_tiny(run_dir="runs/a")
    made.run_dir.create()
    return made


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.run_dir.metrics_jsonl.read_text().splitlines()]


def test_every_step_is_a_line_with_the_keys_of_the_contract(build_tiny: Build, advance: Advance) -> None:
    run = build_tiny(run_dir="runs/a", log={"every": 2})
    advance(run, 3)
    assert [row["step"] for row in rows(run)] == [0, 1, 2]
    assert [row.keys() - KEYS for row in rows(run)] == [AT_THE_LOG_CADENCE, set(), AT_THE_LOG_CADENCE]


def test_the_clipped_share_is_that_since_it_was_last_given(build_tiny: Build, advance: Advance) -> None:
    run = build_tiny(run_dir="runs/a", log={"every": 4}, optim={"max_grad_norm": 1e-3})
    advance(run, 9)
    shares = [row["train/clipped_share"] for row in rows(run) if "train/clipped_share" in row]
    assert shares == [1.0, 1.0, 1.0]
    assert [row["step"] for row in rows(run) if "train/clipped_share" in row] == [0, 4, 8]


def test_the_clipped_share_after_a_resume_is_that_of_a_run_that_never_stopped(
    build_tiny: Build, advance: Advance
) -> None:
    clipping: dict[str, Any] = {"log": {"every": 5}, "optim": {"max_grad_norm": 1e-3, "clip_from": 3}}
    clipping["checkpoint"] = {"every": 3}
    straight = fit(build_tiny(run_dir="runs/straight", **clipping))
    advance(build_tiny(run_dir="runs/a", **clipping), 4)
    resumed = fit(build_tiny(run_dir="runs/a", **clipping))
    shares = [[row.get("train/clipped_share") for row in rows(run) if "train/lr" in row] for run in (straight, resumed)]
    assert shares[0] == shares[1]
    assert any(0 < share < 1 for share in shares[0] if share is not None)


def test_lines_that_cannot_be_written_wait_and_come_with_the_next(run: Run, no_longer_than: Limit) -> None:
    run.console = Console(12, 1, screen := StringIO())
    recorder, metrics = Recorder(run), run.run_dir.metrics_jsonl
    recorder.add(result_of(0))
    whole = metrics.read_bytes()
    with no_longer_than(len(whole) + 40):
        recorder.add(result_of(1))
        recorder.add(result_of(2))
        assert recorder.unwritten is not None
    assert metrics.read_bytes() == whole, "half a line was taken back"
    recorder.add(result_of(3))
    assert recorder.unwritten is None
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3]
    assert screen.getvalue().count("training goes on, and the lines wait until they can be written") == 1


def test_where_the_device_is_behind_steps_are_read_together_and_share_the_time(build_tiny: Build) -> None:
    """The loop runs ahead of such a device: what a single step took is not known, what all of them took is."""
    run = build_tiny(run_dir="runs/a", log={"every": 4})
    run.run_dir.create()
    run.settings = replace(run.settings, device="mps")
    recorder = Recorder(run)
    for step in range(1, 5):
        assert not run.run_dir.metrics_jsonl.exists()
        recorder.add(result_of(step, loss=2.0 + step, skipped=step == 2))
    found = rows(run)
    assert [row["train/loss"] for row in found] == [3.0, 4.0, 5.0, 6.0]
    assert [row["train/skipped"] for row in found] == [False, True, False, False]
    assert len({row["train/step_ms"] for row in found}) == 1
    assert found[-1]["time"] >= 4 * found[-1]["train/step_ms"] / 1000 - 0.001


def test_a_line_says_where_the_run_stands_after_its_step(run: Run) -> None:
    Recorder(run).add(result_of(4))
    (row,) = rows(run)
    assert (row["step"], row["tokens"], row["epoch"]) == (4, 5 * 64, 5 * 4 / 42)
    assert (row["train/loss"], row["train/lr"], row["train/targets"]) == (2.0, 1e-3, 60)
    assert row["train/ce"] == 1.5


@pytest.mark.parametrize(("norm", "clipped"), [(0.9, False), (1.1, True)])
def test_clipped_is_whether_the_norm_was_above_the_threshold(run: Run, norm: float, clipped: bool) -> None:
    Recorder(run).add(result_of(0, norm=norm))
    assert rows(run)[0]["train/clipped"] is clipped


def test_nothing_is_clipped_before_clipping_begins_or_without_a_threshold(build_tiny: Build) -> None:
    late = build_tiny(run_dir="runs/late", optim={"clip_from": 2})
    never = build_tiny(run_dir="runs/never", optim={"max_grad_norm": None})
    for run in (late, never):
        run.run_dir.create()
        recorder = Recorder(run)
        for step in (1, 2):
            recorder.add(result_of(step, norm=9.0))
    assert [row["train/clipped"] for row in rows(late)] == [False, True]
    assert [row["train/clipped"] for row in rows(never)] == [False, False]


def test_a_loss_that_is_no_number_is_null_and_flagged(run: Run) -> None:
    Recorder(run).add(result_of(0, loss=math.nan, norm=math.inf, skipped=True))
    (row,) = rows(run)
    assert row["train/loss"] is None
    assert row["train/loss/nonfinite"] == "nan"
    assert row["train/grad_norm/nonfinite"] == "inf"
    assert row["train/skipped"] is True


def test_values_of_the_body_belong_to_one_step_only(run: Run) -> None:
    recorder = Recorder(run)
    recorder.log({"noise": torch.tensor(0.25), "note": "first"})
    recorder.log({"note": "second"})
    recorder.add(result_of(0))
    recorder.add(result_of(1))
    first, second = rows(run)
    assert (first["noise"], first["note"]) == (0.25, "second")
    assert second.keys().isdisjoint({"noise", "note"})


def test_an_evaluation_is_a_line_of_the_state_it_looked_at(run: Run) -> None:
    Recorder(run).evaluated(4, Evaluation(loss=2.0, targets=10, bits_per_byte=2.9))
    Recorder(run).evaluated(8, Evaluation(loss=1.0, targets=10))
    first, second = rows(run)
    assert (first["step"], first["tokens"]) == (4, 4 * 64)
    assert (first["val/loss"], first["val/ppl"], first["val/bpb"]) == (2.0, math.exp(2.0), 2.9)
    assert "val/bpb" not in second
    assert not any(key.startswith("train/") for key in first)


def test_a_pause_is_left_out_of_the_next_steps_time(run: Run) -> None:
    recorder = Recorder(run)
    recorder.add(result_of(0))
    time.sleep(0.2)
    recorder.pause()
    recorder.add(result_of(1))
    recorder.add(result_of(2))
    assert rows(run)[1]["train/step_ms"] < 150
    assert rows(run)[1]["time"] >= rows(run)[0]["time"] + 0.2


def test_speed_is_the_tokens_of_a_step_over_its_time(run: Run) -> None:
    recorder = Recorder(run)
    recorder.pause()
    time.sleep(0.05)
    recorder.add(result_of(0))
    (row,) = rows(run)
    assert row["train/step_ms"] >= 50
    assert row["train/tokens_per_sec"] == pytest.approx(64_000 / row["train/step_ms"], rel=1e-3)


def test_the_clock_goes_on_where_it_was_when_a_run_continues(build_tiny: Build, advance: Advance) -> None:
    first = build_tiny(run_dir="runs/a")
    with first:
        for result in steps(first):
            time.sleep(0.02)
            if result.step == 4:
                break
    before = rows(first)[-1]["time"]
    assert before > 0.08
    again = build_tiny(run_dir="runs/a")
    advance(again, 5)
    times = [row["time"] for row in MetricsFile(again.run_dir.metrics_jsonl).read().train]
    assert times == sorted(times)
    assert times[4] >= before


def test_every_tenth_step_and_the_last_are_on_the_screen(build_tiny: Build, capsys: pytest.CaptureFixture[str]) -> None:
    run = build_tiny(run_dir="runs/a")
    run.run_dir.create()
    recorder = Recorder(run)
    for step in range(12):
        recorder.add(result_of(step, loss=7.380367))
    printed = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if " | loss: 7.380367 | " in line]
    assert printed == ["step    0", "step   10", "step   11"]
    assert len(rows(run)) == 12


class Leaping:
    """The usual loss, a hundredfold in the training step `at`."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.run: Run | None = None

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        leaps = self.run is not None and model.training and self.run.trainer.step == self.at
        return token_loss(model, batch) * (100 if leaps else 1)


@pytest.mark.parametrize("policy", ["log", "skip", "stop"])
def test_a_step_that_leaps_out_is_on_record_with_what_it_read(build_tiny: Build, policy: str) -> None:
    loss = Leaping(9)
    run = loss.run = build_tiny(run_dir="runs/a", loss=loss, guard={"policy": policy})
    if policy == "stop":
        with pytest.raises(DivergedError, match=r"step 9 leapt out, .* trainwell train runs/a@8 --run NEW --skip 1$"):
            fit(run)
    else:
        fit(run)
    (row,) = [row for row in rows(run) if "train/spike" in row]
    assert row["step"] == 9
    assert row["train/skipped"] is (policy == "skip")
    source = numbered(run.batches)
    assert source is not None
    assert row["train/windows"] == source.indices(9).tolist()
    incident = read_incident(run.run_dir, 9)
    assert incident is not None
    assert incident.windows == tuple(row["train/windows"])
    assert incident.reason == row["train/why"]
    assert saved_steps(run.run_dir.checkpoints)[-1] == (8 if policy == "stop" else 12)


def test_incidents_of_steps_that_are_taken_anew_are_kept_apart(build_tiny: Build) -> None:
    loss = Leaping(9)
    run = loss.run = build_tiny(run_dir="runs/a", loss=loss, guard={"policy": "stop"})
    with pytest.raises(DivergedError):
        fit(run)
    fit(build_tiny(run_dir="runs/a", loss=Leaping(-1), guard={"policy": "stop"}))
    assert read_incident(run.run_dir, 9) is None
    assert (run.run_dir.attempts / "incident-9-1.json").is_file()
