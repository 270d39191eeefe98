"""The loop: what the body of the `for` sees, what is kept when it stops, and that none of it changes the weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainwell.checkpoint.layout import saved_steps
from trainwell.errors import DivergedError
from trainwell.fit import deterministic, fit, steps
from trainwell.model.loss import token_loss
from trainwell.run import Run
from trainwell.runs.metrics import MetricsFile
from trainwell.trainer import StepResult

Build = Callable[..., Run]
Advance = Callable[[Run, int], None]
BitsOf = Callable[[Any], Any]


def train_rows(run: Run) -> tuple[dict[str, Any], ...]:
    return MetricsFile(run.run_dir.metrics_jsonl).read().train


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in train_rows(run)]


def test_a_run_takes_all_its_steps_and_leaves_its_files(build_tiny: Build) -> None:
    run = fit(build_tiny(run_dir="runs/a", eval={"every": 5}, sample={"every": 6, "tokens": 4}, log={"plots": True}))
    assert [row["step"] for row in train_rows(run)] == list(range(12))
    assert [row["step"] for row in MetricsFile(run.run_dir.metrics_jsonl).read().val] == [0, 5, 10, 12]
    assert saved_steps(run.run_dir.checkpoints) == [8, 10, 12]
    assert run.run_dir.samples_txt.read_text().count("=== step ") == 2
    assert {path.name for path in run.run_dir.plots.iterdir()} == {"lr.png", "loss.png", "grad_norm.png"}
    assert losses(run)[-1] < losses(run)[0]


def test_a_step_is_yielded_before_it_is_recorded_and_saved(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"every": 1})
    with run:
        for result in steps(run):
            assert run.trainer.step == result.step + 1
            assert len(train_rows(run)) == result.step
            run.saver.join()
            assert saved_steps(run.run_dir.checkpoints)[-1:] == ([result.step] if result.step else [])
            if result.step == 3:
                break


def test_the_body_sees_the_gradients_of_its_step(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", optim={"max_grad_norm": None})
    with run:
        for result in steps(run):
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters() if p.grad is not None))
            assert norm == pytest.approx(float(result.grad_norm), rel=1e-5)
            if result.step == 2:
                break


def test_what_the_body_logs_is_in_the_line_of_its_step(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a")
    with run:
        for result in steps(run):
            if result.step == 3:
                break
            run.log(squared=result.step**2, tensor=torch.tensor(0.5))
    assert [(row["squared"], row["tensor"]) for row in train_rows(run)] == [(0, 0.5), (1, 0.5), (4, 0.5)]


class AbruptError(Exception):
    """What goes wrong in the body."""


def break_down(run: Run, step: int) -> None:
    with run:
        for result in steps(run):
            if result.step == step:
                raise AbruptError


def test_an_exception_in_the_body_leaves_the_run_resumable(build_tiny: Build, bits_of: BitsOf) -> None:
    straight = build_tiny(run_dir="runs/straight")
    ends = {}
    with straight:
        for result in steps(straight):
            ends[result.step] = bits_of(straight.trainer.state_dict())
            if result.step == 10:
                break
    broken = build_tiny(run_dir="runs/broken")
    with pytest.raises(AbruptError):
        break_down(broken, 6)
    assert broken.run_dir.owner() is None
    assert [row["step"] for row in train_rows(broken)] == list(range(6))
    again = build_tiny(run_dir="runs/broken")
    with again:
        taken = []
        for result in steps(again):
            taken.append(result.step)
            assert bits_of(again.trainer.state_dict()) == ends[result.step]
            if result.step == 10:
                break
    assert taken == [4, 5, 6, 7, 8, 9, 10]
    assert losses(again) == losses(straight)


def until(run: Run, step: int) -> StepResult:
    """Take steps up to and with `step`, and leave the loop in its body."""
    for result in steps(run):
        if result.step == step:
            return result
    raise AssertionError(f"the run ended before step {step}")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"optim": {"name": "muon"}},
        {"precision": "bf16", "kernels": "reference"},
        {"batch_size": 8, "batch_ramp": {"from_tokens": 32, "over": "2000 tokens", "lr_scaling": "sqrt"}},
        {"schedule": {"final_weight_decay": 0.0, "initial_momentum": 0.5, "warmup": 6}},
    ],
)
def test_stopping_at_any_steps_is_bitwise_never_having_stopped(
    build_tiny: Build, bits_of: BitsOf, keys: dict[str, Any]
) -> None:
    keys = {"model": {"dropout": 0.1}, "duration": 24, "checkpoint": {"every": 5}} | keys

    def segment(folder: str, stop: int) -> tuple[Any, list[float]]:
        """From the newest checkpoint into the body of step `stop` - 1, and save as a stop does, its plots left out."""
        run = build_tiny(run_dir=folder, **keys)
        average = AveragedModel(run.model)
        run.keep("average", average)
        with run:
            for result in steps(run):
                average.update_parameters(run.model)
                if result.step + 1 == stop:
                    run.metrics.add(result)
                    run.save()
                    break
        return bits_of([run.trainer.state_dict(), average.state_dict()]), losses(run)

    straight = segment("runs/straight", 24)
    at_once_twice_in_an_epoch_and_at_its_end = [1, 12, 17, 21, 24]
    assert [segment("runs/stopped", stop) for stop in at_once_twice_in_an_epoch_and_at_its_end][-1] == straight


def test_observing_every_step_or_never_gives_the_same_bits(build_tiny: Build, bits_of: BitsOf) -> None:
    def end(folder: str, **observing: Any) -> Any:
        run = build_tiny(run_dir=folder, model={"dropout": 0.1}, precision="bf16", **observing)
        with run:
            until(run, 11)
        return bits_of(run.trainer.state_dict())

    never = {"eval": {"every": None}, "sample": {"every": None}, "checkpoint": {"every": None}, "log": {"every": 100}}
    always = {
        "eval": {"every": 1, "batches": 0},
        "sample": {"every": 1, "tokens": 3},
        "checkpoint": {"every": 1, "keep": 2},
        "log": {"every": 1},
    }
    assert end("runs/never", **never) == end("runs/always", **always)


def test_a_finished_run_has_no_step_left_and_says_so(build_tiny: Build, capsys: pytest.CaptureFixture[str]) -> None:
    first = build_tiny(run_dir="runs/a", duration=3)
    with first:
        for result in steps(first):
            if result.step == 2:
                first.metrics.add(result)
                first.save()
                break
    fit(build_tiny(run_dir="runs/a", duration=3))  # evaluates the last state, which the first had no time for
    before = first.run_dir.metrics_jsonl.read_bytes()
    capsys.readouterr()
    again = build_tiny(run_dir="runs/a", duration=3)
    with again:
        assert list(steps(again)) == []
    assert "runs/a is finished: 3 of 3 steps" in capsys.readouterr().out
    assert again.run_dir.metrics_jsonl.read_bytes() == before
    assert again.trainer.step == 3


def test_a_stop_saves_the_step_it_is_in_and_does_not_evaluate(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", eval={"every": 1}, sample={"every": 1, "tokens": 2}, checkpoint={"every": None})
    with run:
        for result in steps(run):
            if result.step == 2:
                run.stop()
    records = MetricsFile(run.run_dir.metrics_jsonl).read()
    assert [row["step"] for row in records.train] == [0, 1, 2]
    assert [row["step"] for row in records.val] == [0, 1, 2]
    assert saved_steps(run.run_dir.checkpoints)[-1] == 3
    assert "=== step 3 " not in run.run_dir.samples_txt.read_text()


def test_a_stop_in_the_last_step_is_the_end_of_the_run(build_tiny: Build) -> None:
    before = flags()
    run = build_tiny(run_dir="runs/a", duration=2, eval={"every": 1})
    with run:
        for result in steps(run):
            if result.step == 1:
                run.stop()
        assert flags() == before
    assert run.trainer.step == run.num_steps
    assert saved_steps(run.run_dir.checkpoints)[-1] == 2


class FaultyLoss:
    """The usual loss, but not a number in the training steps `at`."""

    def __init__(self, at: set[int], value: float = math.nan) -> None:
        self.at = at
        self.value = value
        self.run: Run | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        loss = token_loss(model, batch)
        at_fault = self.run is not None and model.training and self.run.trainer.step in self.at
        return loss * self.value if at_fault else loss


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    build_tiny: Build, bits_of: BitsOf, kernels: str, value: float
) -> None:
    loss = FaultyLoss({2, 4}, value)
    run = loss.run = build_tiny(run_dir="runs/a", loss=loss, kernels=kernels)
    before: Any = None
    with run:
        for result in steps(run):
            state = run.trainer.state_dict()
            now = bits_of([state["model"], state["optimizer"]["state"]])
            assert (now == before) == (result.step in {2, 4})
            before = now
            if result.step == 6:
                break
    rows = train_rows(run)
    assert [row["step"] for row in rows if row["train/skipped"]] == [2, 4]
    assert not math.isfinite(rows[2]["train/loss"])
    assert '"train/loss": null' in run.run_dir.metrics_jsonl.read_text()
    assert int(run.trainer.guard.skipped) == 2
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_five_steps_in_a_row_without_a_finite_loss_end_the_run(build_tiny: Build) -> None:
    loss = FaultyLoss({1, 3, 4, 5, 6, 7, 8})
    run = loss.run = build_tiny(run_dir="runs/a", loss=loss)
    with pytest.raises(DivergedError, match="5 steps in a row up to step 7") as diverged:
        fit(run)
    assert diverged.value.exit_code == 70
    assert train_rows(run)[-1]["step"] == 7
    assert saved_steps(run.run_dir.checkpoints) == [4]
    assert run.run_dir.owner() is None


def flags() -> tuple[bool, bool]:
    filling: Any = torch.utils.deterministic
    return torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory


def leave(results: list[StepResult], run: Run, how: str) -> None:
    for result in steps(run):
        results.append(result)
        assert flags() == (True, False)
        if how == "break":
            break
        if how == "raise":
            raise AbruptError


@pytest.mark.parametrize("how", ["break", "raise"])
def test_only_deterministic_algorithms_run_and_the_flags_are_restored(build_tiny: Build, how: str) -> None:
    before = flags()
    results: list[StepResult] = []
    run = build_tiny(run_dir="runs/a", duration=2)
    with run:
        if how == "raise":
            with pytest.raises(AbruptError):
                leave(results, run, how)
        else:
            leave(results, run, how)
    assert results
    assert flags() == before


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_what_was_deterministic_before_stays_so(before: bool, wanted: bool) -> None:
    found = flags()
    torch.use_deterministic_algorithms(before)
    try:
        with deterministic(wanted):
            assert flags() == (before or wanted, not wanted)
        assert flags() == (before, True)
    finally:
        torch.use_deterministic_algorithms(found[0])


def test_steps_goes_on_from_the_newest_checkpoint_that_verifies(
    build_tiny: Build, advance: Advance, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_tiny(run_dir="runs/a")
    advance(run, 8)
    (run.run_dir.checkpoints / "step-8" / "tensors.safetensors").write_bytes(b"")
    capsys.readouterr()
    again = build_tiny(run_dir="runs/a")
    with again:
        assert next(iter(steps(again))).step == 4
    said = capsys.readouterr().out
    assert "passed over runs/a/checkpoints/step-8: tensors.safetensors has 0 bytes" in said
    assert "continuing runs/a from step 4 of 12" in said


def test_lines_past_a_restored_step_are_kept_as_evidence(build_tiny: Build, advance: Advance) -> None:
    run = build_tiny(run_dir="runs/a")
    advance(run, 7)
    again = build_tiny(run_dir="runs/a")
    advance(again, 5)
    evidence = (again.run_dir.attempts / "001.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evidence] == [4, 5, 6]
    assert [row["step"] for row in train_rows(again)] == [0, 1, 2, 3, 4]


def test_a_run_goes_where_it_was_told_to(build_tiny: Build, advance: Advance, own_folders: Path) -> None:
    advance(build_tiny(), 0)
    advance(build_tiny(), 0)
    assert {path.name for path in (own_folders / "runs").iterdir()} == {"demo", "demo-2"}
