"""The rules that are compared: each does on a few steps what its formula says, and the page shows their tables."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import spikes as study

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
MAKERS: dict[str, Callable[[], Any]] = study.RULES
every_rule = pytest.mark.parametrize("name", MAKERS)


def quiet(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    dice = random.Random(seed)
    return [(3 + dice.gauss(0, 0.03), math.exp(dice.gauss(0, 0.15))) for _ in range(steps)]


def flagged(name: str, steps: list[tuple[float, float]]) -> list[int]:
    return sorted(study.judge(MAKERS[name], study.Trace(steps)))


@pytest.mark.parametrize(
    ("name", "lost"),
    [("trainwell", 1), ("OLMo-core", 1), ("OLMo-core, first form", 129), ("llm.c", 200), ("ZClip", 200)],
)
def test_one_nan_costs_ours_one_step_a_window_that_lets_it_in_129_and_a_rule_that_uses_it_the_run(
    name: str, lost: int
) -> None:
    steps = [*quiet(150), (math.nan, math.nan), *quiet(199, seed=1)]
    assert study.lost_after_nan(MAKERS[name], study.Trace(steps), 150) == lost


@every_rule
def test_one_large_spike_of_both_is_found_by_every_rule(name: str) -> None:
    assert 150 in flagged(name, [*quiet(150), (6.0, 20.0), *quiet(20, seed=1)])


def test_spikes_close_together_hide_each_other_from_means_and_not_from_medians() -> None:
    steps = quiet(150) + [(6.0, 20.0), (3.0, 1.0)] * 6
    places = list(range(150, 162, 2))
    assert flagged("trainwell", steps) == places
    assert set(places) - set(flagged("OLMo-core", steps))
    assert set(places) - set(flagged("llm.c", steps))


def test_a_level_that_stays_is_taken_for_granted_sooner_by_means() -> None:
    steps = [*quiet(150), *((loss + 1, norm) for loss, norm in quiet(100, seed=1))]
    lost = {name: len(flagged(name, steps)) for name in ("trainwell", "OLMo-core", "llm.c")}
    assert lost["trainwell"] == 5
    assert lost["llm.c"] < lost["OLMo-core"] <= 5


def test_the_z_score_is_that_of_the_window_with_the_judged_value_in_it() -> None:
    values = [float(place % 4) for place in range(128)]
    rule = study.ZScore()
    for value in values:
        assert math.isnan(rule._z(0, value))
    window = [*values[1:], 9.0]
    mean = sum(window) / 128
    deviation = math.sqrt(sum((each - mean) ** 2 for each in window) / 128)
    assert rule._z(0, 9.0) == pytest.approx((9 - mean) / deviation)


def test_zclip_lets_its_averages_see_the_clipped_norm() -> None:
    rule = study.ZClip()
    for norm in [0.9, 1.1] * 12 + [1.0]:
        assert not rule.flags(3.0, norm)
    mean, deviation = rule._mean, math.sqrt(rule._variance)
    assert rule.flags(3.0, mean + 5 * deviation)
    assert rule._mean == pytest.approx(mean + 0.03 * 2.5**2 / 5 * deviation, rel=1e-4)


def test_hindsight_looks_at_both_sides() -> None:
    falling = [(10.0 - 0.1 * place, 1.0) for place in range(60)]
    assert study.in_hindsight(falling) == frozenset()
    assert study.in_hindsight([*falling[:30], (9.0, 5.0), *falling[31:]]) == {30}


@pytest.mark.slow
def test_a_recorded_trace_can_be_recorded_again() -> None:
    again = study.record(1e-2, 1.0, 1, steps=12)
    assert len(again) == 12
    assert all(math.isfinite(loss) and norm > 0 for loss, norm in again)


def test_every_recorded_run_is_there_and_the_healthy_ones_have_no_false_alarm_of_ours() -> None:
    recorded = study.recorded()
    assert {name: len(traces) for name, traces in recorded.items()} == {
        f"rate {rate:g}, {'no clip' if clip is None else f'clip {clip:g}'}": 3 for rate, clip in study.SETTINGS
    }
    healthy = recorded["rate 0.003, clip 1"]
    assert all(len(trace.steps) == study.RECORDED_STEPS for trace in healthy)
    assert [flags - trace.spikes for trace in healthy for flags in [study.judge(study.Ours, trace)]] == [
        frozenset()
    ] * 3


@pytest.mark.slow
def test_the_page_shows_the_table_of_the_recorded_runs() -> None:
    assert study.recorded_table() in (ROOT / "docs" / "spikes.md").read_text(encoding="utf-8")
