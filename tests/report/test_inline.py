"""A run in a notebook: pictures inside, no script, text that stays text."""

import json
from collections.abc import Callable
from pathlib import Path

from trainwell.report.inline import inline

Maker = Callable[..., Path]


def test_a_run_shows_its_verdict_and_its_curves(make_run: Maker) -> None:
    page = inline(make_run())
    assert page.count('src="data:image/png;base64,') == 2
    assert "finished after 1200 steps" in page
    assert "learned: validation loss" in page


def test_what_has_not_begun_or_is_damaged_is_said(make_run: Maker, tmp_path: Path) -> None:
    assert "not started" in inline(tmp_path / "none")
    assert "not started" in inline(make_run(taken=0))
    damaged = make_run(name="damaged")
    (damaged / "metrics.jsonl").write_text("{\n{\n")
    assert "line 1 is damaged" in inline(damaged)


def test_names_stay_text(make_run: Maker) -> None:
    path = make_run(name="<script>alert(1)</script>", taken=50)
    (path / "env.json").write_text(json.dumps({"counts": None}))
    page = inline(path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
