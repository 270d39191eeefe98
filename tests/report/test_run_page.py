"""What a report says: the verdict first, then the cost, what happened, and what differs from the recipe."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from trainwell.errors import StorageError
from trainwell.report.load import load_run
from trainwell.report.run_page import report, write_report
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir
from trainwell.runs.starts import note_start, this_start

Maker = Callable[..., Path]


def text_of(page: str) -> str:
    """What a reader sees, without scripts and styles."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def test_the_verdict_comes_first_and_then_how_well_and_at_what_cost(make_run: Maker) -> None:
    said = text_of(report(load_run(make_run())))
    places = [
        said.index(part) for part in ("✓ Learned", "best validation loss", "tokens seen", "Curves over", "Samples,")
    ]
    assert places == sorted(places)
    assert "1.33" in said
    assert "2.46M" in said
    assert "20.5k tokens/s" in said
    assert "FLOPs" in said
    assert "What to try next:" in said


def test_settings_that_differ_from_the_recipe_are_marked(make_run: Maker) -> None:
    page = report(load_run(make_run()))
    changed = re.findall(r'<tr class="changed"><td class="mono">([^<]+)</td><td class="mono">([^<]+)</td>', page)
    assert ("batch_size", "16") in changed
    assert "optim.lr" not in dict(changed)
    assert f"{len(changed)} of " in text_of(page)


def test_what_happened_is_told_in_order(make_run: Maker) -> None:
    path = make_run(taken=600)
    folder = RunDir(path)
    note_start(folder.starts_jsonl, this_start(0, 1))
    note_start(folder.starts_jsonl, this_start(300, 2))
    folder.attempts.mkdir()
    (folder.attempts / "001.jsonl").write_text('{"step": 301}\n{"step": 302}\n')
    MetricsFile(folder.metrics_jsonl).append(
        {"step": 100, "train/spike": True, "train/loss": 9.0},
        {"step": 101, "train/skipped": True, "train/loss": float("nan")},
    )
    said = text_of(report(load_run(path)))
    story = said[said.index("What happened") :]
    parts = (
        "training begins",
        "leapt out",
        "was left out",
        "training goes on",
        "2 lines of steps",
        "stopped after",
    )
    assert [story.index(part) for part in parts] == sorted(story.index(part) for part in parts)
    assert "2 processes" in story


def test_a_run_that_was_killed_says_how_it_ended(make_run: Maker) -> None:
    path = make_run(taken=300)
    (path / "exit.json").write_text(json.dumps({"code": 71, "rank": 0, "message": "out of memory on cuda:0"}))
    said = text_of(report(load_run(path)))
    assert "Learned, so far" in said
    assert "ended with exit code 71: out of memory on cuda:0" in said


def test_samples_stand_side_by_side_with_the_loss_of_their_time(make_run: Maker) -> None:
    page = report(load_run(make_run()))
    assert page.count('<article class="sample">') == 2
    assert re.search(r"validation loss \d\.\d{3} · prompt 'The '", text_of(page))


def test_facts_of_the_environment_may_be_of_any_shape(make_run: Maker) -> None:
    path = make_run()
    for env in ({"counts": [1], "settings": 3, "versions": None, "command": "x"}, {"data": {"a": {"b": [None, True]}}}):
        (path / "env.json").write_text(json.dumps(env))
        assert "Configuration" in text_of(report(load_run(path)))


def test_numbers_that_are_not_finite_leave_gaps(make_run: Maker) -> None:
    path = make_run(taken=50)
    bad = [
        {"step": step, "train/loss": float("nan"), "train/grad_norm": float("inf"), "train/lr": 1e-3}
        for step in range(50, 60)
    ]
    MetricsFile(path / "metrics.jsonl").append(*bad, {"step": 60, "val/loss": float("nan")})
    assert "Diverged" in text_of(report(load_run(path)))


@pytest.mark.slow
def test_a_run_of_a_hundred_thousand_lines_fits_into_four_megabytes(make_run: Maker) -> None:
    path = make_run(num_steps=20_000)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    more = [
        {**json.loads(line), "step": json.loads(line)["step"] + 20_000 * part} for part in range(5) for line in lines
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    run = load_run(path)
    assert len(run.train) == 100_000
    assert len(report(run).encode()) < 4_000_000


def test_a_folder_that_cannot_be_written_is_named(make_run: Maker, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(load_run(make_run()), tmp_path / "no" / "report.html")
