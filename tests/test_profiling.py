"""A run that is looked at: the same run to the bit, with a trace and a page that say where its time went."""

import gzip
import json
import math
import time
from collections.abc import Callable, Generator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainwell import faults
from trainwell.fit import fit, steps
from trainwell.profiling import STEPS, WARM_UP, chosen, fit_profiled, profiled
from trainwell.report.profile import CLASSES
from trainwell.run import Run
from trainwell.runs.console import Console
from trainwell.runs.metrics import MetricsFile

Build = Callable[..., Run]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set once for a process is unset again."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")


def facts(run: Run) -> Any:
    return json.loads((run.run_dir.path / "profile" / "summary.json").read_text())


def names_in_trace(run: Run, first_step: int) -> list[str]:
    path = run.run_dir.path / "profile" / f"trace-step-{first_step}.json.gz"
    return [event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]


@pytest.mark.parametrize(
    "changes",
    [{}, {"kernels": "reference"}, {"model": {"dropout": 0.1}, "log": {"every": 1}}, {"optim": {"name": "muon"}}],
    ids=["auto", "reference", "dropout", "muon"],
)
def test_a_profiled_run_is_the_same_run_to_the_bit(
    build_tiny: Build, bits_of: Callable[[Any], Any], changes: dict[str, Any]
) -> None:
    plain = fit(build_tiny(run_dir="runs/plain", **changes))
    seen = fit_profiled(build_tiny(run_dir="runs/seen", **changes))
    assert bits_of(seen.trainer.state_dict()) == bits_of(plain.trainer.state_dict())
    timed = {"time", "train/step_ms", "train/data_ms", "train/tokens_per_sec"}
    rows = [
        [
            {key: row[key] for key in row if key not in timed}
            for row in MetricsFile(run.run_dir.metrics_jsonl).read().train
        ]
        for run in (plain, seen)
    ]
    assert rows[0] == rows[1]
    assert len(rows[1]) == 12


