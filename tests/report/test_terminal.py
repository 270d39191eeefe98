"""What `show` prints, read as a person would: in a narrow terminal, a wide one, and one that knows only ASCII."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from trainwell.config.load import load, read_recipe
from trainwell.planning.resolve import resolve
from trainwell.report.load import load_run
from trainwell.report.step_text import StepText, Window
from trainwell.report.terminal import show_recipe, show_run, show_step
from trainwell.runs.incidents import Incident, write_incident
from trainwell.runs.metrics import MetricsFile
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
    assert "16 x 128 = 2,048 tokens" in text
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


def test_a_report_of_a_classifier_has_its_accuracy_and_that_of_each_class(make_run: Maker) -> None:
    path = make_run(taken=40)
    config = RunDir(path).config_yaml
    config.write_text(config.read_text().replace("python-docs", "null") + "task: classify\n")
    classes = {"val/accuracy/ham": 1.0, "val/accuracy/spam": 0.5, "val/accuracy/eggs": float("nan")}
    MetricsFile(RunDir(path).metrics_jsonl).append(
        {"step": 40, "val/loss": 0.7, "val/ppl": 2.0, "val/accuracy": 0.75, **classes}
    )
    text = printed(show_run(load_run(path)))
    assert "loss, nats per example" in text
    assert "perplexity" not in text
    assert [line.split()[-1] for line in text.splitlines() if "accuracy" in line or "75.0%" in line] == [
        "accuracy",
        "75.0%",
    ]
    assert "right by class: ham 100.0%, spam 50.0%, eggs of none" in text
    assert f"trainwell sample {path} --label" in " ".join(text.split())


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


def test_the_batch_size_has_a_chart_only_where_it_changes() -> None:
    growing = printed(show_recipe(resolve(load("gpt3-125m")), read_recipe("gpt3-125m")))
    assert "sequences a step, over steps" in growing
    assert "full batch            22,565             4B  5.9974e-04    256" in growing
    assert "peak                   7,147           375M  6.0000e-04     32" in growing
    assert "sequences a step" not in printed(show_recipe(resolve(load("demo")), read_recipe("demo")))


def test_a_report_shows_the_planned_rate_over_the_recorded_one_and_what_is_still_to_come(make_run: Maker) -> None:
    text = printed(show_run(load_run(make_run(taken=400))))
    chart = text[text.index("learning rate over steps") :]
    assert "recorded" in chart.splitlines()[0]
    assert "planned" in chart.splitlines()[0]
    assert "1,199" in chart


def test_a_step_inside_a_ramp_says_why_its_batch_is_what_it_is() -> None:
    text = " ".join(printed(show_step(resolve(load("gpt3-125m")), 10_000, "gpt3-125m")).split())
    assert "P + " not in text
    assert "m + (P - m) x (1 + cos(pi x (n - W)/(T - W)))/2" in text
    assert "B0 + (B - B0) x n/R = 32768 + (524288 - 32768) x" in text


def a_window(**changes: object) -> Window:
    said: dict[str, object] = {
        "example": 640,
        "index": 7,
        "epoch": 0,
        "first_token": 896,
        "sources": ("a.txt",),
        "place": 12,
        "unit": "byte",
        "text": "The tide\nturns",
    }
    return Window(**(said | changes))  # type: ignore[arg-type]


def shown_text(*windows: Window, of: int = 16) -> str:
    return printed(show_step(resolve(load("demo", flags=BASE)), 40, "demo", text=StepText(tuple(range(of)), windows)))


def test_a_window_is_shown_with_its_number_its_tokens_and_where_it_is_from() -> None:
    text = " ".join(shown_text(a_window()).split())
    assert "the first 1 of 16 sequences" in text
    assert "example 640, epoch 0: window 7 of the training part, tokens 896 to 1,023; a.txt from byte 12" in text
    assert "The tide\\nturns" in text


def test_a_window_over_several_texts_names_the_first_two_and_counts_the_rest() -> None:
    text = " ".join(shown_text(a_window(sources=("a.txt", "b.txt", "c.txt", "d.txt"))).split())
    assert "a.txt from byte 12, then b.txt and 2 more" in text


def test_a_text_cannot_steer_the_terminal_and_is_cut() -> None:
    text = shown_text(a_window(text="\x1b[2J[bold]" + 300 * "x", sources=("\x1bname",)), of=1)
    assert "\x1b" not in text
    assert "\\x1b[2J[bold]" in text
    assert text.rstrip().endswith(" ...")
    assert "all of it" in text


def test_a_text_that_is_gone_is_a_line_that_says_so() -> None:
    text = printed(show_step(resolve(load("demo", flags=BASE)), 40, "demo", text="a.txt does not exist"))
    assert "the text cannot be shown: a.txt does not exist" in text


def test_a_step_with_an_incident_shows_it_in_place_of_its_text(make_run: Maker) -> None:
    run = load_run(make_run())
    assert run.plan is not None
    incident = Incident(440, "loss 9 is above 4", False, 9.0, 1.0, 1e-3)
    text = printed(show_step(run.plan, 440, "runs/demo", None, "gone", incident, run.checkpoints))
    assert "the incident" in text
    assert "loss 9 is above 4" in text
    assert "cannot be shown" not in text
    assert "trainwell train runs/demo@440 --steps 1" in text
    assert "trainwell train runs/demo@400 --run NEW --skip 200" in text


def test_what_a_step_logged_cannot_steer_the_terminal(make_run: Maker) -> None:
    run = load_run(make_run())
    assert run.plan is not None
    text = printed(show_step(run.plan, 40, "runs/demo", {"train/why": "[bold]\x1b[2J"}))
    assert "[bold]\\x1b[2J" in text


def test_a_report_names_the_last_incidents_and_counts_them(make_run: Maker) -> None:
    path = make_run()
    for step in range(0, 20, 2):
        write_incident(RunDir(path), Incident(step, "", False, 9.0, 1.0, 1e-3))
    text = " ".join(printed(show_run(load_run(path)), 200).split())
    assert "incidents 10, the last @4, @6, @8, @10, @12, @14, @16, @18; each explained by trainwell show" in text
