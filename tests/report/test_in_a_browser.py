"""Reports in a real Chromium: they show themselves, reach for nothing, and text in them stays text."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.browser import wait_ready
from tests.browser import chromium, look, wait_until

from trainwell.report.index import entries, write_index
from trainwell.report.load import load_run
from trainwell.report.run_page import write_report
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

pytestmark = pytest.mark.slow
Maker = Callable[..., Path]

HOSTILE = (
    "</script><script>alert('in')</script><img src=https://example.org/x onerror=alert(1)><svg onload=alert(2)>"
    "\u202eevil\u2066\x1b]0;title\x07\x1b[31m\"' onmouseover='alert(3)' {{ 7 * 7 }} {% raw %} <!--"
)
RANGE = "Bokeh.documents[0]._all_models.values().find(model => model.name === 'steps')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize(("dark", "phone"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_report_shows_itself_and_reaches_for_nothing(make_run: Maker, browser: Any, dark: bool, phone: bool) -> None:
    file = write_report(load_run(make_run()))
    seen = look(browser, file, dark=dark, phone=phone)
    assert seen.complaints == []
    assert seen.requests == [file.as_uri()]
    assert seen.page.title() == "demo"
    assert seen.page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    drawn = (
        "[...document.querySelectorAll('.place')].filter(place => place.getBoundingClientRect().height > 100).length"
    )
    assert seen.page.evaluate(drawn) == len(seen.page.query_selector_all(".chart")) == 5
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_that_a_run_says_becomes_more_than_text(make_run: Maker, browser: Any) -> None:
    folder = RunDir(make_run(name="<img src=x onerror=alert(4)>"))
    hostile = json.dumps(HOSTILE)
    folder.config_yaml.write_text(
        f"{folder.config_yaml.read_text()}sample: {{prompt: {hostile}}}\nextra: {{{hostile}: {hostile}}}\n"
    )
    evil = {HOSTILE: HOSTILE}
    env = {"versions": evil, "platform": HOSTILE, "command": [HOSTILE], "settings": evil, "data": evil, "counts": evil}
    folder.env_json.write_text(json.dumps(env))
    folder.samples_txt.write_text(f"=== step 4 | {HOSTILE} ===\n{HOSTILE}\n")
    start = {"step": 0, "at": 1.0, "host": HOSTILE, "processes": 1, "command": [HOSTILE]}
    folder.starts_jsonl.write_text(f"{json.dumps(start)}\n{json.dumps(start | {'step': 9})}\n")
    (folder.path / "exit.json").write_text(json.dumps({"code": 1, "rank": 0, "message": HOSTILE}))
    folder.incidents.mkdir()
    incident = {
        "step": 7,
        "reason": HOSTILE,
        "skipped": False,
        "loss": 1.0,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "windows": None,
    }
    (folder.incidents / "step-7.json").write_text(json.dumps(incident))
    (folder.incidents / "step-8.json").write_text(hostile)
    MetricsFile(folder.metrics_jsonl).append({"step": 100, "train/spike": True, HOSTILE: HOSTILE})

    file = write_report(load_run(folder.path))
    for dark in (False, True):
        seen = look(browser, file, dark=dark)
        seen.page.hover(".verdict")
        assert (seen.dialogs, seen.complaints, seen.requests) == ([], [], [file.as_uri()])
    assert len(seen.page.query_selector_all("script")) == 3  # the charts' data, Bokeh, the page's own
    assert seen.page.query_selector_all("img, iframe, object, embed, form, [onerror], [onload], [onmouseover]") == []
    text = seen.page.evaluate("document.documentElement.textContent")
    assert "</script><script>alert('in')</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b\x07]", file.read_text(encoding="utf-8"))
    assert "\\u202eevil" in text


def test_the_policy_lets_in_the_pages_own_scripts_alone(make_run: Maker, browser: Any) -> None:
    file = write_report(load_run(make_run()))
    policy = look(browser, file).page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert re.fullmatch(r"script-src( 'sha256-[A-Za-z0-9+/]{43}=')+", scripts)
    file.write_text(file.read_text(encoding="utf-8") + "<script>alert('added')</script>", encoding="utf-8")
    seen = look(browser, file)
    assert seen.dialogs == []
    assert any("Content Security Policy" in line for line in seen.complaints)


def test_another_axis_moves_every_curve_and_keeps_what_is_looked_at(make_run: Maker, browser: Any) -> None:
    page = look(browser, write_report(load_run(make_run()))).page
    page.evaluate(f"{RANGE}.setv({{start: 300, end: 600}})")
    page.click("button[data-axis=tokens]")
    start, end = page.evaluate(f"[{RANGE}.start, {RANGE}.end]")
    assert (start, end) == (pytest.approx(0.6144), pytest.approx(1.2288))  # 2,048 tokens a step, in millions
    labels = page.evaluate("Bokeh.documents[0].roots().map(figure => figure.below[0].axis_label)")
    assert {*labels} == {"tokens, millions"}
    page.click("button[data-axis=step]")
    assert page.evaluate(f"[{RANGE}.start, {RANGE}.end]") == [pytest.approx(300), pytest.approx(600)]
    page.click("#whole")
    assert page.evaluate(f"[{RANGE}.start, {RANGE}.end]") == [pytest.approx(-4.8), pytest.approx(1212)]


def test_the_loss_has_a_logarithmic_axis_too(make_run: Maker, browser: Any) -> None:
    page = look(browser, write_report(load_run(make_run()))).page
    shown = "Bokeh.documents[0].roots().filter(figure => figure.tags.length).map(figure => figure.visible)"
    assert page.evaluate(shown) == [True, False]
    page.click("button[data-scale=log]")
    assert page.evaluate(shown) == [False, True]
    wait_until(page, "document.getElementById('figure-loss-log').getBoundingClientRect().height > 100")


def test_a_page_that_loads_itself_again_stays_where_it_is(make_run: Maker, browser: Any) -> None:
    path = make_run(taken=600)
    seen = look(browser, write_report(load_run(path), reload_s=2))
    page = seen.page
    page.click("button[data-axis=tokens]")
    page.evaluate(f"{RANGE}.setv({{start: 0.5, end: 1}})")
    page.evaluate("scrollTo({top: 700, behavior: 'instant'})")
    page.evaluate("window.before = true")
    wait_until(page, "window.before === undefined")
    wait_ready(page)
    assert page.evaluate(f"[{RANGE}.start, {RANGE}.end]") == [pytest.approx(0.5), pytest.approx(1)]
    assert page.get_attribute("button[data-axis=tokens]", "aria-pressed") == "true"
    assert page.evaluate("scrollY") == pytest.approx(700, abs=2)
    assert seen.complaints == []


def test_the_configuration_is_searched(make_run: Maker, browser: Any) -> None:
    page = look(browser, write_report(load_run(make_run()))).page
    page.fill("#search", "warmup")
    shown = page.evaluate("[...document.querySelectorAll('#settings tr')].filter(row => !row.hidden).length")
    assert 2 <= shown <= 6
    assert "schedule.warmup" in page.inner_text("#settings")


def test_a_run_that_has_taken_no_step_has_a_page(make_run: Maker, browser: Any) -> None:
    seen = look(browser, write_report(load_run(make_run(taken=0))))
    assert seen.complaints == []
    assert "not started" in seen.page.inner_text("header")


def test_the_index_links_to_the_reports(make_run: Maker, browser: Any, tmp_path: Path) -> None:
    for name in ("a b", "c#d"):
        write_report(load_run(make_run(name=name)))
    file = write_index(tmp_path, entries(tmp_path))
    seen = look(browser, file)
    assert seen.complaints == []
    assert len(seen.page.query_selector_all("svg polyline")) == 2
    seen.page.click("a:has-text('c#d')")
    wait_ready(seen.page)
    assert seen.page.title() == "c#d"
