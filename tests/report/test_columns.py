"""Curves as arrays: thinned without losing an extreme, and every step with its place on other axes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainwell.report.columns import axes_of, column, thinned
from trainwell.runs.metrics import Row

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")))


@given(st.lists(NUMBERS, min_size=1, max_size=300), st.integers(4, 60))
def test_a_thinned_curve_keeps_its_ends_its_lowest_and_its_highest(values: list[float], most: int) -> None:
    curve = np.array(values, dtype=np.float64)
    chosen = thinned(curve, most)
    assert len(chosen) <= max(most, 4)
    assert np.all(np.diff(chosen) > 0)
    assert {0, len(curve) - 1} <= {*chosen.tolist()}
    if np.isfinite(curve).any():
        assert np.nanmin(curve[chosen]) == np.nanmin(curve)
        assert np.nanmax(curve[chosen]) == np.nanmax(curve)


def test_a_curve_that_fits_is_drawn_whole() -> None:
    assert thinned(np.arange(50.0), 50).tolist() == list(range(50))


def test_a_spike_of_one_step_survives_in_a_hundred_thousand() -> None:
    curve = np.full(100_000, 2.0)
    curve[70_123] = 9.0
    assert 70_123 in thinned(curve, 1_000)


def test_a_missing_value_is_a_gap() -> None:
    steps, values = column([{"step": 0, "a": 1.0}, {"step": 1, "a": None}, {"step": 2}], "a")
    assert steps.tolist() == [0, 1]
    assert np.isnan(values[1])


def test_a_step_has_its_tokens_hours_and_flops() -> None:
    rows: list[Row] = [{"step": step, "tokens": 64 * (step + 1), "time": 1800.0 * (step + 1)} for step in range(10)]
    states, axes = axes_of(rows, [(0, 0), (20, 1280)], flops_per_token=1e9)
    assert {*axes} == {"step", "tokens", "time", "flops"}
    assert np.interp(5, states, axes["tokens"].values) == 0.32
    assert axes["tokens"].label == "tokens, thousands"
    assert np.interp(4, states, axes["time"].values) == 2.0
    assert axes["time"].label == "hours of training"
    assert axes["time"].values[-1] == 10.0  # what is to come, at the pace so far
    assert np.isclose(np.interp(10, states, axes["flops"].values), 0.64)
    assert axes["flops"].label == "FLOPs, 10^12"


def test_a_run_of_which_nothing_is_known_has_steps_alone() -> None:
    _, axes = axes_of([], [], None)
    assert {*axes} == {"step"}
