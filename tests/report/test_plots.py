"""The pictures: they are drawn from any run, and what they show is what was recorded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.report.columns import smoothed
from trainwell.report.load import load_run
from trainwell.report.plots import write_plots
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Maker = Callable[..., Path]
PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_has_three_pictures(make_run: Maker) -> None:
    path = make_run(300)
    written = write_plots(load_run(path))
    assert [file.relative_to(path).as_posix() for file in written] == [
        "plots/lr.png",
        "plots/loss.png",
        "plots/grad_norm.png",
    ]
    for file in written:
        content = file.read_bytes()
        assert content.startswith(PNG)
        assert len(content) > 10_000


def test_a_run_with_classes_has_a_picture_of_its_accuracy_too(make_run: Maker) -> None:
    path = make_run(taken=40)
    rows = [{"step": step, "train/accuracy": step / 40} for step in range(40)]
    checks = [{"step": step, "val/loss": 1.0, "val/accuracy": 0.5} for step in (0, 20, 40)]
    MetricsFile(RunDir(path).metrics_jsonl).append(*rows, *checks)
    assert [file.name for file in write_plots(load_run(path))] == [
        "lr.png",
        "loss.png",
        "grad_norm.png",
        "accuracy.png",
    ]


def test_a_run_that_has_not_taken_a_step_has_none(make_run: Maker) -> None:
    path = make_run(taken=0)
    assert write_plots(load_run(path)) == []
    assert not RunDir(path).plots.exists()


@pytest.mark.parametrize("taken", [1, 2])
def test_a_run_of_one_or_two_steps_is_drawn(make_run: Maker, taken: int) -> None:
    assert len(write_plots(load_run(make_run(taken=taken)))) == 3


def test_a_diverged_run_is_drawn(make_run: Maker) -> None:
    path = make_run(taken=20)
    nothing = {"train/loss": float("nan"), "train/lr": 1e-3, "train/grad_norm": float("inf"), "train/clipped": False}
    MetricsFile(RunDir(path).metrics_jsonl).append(
        *({"step": step, "tokens": 2048 * step} | nothing for step in range(20, 25))
    )
    assert len(write_plots(load_run(path))) == 3


def test_a_run_without_one_finite_number_is_drawn(make_run: Maker) -> None:
    path = make_run(taken=0)
    nothing = {"train/loss": float("nan"), "train/lr": 1e-3, "train/grad_norm": float("nan"), "train/clipped": False}
    rows = [{"step": step, "tokens": 2048 * (step + 1)} | nothing for step in range(3)]
    MetricsFile(RunDir(path).metrics_jsonl).append({"step": 0, "val/loss": float("nan")}, *rows)
    assert len(write_plots(load_run(path))) == 3


def test_smoothing_leaves_a_straight_line_straight() -> None:
    line = np.linspace(3.0, 1.0, 101)
    assert np.allclose(smoothed(line, 20), line)


def test_smoothing_takes_noise_away_and_does_not_lag() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 2001)
    assert smoothed(noise, 400)[300:-300].std() < 0.1
    step = np.repeat([5.0, 1.0], 500)
    assert smoothed(step, 100)[500 - 60] == 5.0
    assert smoothed(step, 100)[500 + 60] == 1.0


@given(values=st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=60), span=st.integers(0, 90))
def test_a_smoothed_value_lies_between_the_values_around_it(values: list[float], span: int) -> None:
    out = smoothed(np.array(values, dtype=np.float64), span)
    finite = [value for value in values if value == value]
    assert len(out) == len(values)
    assert all(min(finite) - 1e-3 <= value <= max(finite) + 1e-3 for value in out if value == value)
