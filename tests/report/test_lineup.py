"""Many arms in one table: which each is, how it did against the base, and what all of it comes to."""

import io
from dataclasses import replace

from rich.console import Console
from tests.report.test_arms import seeds

from trainwell.report.arms import Verdict, compare_trials
from trainwell.report.contrast_page import verdict_page
from trainwell.report.contrast_text import show_verdict
from trainwell.report.lineup import against, groups, heads, is_many, place, short, summary
from trainwell.report.trial import Trial


def grid(clips: tuple[str, ...] = ("1", "null"), rates: int = 3) -> list[Trial]:
    """A loss that is lowest in the middle, 0.01 higher without clipping, five seeds each."""
    return [
        replace(each, settings={**each.settings, "optim.max_grad_norm": clip}, name=f"{rate} {clip} {each.seed}")
        for rate in range(rates)
        for clip in clips
        for each in seeds("r", f"0.0{rate + 1}", _ends(2.0 + abs(rate - 1) + 0.01 * (clip == "null")))
    ]


def _ends(middle: float) -> list[float]:
    return [middle + 0.02 * step for step in (-1.1, -0.4, 0.1, 0.5, 0.9)]


def printed(found: Verdict, along: str | None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(show_verdict(found, along))
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


FOUND = compare_trials([grid()], along="optim.lr")


def test_an_arm_stands_under_the_last_parts_of_its_keys() -> None:
    assert is_many(FOUND)
    assert heads(FOUND) == ["lr", "max_grad_norm"]
    assert [place(arm, FOUND) for arm in FOUND.arms[:3]] == [["0.01", "1"], ["0.01", "null"], ["0.02", "1"]]
    assert short(FOUND.base, FOUND) == "lr=0.02, max_grad_norm=1"
    assert short(FOUND.base, FOUND, without="optim.lr") == "max_grad_norm=1"


def test_a_part_that_two_keys_share_is_written_out() -> None:
    trials = [
        replace(each, settings={**each.settings, "schedule.lr": str(number % 2)}) for number, each in enumerate(grid())
    ]
    assert heads(compare_trials([trials]))[:2] == ["optim.lr", "max_grad_norm"]
    assert "schedule.lr" in heads(compare_trials([trials]))


def test_each_says_how_it_did_against_the_base() -> None:
    assert against(FOUND.base, FOUND) == ["", "", "base"]
    by_place = {tuple(place(arm, FOUND)): against(arm, FOUND) for arm in FOUND.arms}
    assert by_place[("0.01", "1")][::2] == ["+1.0000", "worse"]
    assert by_place[("0.02", "null")][0] == "+0.0100"


def test_all_of_it_is_one_sentence() -> None:
    counts, against_what = summary(FOUND)
    assert counts == "5 worse"  # the seeds are the same, and so is each difference
    assert against_what == "against lr=0.02, max_grad_norm=1, on 5 runs each"
    alone = compare_trials([[each for each in grid() if each.seed == "0"]], along="optim.lr")
    assert summary(alone)[0] == "5 cannot be told"
    assert "on 1 run each; train each with several seeds" in summary(alone)[1]


def test_logs_without_settings_stand_under_their_names() -> None:
    logs = [[replace(each, settings={}, name=f"log {number}")] for number, each in enumerate(grid()[::5])]
    found = compare_trials(logs)
    assert heads(found) == ["arm"]
    assert place(found.arms[1], found) == ["log 1"]
    assert short(found.arms[1], found) == "log 1"


def test_what_else_differs_makes_the_columns_over_a_key() -> None:
    assert {name: len(arms) for name, arms in groups(FOUND, "optim.lr").items()} == {
        "max_grad_norm=1": 3,
        "max_grad_norm=null": 3,
    }
    said = printed(FOUND, "optim.lr")
    assert "loss over optim.lr" in said
    assert "max_grad_norm=1" in said
    assert "0.02   2.0000 ±0.0" in " ".join(said.split("loss over optim.lr")[1].splitlines())


def test_a_grid_is_one_table_and_no_run_of_sentences() -> None:
    said = printed(FOUND, "optim.lr")
    assert "optim.lr: 0.01, 0.02, 0.03" in said
    assert "5 worse, against lr=0.02, max_grad_norm=1, on 5 runs each" in said
    assert "is worse than" not in said
    assert max(map(len, said.splitlines())) <= 100


def test_a_page_of_more_arms_than_colours_names_the_best_and_the_worst() -> None:
    found = compare_trials([grid(clips=("1", "2", "3", "null"))], along="optim.lr")
    page = verdict_page(found, "optim.lr")
    assert "all others" in page
    assert "best: lr=0.02, max_grad_norm=1" in page
    assert "worst: lr=0.0" in page
    assert "Validation loss" in page
