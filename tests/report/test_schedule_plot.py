"""Pictures of schedules: what is in them, and that the same schedule gives the same file."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from trainwell.config.load import load
from trainwell.planning.resolve import Plan, resolve
from trainwell.report.compare import Side, compare
from trainwell.report.load import Joined
from trainwell.report.picture import save
from trainwell.report.schedule_plot import draw_comparison, draw_plan

SVG = "{http://www.w3.org/2000/svg}"


def plan_of(recipe: str = "demo", **changes: object) -> Plan:
    return resolve(load(recipe, flags={key.replace("__", "."): value for key, value in changes.items()}))


def words(path: Path) -> list[str]:
    return [" ".join(element.itertext()).strip() for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_a_plan_has_its_joints_in_words_and_tokens_on_top(tmp_path: Path) -> None:
    save(draw_plan(plan_of("gpt3-125m"), "gpt3-125m"), tmp_path / "a.svg", "svg")
    said = words(tmp_path / "a.svg")
    for part in ("gpt3-125m", "peak, step 7,147", "6e-4, 375M tokens", "last step 587,138", "300B", "sequences a step"):
        assert part in said


def test_the_same_plan_gives_the_same_svg_to_the_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(draw_plan(plan_of(), "demo"), tmp_path / f"{name}.svg", "svg")
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"date" not in first


def test_the_batch_has_a_panel_only_where_it_changes() -> None:
    assert len(draw_plan(plan_of(), "demo").axes) == 1
    assert len(draw_plan(plan_of("gpt3-125m"), "gpt3-125m").axes) == 2


def test_a_recorded_rate_lies_below_the_planned_one() -> None:
    axes = draw_plan(plan_of(), "demo", ([0, 1, 2], [1e-5, 2e-5, 3e-5])).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["recorded"].get_zorder() < lines["planned"].get_zorder()
    assert np.array_equal(lines["recorded"].get_xdata(), [0, 1, 2])


def test_a_run_of_one_step_is_drawn() -> None:
    assert draw_plan(plan_of(duration=1, schedule__warmup=0), "one").axes


def test_a_comparison_has_both_rates_and_their_difference(tmp_path: Path) -> None:
    left, right = plan_of(schedule__dialect="litgpt"), plan_of(schedule__dialect="nanogpt")
    figure = draw_comparison(compare(Side("left", "file", left), Side("right", "file", right)))
    assert len(figure.axes) == 2
    save(figure, tmp_path / "a.svg", "svg")
    said = words(tmp_path / "a.svg")
    assert {"left", "right", "right - left"} <= set(said)
    assert any(part.startswith("+") and "at step" in part for part in said)


def test_identical_schedules_and_other_batches_are_drawn() -> None:
    plan = plan_of()
    same = compare(Side("a", "file", plan), Side("b", "file", plan))
    assert len(draw_comparison(same).axes) == 2
    other = compare(Side("a", "file", plan), Side("b", "file", plan_of(batch_size=16)))
    assert len(draw_comparison(other).axes) == 3


def test_the_losses_of_two_runs_have_a_panel_with_the_step_at_which_a_branch_begins(tmp_path: Path) -> None:
    plan = plan_of(duration=100)

    def rows(runs: tuple[tuple[str, int], ...], loss: float) -> Joined:
        train = tuple({"step": step, "train/loss": loss - step / 100} for step in range(100))
        return Joined(train, ({"step": 50, "val/loss": 2.0}, {"step": 100, "val/loss": float("nan")}), runs)

    sides = Side("a", "run", plan, rows((("a", 0),), 4.0)), Side("b", "run", plan, rows((("a", 0), ("b", 40)), 3.0))
    figure = draw_comparison(compare(*sides))
    assert len(figure.axes) == 3
    lines = figure.axes[-1].lines
    assert np.array_equal(lines[0].get_xdata(), range(100))
    assert np.array_equal(lines[2].get_ydata(), [3.0 - step / 100 for step in range(100)])
    assert np.array_equal(lines[1].get_xdata(), [50])
    save(figure, tmp_path / "a.svg", "svg")
    assert {"loss", "training", "validation", "branch, step 40"} <= set(words(tmp_path / "a.svg"))
