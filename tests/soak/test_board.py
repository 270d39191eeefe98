"""The page of the scoreboard: what the results say, and nothing that they do not."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.soak.board import PAGE, PARTS, RESULTS, page, write
from benchmarks.soak.figures import counted, measured, middle_and_tail


def result(*rows: dict[str, Any], date: str = "2026-01-01") -> dict[str, Any]:
    return {
        "rows": list(rows),
        "command": "python -m benchmarks.soak --only kills --seed 7",
        "seed": 7,
        "seconds": 12,
        "date": date,
        "commit": "abc1234",
        "machine": "a processor, 2 cores, Linux",
        "versions": {"torch": "2.11.0"},
    }


def test_a_promise_that_held_in_every_trial_is_counted_as_held() -> None:
    row = counted("it survives", [[], [], []])
    assert (row["figure"], row["held"], row["problems"]) == ("3 of 3", True, [])


def test_one_trial_with_a_problem_breaks_the_promise_and_is_told() -> None:
    row = counted("it survives", [[], ["seed 2: steps differ"], []])
    assert (row["figure"], row["held"]) == ("2 of 3", False)
    assert "- seed 2: steps differ" in page({"kills": result(row)})


def test_a_promise_nobody_tried_does_not_hold() -> None:
    assert counted("it survives", [])["held"] is False


def test_the_tail_is_the_value_that_one_in_a_hundred_exceeds() -> None:
    said = middle_and_tail([index / 100 for index in range(100)])
    assert said == "median 0.495 s, 99th percentile 0.990 s, longest 0.990 s, of 100"


def test_each_promise_stands_with_its_figure_and_the_command_that_makes_it() -> None:
    text = page({"kills": result(measured("steps lost", "at most 0.50 intervals", held=True))})
    command = "`python -m benchmarks.soak --only kills --seed 7`"
    assert f"| steps lost | at most 0.50 intervals | yes | {command} |" in text
    assert "| Kills | 2026-01-01 | abc1234 | 12 | a processor, 2 cores, Linux | torch 2.11.0 |" in text
    assert "What failed" not in text


def test_a_part_that_is_not_run_again_keeps_its_result_and_date(tmp_path: Path) -> None:
    file, page_file = tmp_path / "results.json", tmp_path / "page.md"
    write({"damage": result(counted("detected", [[]]))}, file, page_file)
    write({"kills": result(counted("survived", [[], []]), date="2026-02-02")}, file, page_file)
    text = page_file.read_text()
    assert "| detected | 1 of 1 |" in text
    assert "| survived | 2 of 2 |" in text
    assert "| Damage | 2026-01-01 |" in text
    assert "| Kills | 2026-02-02 |" in text


def test_the_page_in_the_repository_is_the_one_that_its_results_make() -> None:
    if not RESULTS.exists():
        pytest.skip("no long form was run yet")
    results = json.loads(RESULTS.read_text())
    assert set(results) <= set(PARTS)
    assert PAGE.read_text() == page(results)