def test_three_steps_after_five_are_traced_and_summed_up_while_the_run_goes_on(
    build_tiny: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit_profiled(build_tiny())
    folder = run.run_dir.path / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["summary.json", "summary.txt", "trace-step-5.json.gz"]
    names = names_in_trace(run, 5)
    assert names.count("trainwell::step") == STEPS
    assert names.count("trainwell::data") == STEPS
    assert names.count("trainwell::loss") == 2 * STEPS  # micro-batches
    said, summary = capsys.readouterr().out, (folder / "summary.txt").read_text()
    assert summary.startswith(f"profile of {run.run_dir.shown}: steps 5 to 7, ")
    assert summary in said
    assert said.index(summary) < said.index("step   11 |")
    assert f"profile: {run.run_dir.shown}/profile/summary.txt, trace-step-5.json.gz" in said


def test_the_shares_are_one_together_and_every_part_of_a_step_has_one(build_tiny: Build) -> None:
    found = facts(fit_profiled(build_tiny()))
    assert math.isclose(sum(found["shares"].values()), 1.0)
    missing = {kind for kind in CLASSES if not found["shares"][kind]}
    assert missing <= {"compiled", "copies"}
    assert (found["first_step"], found["num_steps"], found["tokens"]) == (5, 3, 3 * 4 * 16)
    assert found["tokens_per_s"] == pytest.approx(4 * 16 / found["step_ms"] * 1000)
    assert 0 < found["peak_bytes"] < 2**40
    assert len(found["operators"]) == 10


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_products_of_the_head_count_as_loss_in_both_directions(build_tiny: Build, kernels: str) -> None:
    run = fit_profiled(build_tiny(kernels=kernels, model={"pad_vocab_to": 8192}, duration=8))
    found = facts(run)
    assert found["shares"]["loss"] > found["shares"]["matmul"]
    if kernels == "reference":
        products = {each["kind"]: each["calls"] for each in found["operators"] if each["name"] == "aten::mm"}
        assert products["loss"] == 6  # for each of two micro-batches one forward, two backward


def test_the_head_of_a_model_of_ones_own_counts_as_a_product_and_that_is_said(build_tiny: Build) -> None:
    model = nn.Sequential(nn.Embedding(8192, 16), nn.Linear(16, 8192))
    found = facts(fit_profiled(build_tiny(model=model, optim={"lr": 1e-3})))
    products = {each["kind"]: each["calls"] for each in found["operators"] if each["name"] == "aten::mm"}
    assert products == {"matmul": 4}  # for each of two micro-batches both operands of the backward pass
    assert found["notes"] == ["the head of a model of your own counts as what it is made of, not as loss"]


@pytest.mark.parametrize(
    ("first", "end", "every", "expected"),
    [
        (0, 100, 100, range(5, 8)),
        (40, 100, 100, range(45, 48)),
        (0, 8, 100, range(5, 8)),
        (0, 7, 100, range(4, 7)),
        (0, 2, 100, range(2)),
        (11, 12, 100, range(11, 12)),
        (12, 12, 100, range(12, 12)),
        (0, 100, 4, range(5, 8)),
        (0, 100, 7, range(7, 10)),
        (0, 100, 2, range(6, 8)),
        (0, 100, 1, range(5, 6)),
    ],
)
def test_the_steps_are_three_after_five_or_what_there_is(first: int, end: int, every: int, expected: range) -> None:
    assert chosen(first, end, lambda step: (step + 1) % every == 0) == expected


@given(first=st.integers(0, 50), more=st.integers(1, 60), interrupted=st.sets(st.integers(0, 110)))
def test_nothing_else_is_done_between_the_chosen_steps(first: int, more: int, interrupted: set[int]) -> None:
    found = chosen(first, first + more, interrupted.__contains__)
    assert 1 <= len(found) <= STEPS
    assert first <= found.start
    assert found.stop <= first + more
    assert not interrupted & set(found[:-1])
    assert found.start >= first + min(WARM_UP, max(0, more - STEPS))


def test_an_evaluation_is_neither_traced_nor_interrupts_the_steps(build_tiny: Build) -> None:
    run = fit_profiled(build_tiny(eval={"every": 6}, checkpoint={"every": None}))
    assert (facts(run)["first_step"], facts(run)["num_steps"]) == (6, 3)
    assert names_in_trace(run, 6).count("trainwell::loss") == 2 * STEPS


def test_a_run_that_ends_with_the_last_profiled_step_is_summed_up_too(build_tiny: Build) -> None:
    run = fit_profiled(build_tiny(duration=2))
    assert (facts(run)["first_step"], facts(run)["num_steps"]) == (0, 2)


def test_a_start_that_goes_on_profiles_its_own_steps(build_tiny: Build, advance: Callable[[Run, int], None]) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    run = fit_profiled(build_tiny("runs/a"))
    assert (facts(run)["first_step"], facts(run)["num_steps"]) == (9, 3)


def test_a_finished_run_has_nothing_to_profile_and_says_so(
    build_tiny: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(build_tiny(run_dir="runs/a"))
    run = fit_profiled(build_tiny("runs/a"))
    assert "--profile: no step was taken that could be profiled" in capsys.readouterr().out
    assert not (run.run_dir.path / "profile").exists()


def test_a_folder_that_cannot_be_written_is_one_message_and_training_goes_on(
    build_tiny: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_tiny(run_dir="runs/a")
    run.run_dir.path.mkdir(parents=True)
    (run.run_dir.path / "profile").write_text("in the way")
    fit_profiled(run)
    said = capsys.readouterr().out
    assert "cannot write the profile to runs/a/profile: File exists; training goes on without it" in said
    assert "profile of runs/a: steps 5 to 7" in said
    assert run.finished


def test_a_run_that_is_stopped_meanwhile_shows_what_it_has(build_tiny: Build) -> None:
    run = build_tiny()
    with run, faults.at("after_update@6", run.stop):
        list(profiled(run, steps(run)))
    assert (facts(run)["first_step"], facts(run)["num_steps"]) == (5, 2)


@pytest.mark.parametrize("step", [4, 5, 6])
def test_an_error_in_a_profiled_step_leaves_no_profiler_and_no_range_behind(build_tiny: Build, step: int) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    run = build_tiny()
    parts = [run.trainer.batches, run.trainer.loss]
    with pytest.raises(RuntimeError, match="on purpose"), faults.at(f"after_backward@{step}", fail):
        fit_profiled(run)
    assert parts == [run.trainer.batches, run.trainer.loss]
    assert not {"take_step", "update"} & set(vars(run.trainer))
    assert "hidden" not in vars(run.model)
    assert not torch.autograd._profiler_enabled()


def test_whoever_leaves_the_loop_takes_the_profiler_away(build_tiny: Build) -> None:
    run = build_tiny()
    with run:
        results = profiled(run, steps(run))
        assert isinstance(results, Generator)
        assert [result.step for result in islice(results, WARM_UP + 1)][-1] == WARM_UP
        assert torch.autograd._profiler_enabled()
        results.close()
    assert not torch.autograd._profiler_enabled()
    assert "take_step" not in vars(run.trainer)


class SlowScreen(Console):
    """Takes a second for the first line of a profile."""

    def message(self, text: str) -> None:
        if text.startswith("profile of"):
            time.sleep(1)
        super().message(text)


def test_the_time_of_summing_up_is_not_the_time_of_a_step(build_tiny: Build) -> None:
    run = build_tiny()
    run.console = SlowScreen(run.num_steps, 10)
    fit_profiled(run)
    assert max(row["train/step_ms"] for row in MetricsFile(run.run_dir.metrics_jsonl).read().train) < 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_model_that_is_compiled_whole_is_profiled_without_being_compiled_again(
    build_tiny: Build, bits_of: Callable[[Any], Any]
) -> None:
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    plain = fit(build_tiny(run_dir="runs/plain", compile=True))
    of_one = graphs["unique_graphs"] - before
    torch._dynamo.reset()
    seen = fit_profiled(build_tiny(run_dir="runs/seen", compile=True))
    assert graphs["unique_graphs"] == before + 2 * of_one
    assert bits_of(seen.trainer.state_dict()) == bits_of(plain.trainer.state_dict())
    assert facts(seen)["shares"]["compiled"] > 0
