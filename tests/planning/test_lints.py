"""Findings: each provoked once, gone once the line it names is changed, and none that a shipped recipe did not mean."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwell.config.load import load, read_recipe, recipe_names
from trainwell.config.syntax import parse_yaml
from trainwell.data.prepare import prepare
from trainwell.data.tasks import open_data
from trainwell.errors import ConfigError
from trainwell.optim import dialects
from trainwell.planning.lints import findings
from trainwell.planning.resolve import Plan, resolve

Flags = dict[str, object]
SMALL_TEXT, LONG_TEXT = 450_000, 10_000_000
QUIET: Flags = {"eval.batches": 0, "model.width": 32}
"""What keeps the plans below from being told about their validation text and their size."""


def names(plan: Plan) -> list[str]:
    return [finding.name for finding in findings(plan)]


def warnings(plan: Plan) -> set[str]:
    return {finding.name for finding in findings(plan) if finding.level == "warning"}


PROVOKED: list[tuple[str, str, str, Flags, str]] = [
    # name, level, key, flags, words
    (
        "run-shorter-than-horizon", "note", "duration", {"schedule.horizon": 2400},
        "the run is the first 1,200 steps of a schedule of 2,400: it ends at 1.8",
    ),
    (
        "run-ends-in-warmup", "warning", "duration", {"schedule.horizon": 20000},
        "the run ends inside its warmup of 2,000 steps: the peak is never reached",
    ),
    (
        "run-ends-in-ramp", "warning", "batch_ramp.over",
        {"batch_ramp.from_tokens": 1024, "batch_ramp.over": "100M tokens"},
        "the run ends inside its batch ramp of 67,",
    ),
    (
        "batch-ramp-off", "warning", "batch_ramp.over", {"batch_ramp.over": "1M tokens"},
        "batch_ramp.over 1M tokens has no effect, because batch_ramp.from_tokens is null",
    ),
    (
        "peak-never-reached", "note", "batch_ramp.lr_scaling",
        {"batch_ramp.from_tokens": 256, "batch_ramp.over": "500k tokens", "batch_ramp.lr_scaling": "sqrt"},
        "the rate grows with the batch, which is full only after the warmup: its highest is about",
    ),
    (
        "run-longer-than-horizon", "note", "schedule.horizon", {"schedule.horizon": 1000},
        "the run goes on past its horizon: the last 200 steps are after the schedule's end, at 3e-4",
    ),
    (
        "frozen-random-weights", "warning", "optim.train", {"optim.train": "last-block"},
        "only the last block learns, and the frozen ones below it hold random weights",
    ),
    (
        "rises-past-horizon", "warning", "schedule.horizon",
        {"schedule.dialect": "hf-cosine-with-min-lr", "schedule.horizon": 900},
        "the rate rises again past the horizon: from 3e-4 at step 899 to 1.11e-3 at step 1,199",
    ),
    (
        "rate-zero-at-first", "warning", "schedule.dialect", {"schedule.dialect": "litgpt"},
        "the dialect litgpt takes step 0 at rate 0: it changes no weight",
    ),
    (
        "rate-zero-at-first", "warning", "schedule.dialect", {"schedule.dialect": "hf-linear"},
        "the dialect hf-linear takes step 0 at rate 0",
    ),
    (
        "rate-zero-at-first", "warning", "schedule.dialect", {"schedule.dialect": "hf-inverse-sqrt"},
        "the dialect hf-inverse-sqrt takes step 0 at rate 0",
    ),
    (
        "rate-zero-at-first", "warning", "schedule.dialect", {"schedule.dialect": "hf-cosine-with-min-lr"},
        "the dialect hf-cosine-with-min-lr takes step 0 at rate 0",
    ),
    (
        "rate-zero-at-first", "warning", "schedule.initial_lr", {"schedule.initial_lr": 0},
        "step 0 is taken at rate 0: it changes no weight",
    ),
    (
        "rate-zero-at-last", "warning", "schedule.min_lr", {"schedule.min_lr": 0},
        "the last step is taken at rate 0: no weight changes any more",
    ),
    (
        "rate-zero-at-last", "warning", "schedule.min_lr", {"schedule.min_lr": 0, "schedule.horizon": 1000},
        "the last 201 steps are taken at rate 0",
    ),
    (
        "rate-zero-at-last", "warning", "schedule.min_lr",
        {"schedule.dialect": "hf-linear", "schedule.horizon": 1000}, "the last 200 steps are taken at rate 0",
    ),
    (
        "rate-zero-at-last", "warning", "schedule.min_lr",
        {"schedule.dialect": "hf-linear", "schedule.reach_min": True}, "the last step is taken at rate 0",
    ),
    (
        "minimum-never-reached", "warning", "schedule.dialect",
        {"schedule.dialect": "nanogpt", "duration": 50, "schedule.warmup": 10},
        "the dialect nanogpt stops just short of its minimum: the last step has 3.042e-4, 1.4 % above 3e-4",
    ),
    (
        "minimum-never-reached", "warning", "schedule.dialect", {"schedule.dialect": "nanochat", "duration": 300},
        "the dialect nanochat stops just short of its minimum: the last step has 1.646e-4, 9.7 % above 1.5e-4",
    ),
    (
        "peak-twice", "warning", "schedule.dialect", {"schedule.dialect": "build-nanogpt"},
        "the peak 3e-3 comes twice: on the last step of the warmup and on the one after it",
    ),
    (
        "warmup-length", "warning", "schedule.warmup", {"schedule.warmup": "40%"},
        "the warmup of 480 steps is 40 % of the horizon of 1,200, more than 20 %",
    ),
    (
        "warmup-length", "warning", "schedule.warmup", {"schedule.warmup": 1},
        "the warmup of 1 steps is 0.083 % of the horizon of 1,200, less than 0.1 %",
    ),
    (
        "warmup-length", "warning", "schedule.warmup", {"schedule.warmup": "0.01%"},
        "schedule.warmup 0.01% of a horizon of 1200 steps comes to no step at all: step 0 has 3e-3",
    ),
    (
        "warmup-length", "note", "schedule.warmup", {"schedule.warmup": 0}, "there is no warmup: step 0 has 3e-3",
    ),
    (
        "clipping-off", "note", "optim.max_grad_norm", {"optim.max_grad_norm": None}, "no gradient is clipped",
    ),
    (
        "no-step-clipped", "warning", "optim.clip_from", {"optim.clip_from": 5000},
        "no step is clipped: clipping starts at step 5,000, after the last",
    ),
    (
        "clipping-starts-late", "warning", "optim.clip_from", {"optim.clip_from": "warmup"},
        "the first 120 steps are not clipped, during the warmup",
    ),
    (
        "clipping-starts-late", "warning", "optim.clip_from", {"optim.clip_from": 300},
        "the first 300 steps are not clipped",
    ),
    (
        "horizon-differs-from-data", "warning", "schedule.horizon", {"schedule.horizon": "200M tokens"},
        "the schedule is laid out over 20 passes over the text, of which the run makes 0.246",
    ),
    (
        "horizon-differs-from-data", "note", "duration", {"duration": "9.2M tokens"},
        "the schedule is laid out over 0.92 passes over the text: 8 % of it is not read before the rate is at its end",
    ),
    (
        "horizon-differs-from-data", "note", "schedule.horizon",
        {"duration": "10.5M tokens", "schedule.horizon": "10.5M tokens"},
        "the schedule is laid out over 1.05 passes over the text: 5 % of it is read a second time before the rate",
    ),
    (
        "many-passes", "warning", "duration", {"duration": "30 epochs"},
        "the run reads its text 30 times: expect overfitting",
    ),
    (
        "many-passes", "note", "duration", {"duration": "8 epochs"}, "the run reads its text 8 times",
    ),
    (
        "minimum-not-used", "note", "schedule.min_lr", {"schedule.dialect": "hf-cosine"},
        "the dialect hf-cosine has an end of its own: schedule.min_lr is not used",
    ),
    (
        "minimum-above-initial", "note", "schedule.min_lr", {"schedule.initial_lr": "1%"},
        "the minimum 3e-4 is above the initial rate 3e-5",
    ),
    (
        "vocabulary-not-padded", "note", "model.pad_vocab_to", {"model.pad_vocab_to": 50257},
        "a vocabulary of 50,257 is not a multiple of 64",
    ),
    (
        "stride-skips-text", "warning", "data.stride", {"data.stride": 200},
        "data.stride 200 is more than data.seq_len 128: 72 of every 200 tokens are never read",
    ),
    (
        "validation-text-too-short", "note", "eval.batches", {"eval.batches": 9999},
        "eval.batches asks for 159,984 sequences, the validation set has 9,765: all are used",
    ),
    (
        "tokens-per-parameter", "note", "duration", {"duration": 40, "model.width": 128},
        "0.097 tokens per parameter, far below the 20 that use the arithmetic best",
    ),
    (
        "tokens-per-parameter", "note", "duration", {"model.num_layers": 1, "model.width": 4, "duration": 9999},
        "tokens per parameter, far above the 20 that use the arithmetic best",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "level", "key", "flags", "words"), PROVOKED)
def test_a_finding_says_what_and_where_and_goes_with_the_line_it_names(
    plan_of: Any, name: str, level: str, key: str, flags: Flags, words: str
) -> None:
    plan = plan_of("demo", QUIET | flags, tokens=LONG_TEXT)
    found = {finding.name: finding for finding in findings(plan)}
    assert name in found
    finding = found[name]
    assert words in finding.what
    assert (finding.level, finding.key) == (level, key)
    assert finding.where
    assert finding.why
    lines = parse_yaml(finding.change)
    assert isinstance(lines, Mapping)
    changed = plan_of("demo", QUIET | flags | dict(lines), tokens=LONG_TEXT)
    left = [other for other in findings(changed) if other.name == name and other.level == level]
    assert not left
    assert warnings(changed) <= warnings(plan)


def test_every_kind_of_finding_is_among_those_provoked() -> None:
    source = Path(__file__).parents[2] / "src" / "trainwell" / "planning"
    text = (source / "lints.py").read_text() + (source / "rate_lints.py").read_text()
    written = {part.split('"')[0] for part in text.split('name="')[1:]}
    assert written - {"about-the-text", *WITHOUT_A_LINE} <= {name for name, *_ in PROVOKED}


WITHOUT_A_LINE: dict[str, tuple[str, Flags, str]] = {
    "nothing-learned-before": ("warning", {"task": "classify"}, "task classify starts from random weights"),
    "records-read-as-text": ("note", {"data.path": "mine.jsonl"}, "mine.jsonl is learned as it stands"),
}


@pytest.mark.parametrize("name", WITHOUT_A_LINE)
def test_what_needs_more_than_a_line_is_said_too(plan_of: Any, name: str) -> None:
    level, flags, words = WITHOUT_A_LINE[name]
    (found,) = [each for each in findings(plan_of("demo", QUIET | flags, tokens=LONG_TEXT)) if each.name == name]
    assert (found.level, found.change) == (level, "")
    assert words in found.what


def test_the_note_of_the_corpus_is_passed_on(plan_of: Any) -> None:
    (found,) = findings(plan_of("demo", QUIET, tokens=LONG_TEXT, note="its topics quote each other"))
    assert (found.name, found.what, found.change) == ("about-the-text", "its topics quote each other", "")


def test_an_ordinary_plan_has_nothing_to_say(plan_of: Any) -> None:
    assert findings(plan_of("demo", QUIET, tokens=LONG_TEXT)) == []


@pytest.mark.parametrize(
    "flags",
    [
        {"schedule.decay": "constant"},
        {"schedule.decay": "constant", "schedule.horizon": 600},
        {"schedule.decay": "inverse-sqrt", "schedule.horizon": 600},
        {"schedule.decay": "wsd"},
        {"schedule.dialect": "flashcard-1", "schedule.initial_lr": "1%"},
        {"schedule.dialect": "torchtitan", "schedule.decay_steps": "20%"},
        {"schedule.dialect": "llm.c-wsd", "schedule.reach_min": True},
        {"schedule.dialect": "nanochat", "schedule.reach_min": True},
        {"schedule.dialect": "olmo-core"},
        {"schedule.dialect": "hf-cosine-warmup-with-min-lr"},
        {"schedule.dialect": "nanogpt"},
    ],
)
def test_what_a_schedule_does_by_design_is_no_warning(plan_of: Any, flags: Flags) -> None:
    assert warnings(plan_of("demo", QUIET | flags, tokens=LONG_TEXT)) == set()


def test_warnings_come_first(plan_of: Any) -> None:
    flags = {"optim.max_grad_norm": None, "schedule.dialect": "hf-cosine", "data.stride": 200}
    levels = [finding.level for finding in findings(plan_of("demo", flags, tokens=LONG_TEXT))]
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == {"warning", "note"}


@given(
    dialect=st.sampled_from([None, *dialects.DIALECTS]),
    warmup=st.integers(0, 40),
    steps=st.integers(1, 150),
    horizon=st.integers(1, 120),
    minimum=st.sampled_from([0, "1%", "10%"]),
    reach_min=st.booleans(),
    ramp=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_what_is_found_at_a_few_steps_is_what_looking_at_all_of_them_finds(
    dialect: str | None, warmup: int, steps: int, horizon: int, minimum: object, reach_min: bool, ramp: bool
) -> None:
    flags: Flags = {
        "duration": steps, "schedule.horizon": horizon, "schedule.warmup": warmup, "schedule.dialect": dialect,
        "schedule.min_lr": minimum, "schedule.reach_min": reach_min, "sample.every": None,
    }  # fmt: skip
    if dialect in dialects.NEED_INITIAL:
        flags["schedule.initial_lr"] = "1%"
    if ramp:
        flags |= {"batch_ramp.from_tokens": 256, "batch_ramp.over": "20k tokens", "batch_ramp.lr_scaling": "sqrt"}
    try:
        plan = resolve(load("demo", flags=flags))
    except ConfigError:
        return
    rates = [plan.lr(step) for step in range(plan.num_steps)]
    found = {finding.name: finding for finding in findings(plan)}
    assert ("rate-zero-at-first" in found) == (rates[0] == 0)
    assert ("rate-zero-at-last" in found) == (len(rates) > 1 and rates[-1] == 0)
    if "peak-twice" in found:
        assert sum(rate > plan.config.optim.lr * (1 - 1e-14) for rate in rates) == 2
    if "rises-past-horizon" in found:
        assert max(rates[plan.horizon :]) > rates[plan.horizon - 1]
    if "minimum-never-reached" in found:
        assert not reach_min
        lowest = min(plan.rate(step) for step in range(plan.warmup, plan.horizon))
        assert lowest > 1.01 * plan.rate(plan.horizon)


def test_a_recipe_accepts_what_its_source_has_as_long_as_the_key_is_as_it_ships() -> None:
    shipped = findings(resolve(load("gpt2-124m")))
    (peak,) = [finding for finding in shipped if finding.name == "peak-twice"]
    assert peak.level == "note"
    assert peak.accepted == read_recipe("gpt2-124m").accepts["peak-twice"]
    assert peak.line().startswith("note: the peak 6e-4 comes twice")
    assert peak.line().endswith(f"(on purpose: {peak.accepted})")
    other = findings(resolve(load("gpt2-124m", flags={"schedule.dialect": "llm.c"})))
    assert [finding.level for finding in other if finding.name == "peak-twice"] == ["warning"]
    named = findings(resolve(load("gpt2-124m", flags={"name": "mine"})))
    assert [finding.level for finding in named if finding.name == "peak-twice"] == ["warning"]


def example(number: int) -> dict[str, Any]:
    """A record for any task."""
    return {"instruction": f"Say {number}", "output": "it", "text": str(number), "label": number % 2}


def shipped_plan(name: str, examples: Path) -> Plan:
    """The plan of a recipe over its own text, where that is on this machine; of a task over `examples`."""
    config = load(name)
    if config.data.corpus is not None and (config.data.corpus == "python-docs" or "TRAINWELL_DATA_DIR" in os.environ):
        return resolve(config, prepare(config.data).info)
    if config.task != "pretrain":
        data = config.data.model_copy(update={"path": str(examples), "template": "phi3"})
        config = config.model_copy(update={"init_from": "runs/demo"})  # what such a recipe is for
        return resolve(config, open_data(config.task, data).info)
    try:
        return resolve(config)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("text", [False, True], ids=["without text", "with text"])
def test_a_shipped_recipe_has_no_warning_and_accepts_nothing_in_vain(
    name: str, text: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path))
    if not text:
        monkeypatch.delenv("TRAINWELL_DATA_DIR", raising=False)
    examples = tmp_path / "examples.jsonl"
    examples.write_text("\n".join(json.dumps(example(n)) for n in range(600)))
    plan = shipped_plan(name, examples)
    assert warnings(plan) == set()
    if plan.info is not None or plan.config.data.corpus is None:
        assert read_recipe(name).accepts.keys() <= set(names(plan))


@pytest.mark.parametrize(("recipe", "tokens"), [("demo", 450_000), ("shakespeare-char", 1_003_854)])
def test_the_recipes_that_people_start_with_have_nothing_to_say(plan_of: Any, recipe: str, tokens: int) -> None:
    assert findings(plan_of(recipe, tokens=tokens, as_shipped=True)) == []


def test_the_books_run_is_found_to_be_what_the_book_says_of_it(plan_of: Any) -> None:
    short, late, passes, odd, few = (finding.what for finding in findings(plan_of("book", tokens=4612)))
    assert short == "the dialect book stops just short of its minimum: the last step has 1.021e-5, 2.1 % above 1e-5"
    assert late == "the first 27 steps are not clipped, during the warmup"
    assert passes.startswith("the run reads its text 15 times")
    assert odd == "a vocabulary of 50,257 is not a multiple of 64"
    assert few.startswith("0.00043 tokens per parameter, far below the 20 that use the arithmetic best")


def test_the_line_of_a_warning_ends_with_what_to_write_and_that_of_a_note_does_not(plan_of: Any) -> None:
    (peak,) = findings(plan_of("demo", QUIET | {"schedule.dialect": "build-nanogpt"}, tokens=LONG_TEXT))
    assert peak.line() == f"warning: {peak.what}; `schedule.dialect: nanogpt` changes that"
    assert replace(peak, level="note").line() == f"note: {peak.what}"
    assert replace(peak, change="a: 1\nb: 2").line().endswith("; `a: 1` and `b: 2` change that")


def test_a_run_of_600_000_steps_is_checked_by_looking_at_a_few_of_them() -> None:
    plan = resolve(load("gpt3-125m"))
    looked_at = list[int]()

    def noted(step: int) -> float:
        looked_at.append(step)
        return plan.lr(step)

    assert findings(replace(plan, lr=noted, rate=noted)) == findings(plan)
    assert plan.num_steps > 550_000
    assert len(looked_at) < 100
