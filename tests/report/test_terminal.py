"""What `show` prints, read as a person would: in a narrow terminal, a wide one, and one that knows only ASCII."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from trainwell.config.load import load, read_recipe
from trainwell.planning.resolve import resolve
from trainwell.report.load import load_run
from trainwell.report.terminal import show_recipe, show_run, show_step
from trainwell.runs.rundir import RunDir

Maker = Callable[..., Path]

BASE = {
    "duration": 1200,
    "batch_size": 16,
    "micro_batch": 16,
    "data.seq_len": 128,
    "model.num_layers": 4,
    "model.num_heads": 4,
    "model.width": 128,
    "optim.lr": 3e-3,
    "schedule.warmup": "10%",
    "schedule.decay": "cosine",
    "schedule.min_lr": "10%",
}
"""The numbers that are looked for below, laid over the recipe, so that tuning it changes no test."""


def printed(what: RenderableType, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(what)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_recipe_fits_the_terminal(width: int) -> None:
    text = printed(show_recipe(resolve(load("demo", flags=BASE)), read_recipe("demo")), width)
    assert max(map(len, text.splitlines())) <= width
    assert "842,624 parameters" in " ".join(text.split())


def test_a_recipe_shows_where_its_rate_turns_and_what_to_type() -> None:
    text = printed(show_recipe(resolve(load("demo", flags=BASE)), read_recipe("demo")))
    assert "linear warmup 120 steps to 3e-3, cosine to 3e-4 at step 1199" in text
    assert "3.0000e-03" in text
    assert "16 sequences x 128 tokens = 2,048 tokens" in text
    assert "trainwell train demo" in text


def test_a_recipe_without_a_text_of_its_own_asks_for_one() -> None:
    text = printed(show_recipe(resolve(load("gpt2-124m")), read_recipe("gpt2-124m")))
    assert "trainwell train gpt2-124m --data.path TEXT" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_report_fits_the_terminal(make_run: Maker, width: int) -> None:
    path = make_run()
    lines = printed(show_run(load_run(path)), width).splitlines()
    assert max(len(line) for line in lines if str(path) not in line) <= width


def test_a_report_has_status_verdict_curve_evaluations_speed_samples_and_files(make_run: Maker) -> None:
    text = printed(show_run(load_run(make_run())))
    for part in (
        "finished after 1200 steps",
        "learned: validation",
        "o validation",
        "bits per byte",
        "100.0 ms a step",
    ):
        assert part in text
    for part in ("step 800, prompt 'The '", "The with statement is used", "@400", "trainwell sample"):
        assert part in text


def test_a_report_of_a_run_that_has_not_started_says_so(make_run: Maker) -> None:
    assert "not started" in printed(show_run(load_run(make_run(taken=0))))


def test_a_sample_cannot_steer_the_terminal(make_run: Maker) -> None:
    path = make_run()
    RunDir(path).samples_txt.write_text('=== step 1 | prompt "x" ===\n\x1b[2Jgone [bold]\n')
    text = printed(show_run(load_run(path)))
    assert "\x1b" not in text
    assert "\\x1b[2Jgone [bold]" in text


def test_a_terminal_that_knows_only_ascii_gets_ascii(make_run: Maker) -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=raw, width=80).print(show_run(load_run(make_run())))


def test_a_step_shows_its_rate_with_the_formula_its_batch_and_what_was_recorded(make_run: Maker) -> None:
    run = load_run(make_run())
    assert run.plan is not None
    text = " ".join(printed(show_step(run.plan, 40, "runs/demo", run.train[40])).split())
    assert "runs/demo@40" in text
    assert "P x (s + 1)/W = 3e-3 x (40 + 1)/120 = 1.025e-3" in text
    assert "examples 640 to 655" in text
    assert "81,920 tokens" in text
    assert "grad_norm" in text
