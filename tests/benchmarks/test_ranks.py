"""The pages and figures of what several processes cost, and one rank that is really killed."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.soak import rank_kills

from benchmarks import ranks


def killed(seconds: float | None, *, same: bool = True) -> rank_kills.Killed:
    return rank_kills.Killed("a launcher", 0, 1, 20, 0, seconds, same, "")


def test_times_until_steps_go_on_are_the_median_and_the_95th_percentile_of_those_that_went_on() -> None:
    found = [killed(float(number)) for number in range(1, 21)]
    summary = rank_kills.summary([*found, killed(None, same=False)])
    assert summary == {"kills": 21, "same weights": 20, "median, s": 10.5, "95th percentile, s": 19.0}
    assert rank_kills.summary([killed(3.0)])["95th percentile, s"] == 3.0
    assert rank_kills.summary([killed(None)])["median, s"] is None


def test_a_step_that_was_said_before_another_attempt_began_does_not_count(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = "2 ranks, ddp, cpu\nstep    0 | loss: 5.5 | lr 1\nstep    1 | loss: 5.4 | lr 1\n"
    assert rank_kills.last_step(tmp_path / "none") == -1
    out.write_text(first)
    assert rank_kills.last_step(out) == 1
    out.write_text(f"{first}step    2 | loss: 5.3 | lr 1\n")
    assert not rank_kills.has_begun_again(out, len(first))
    out.write_text(f"{first}2 ranks, ddp, cpu\ncontinuing\n")
    assert not rank_kills.has_begun_again(out, len(first))
    out.write_text(f"{first}2 ranks, ddp, cpu\ncontinuing\nstep    1 | loss: 5.4 | lr 1\n")
    assert rank_kills.has_begun_again(out, len(first))


def test_the_page_has_a_table_of_each_part_that_was_measured() -> None:
    result: dict[str, Any] = {
        "about": {"cores": "2"},
        "efficiency": {
            "demo": {
                "one process, ms a step": 12.0,
                "two processes, ms a step": 12.5,
                "efficiency": 0.96,
                "of each pair": [0.95, 0.97],
            }
        },
        "wrapping": {
            "demo, ddp": {
                "bare, ms a step": 12.0,
                "wrapped, ms a step": 12.06,
                "overhead": 0.005,
                "quartiles": (-0.01, 0.02),
            }
        },
        "kills": {"summary": {"all": rank_kills.summary([killed(4.0), killed(None, same=False)])}},
    }
    page = "\n".join(ranks.lines_of(result))
    assert "| demo | 12.0 | 12.5 | 0.96 | 0.95, 0.97 |" in page
    assert "| demo, ddp | 12.0 | 12.1 | +0.50% | -1.00% to +2.00% |" in page
    assert "| all | 2 | 1 | 4.0 s | 4.0 s |" in page
    assert "A rank killed" not in "\n".join(ranks.lines_of({"about": {}}))


@pytest.mark.slow
def test_steps_of_both_kinds_are_timed() -> None:
    small = ranks.Case("demo", {"data": {"seq_len": 16}, "model": {"num_layers": 1, "num_heads": 2, "width": 16}}, 4)
    found = ranks.efficiency(small)
    assert found["efficiency"] == pytest.approx(found["one process, ms a step"] / found["two processes, ms a step"])
    assert len(found["of each pair"]) == 2
    assert ranks.wrapping(small, "ddp")["pairs"] == ranks.wrapping(small, "fsdp")["pairs"] == 4


@pytest.mark.slow
def test_a_rank_that_torchrun_starts_again_ends_with_the_weights_of_the_run_nobody_disturbed(tmp_path: Path) -> None:
    """The other launcher, trainwell's own, is killed in the tests of the command."""
    own, torchrun = rank_kills.LAUNCHERS
    length_s, expected = rank_kills.straight(rank_kills.LAUNCHERS[own], tmp_path / "straight")
    found = rank_kills.kill_once(torchrun, 1, tmp_path / "killed", length_s, expected)
    assert found.same, found.said
    assert found.resumed_s is not None
