"""The arithmetic of the study, and its page against its results."""

import math
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import simple_vs_improved as study

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "data" / "simple-vs-improved.jsonl"
PAGE = ROOT / "docs" / "simple-vs-improved.md"
few = st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=5)


def result(*val: float, tenths: tuple[float, ...] = (3.0, 2.0), steps: int = 500) -> Any:
    """A run evaluated every 100 steps from state 0, on a text whose letters have an entropy of 3.3 nats."""
    setting = study.Setting("verdict", "book", "simple", 1e-3, 1, steps)
    return study.Result(setting, tuple((100 * at, loss) for at, loss in enumerate(val)), tenths, 0.0, 3.3)


def test_the_interval_is_that_of_all_resamples() -> None:
    differences = [0.3, -0.1, 0.25, 0.0]
    means = sorted(fmean(drawn) for drawn in product(differences, repeat=4))
    low, high = study.paired_interval(differences)
    assert low == pytest.approx(means[math.ceil(0.025 * len(means)) - 1])
    assert high == pytest.approx(means[math.ceil(0.975 * len(means)) - 1])


@given(few)
def test_the_interval_lies_within_the_differences(differences: list[float]) -> None:
    low, high = study.paired_interval(differences)
    assert min(differences) - 1e-12 <= low <= high <= max(differences) + 1e-12


def test_a_difference_that_is_not_finite_has_no_interval() -> None:
    assert all(map(math.isnan, study.paired_interval([0.1, math.inf])))


def test_the_spread_is_the_sample_standard_deviation() -> None:
    assert study.mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)


def test_letters_that_are_equally_frequent_have_the_logarithm_of_their_number_as_entropy() -> None:
    assert study.letter_entropy("abcd" * 7) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (result(4.2, 3, 3, 2, 2, 2.5), False),
        (result(4.2, 3, 3, 2, 2, 3.5, tenths=(3.0, 2.0, 1.0)), False),
        (result(4.2, 3, 3, 2), True),
        (result(4.2, 3, 3, 2, 2, math.nan), True),
        (result(4.2, 3, 3, 2, 2, 2, tenths=(3.0, 2.0, math.nan, 2.0)), True),
        (result(4.2, 3, 3, 2, 2, 2, tenths=(3.0, 2.0, 2.15)), False),
        (result(4.2, 3, 3, 2, 2, 2, tenths=(3.0, 2.0, 2.25)), True),
        (result(4.2, 3, 3, 2, 2, 2, tenths=(3.5, 3.25)), True),
    ],
    ids=["learned", "overfitted", "ended early", "end not finite", "loss not finite", "wavered", "rose", "nothing"],
)
def test_a_run_diverged_by_its_training_loss_alone(run: Any, expected: bool) -> None:
    assert study.diverged(run) is expected


def test_both_loops_take_every_setting() -> None:
    settings = [run for run in study.study() if run.arm in study.LOOPS]
    assert len(set(settings)) == 280
    by_loop = [
        {(run.corpus, run.model, run.rate, run.seed, run.steps) for run in settings if run.arm == arm}
        for arm in study.LOOPS
    ]
    assert by_loop[0] == by_loop[1]


def test_a_last_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    whole = RESULTS.read_text("utf-8").splitlines(keepends=True)[:2]
    file.write_text(whole[0] + whole[1][:40], encoding="utf-8")
    assert list(study.read_results(file).values()) == list(study.read_results(RESULTS).values())[:1]


def test_the_page_shows_the_tables_of_its_results() -> None:
    known = study.read_results(RESULTS)
    results = [known[setting] for setting in study.study()]
    page = PAGE.read_text("utf-8").splitlines()
    made = [*study.tables(results), *study.shares(results), *study.parts(results)]
    assert [line for line in made if line not in page] == []


def test_the_pictures_of_the_page_are_small_and_there() -> None:
    for name in ("final", "best", "diverged", "curves"):
        assert f"images/simple-vs-improved-{name}.png" in PAGE.read_text("utf-8")
        assert 0 < (ROOT / "docs" / "images" / f"simple-vs-improved-{name}.png").stat().st_size < 150_000
