"""Lengths become steps by stated rounding, and whatever cannot be is said before anything starts."""

import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.config.values import Duration
from trainwell.errors import ConfigError
from trainwell.planning.resolve import NeedsTimingError, resolve

EPOCH = 1000  # windows of the text below: 1000 * 128 + 1 tokens at seq_len 128
TOKENS = EPOCH * 128 + 1


def test_the_book_run_has_the_books_counts(plan_of: Any) -> None:
    plan = plan_of("book", tokens=4612)
    assert (plan.num_windows, plan.num_steps, plan.horizon, plan.warmup, plan.clip_from) == (18, 135, 135, 27, 27)
    assert plan.batch.tokens_before(plan.num_steps) == 69_120
    assert (plan.lr(0), plan.lr(27)) == (1e-5, 1e-3)
    assert plan.epoch(135) == 15


def test_karpathys_long_run_has_gpt3s_counts(plan_of: Any) -> None:
    plan = plan_of("gpt2-124m")
    assert (plan.num_steps, plan.horizon, plan.warmup, plan.vocab_size) == (19073, 19073, 715, 50304)
    assert plan.batch.size(0) == 512
    assert plan.epoch(100) is None


def test_shakespeare_is_laid_out_over_its_horizon_however_short_the_run(plan_of: Any) -> None:
    whole, beginning = plan_of("shakespeare-char"), plan_of("shakespeare-char", {"duration": 60})
    assert (whole.num_steps, beginning.num_steps) == (2000, 60)
    assert [whole.lr(step) for step in range(60)] == [beginning.lr(step) for step in range(60)]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("7", 7),
        ("4096 tokens", 2),
        ("4095 tokens", 1),
        ("1 token", 1),
        ("1 epochs", 63),  # 62.5 batches of 16
        ("2 epochs", 125),
        ("0.01 epochs", 1),
    ],
)
def test_a_duration_in_tokens_rounds_down_and_in_epochs_up(plan_of: Any, duration: str, steps: int) -> None:
    flags = {"duration": duration, "schedule.warmup": 0, "eval.every": None}
    assert plan_of("demo", flags, tokens=TOKENS).num_steps == steps


@pytest.mark.parametrize(
    ("every", "steps"),
    [("10%", 20), ("0.1%", 1), ("1 epochs", 63), ("0.5 epochs", 31), ("0.001 epochs", 1), (None, None)],
)
def test_a_cadence_is_of_the_run_rounds_epochs_to_the_nearest_and_is_at_least_one(
    plan_of: Any, every: str | None, steps: int | None
) -> None:
    flags = {"duration": 200, "schedule.horizon": 5000, "eval.every": every, "sample.every": every}
    plan = plan_of("demo", flags | {"checkpoint.every": every}, tokens=TOKENS)
    assert (plan.eval_every, plan.sample_every, plan.save_every) == (steps, steps, steps)


def test_per_cents_of_the_schedule_are_of_the_horizon(plan_of: Any) -> None:
    flags = {"duration": 100, "schedule.horizon": "400%", "schedule.warmup": "20%", "schedule.decay": "wsd"}
    plan = plan_of("demo", flags | {"schedule.decay_steps": "25%", "optim.clip_from": "50%"})
    assert (plan.horizon, plan.warmup, plan.decay_steps, plan.clip_from) == (400, 80, 100, 50)


@given(per_cent=st.integers(0, 99), steps=st.integers(1, 10**6))
def test_per_cents_are_exact_and_only_the_warmup_may_come_to_nothing(per_cent: int, steps: int) -> None:
    plan = resolve(load("demo", flags={"duration": steps, "schedule.warmup": f"{per_cent}%", "eval.every": "1%"}))
    assert plan.warmup == per_cent * steps // 100
    assert plan.eval_every == max(1, steps // 100)


def test_a_duration_in_minutes_waits_for_a_timing() -> None:
    config = load("demo", flags={"duration": "5 minutes", "schedule.warmup": 2000})
    with pytest.raises(NeedsTimingError, match="5 minutes is a time"):
        resolve(config)
    assert resolve(config, seconds_per_step=0.05).num_steps == 6000
    with pytest.raises(ConfigError, match=r"schedule\.warmup: 2000 steps, which is 2000 steps, is not shorter"):
        resolve(config, seconds_per_step=0.5)


def test_epochs_without_a_text_are_named(plan_of: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of("book")
    assert str(caught.value).startswith("duration: 15 epochs (and so sample.every) cannot be counted without the text")
    with pytest.raises(ConfigError, match=r"cannot be counted without its examples; give them with data\.path FILE"):
        plan_of("instruct")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"schedule.dialect": "nanogtp"}, "torchtitan-linear, or null; did you mean nanogpt?"),
        ({"schedule.dialect": "NanoGPT"}, "or null; did you mean nanogpt?"),
        ({"schedule.dialect": "book"}, "schedule.initial_lr: the dialect book starts there"),
        ({"schedule.dialect": "nanogpt", "schedule.initial_lr": 1e-5}, "the dialect nanogpt has no initial rate"),
        (
            {"schedule.warmup": "1 epochs", "duration": 60},
            "schedule.warmup: 1 epochs, which is 63 steps, is not shorter",
        ),
        ({"schedule.initial_lr": "1%", "duration": 15}, "in a warmup of 10%, which is 1 steps; give"),
        (
            {"schedule.decay": "wsd", "schedule.decay_steps": "95%"},
            "schedule.decay_steps: 95% comes to 1140 steps; allowed are 1 to 1080",
        ),
        (
            {"schedule.decay": "wsd", "schedule.decay_steps": 0},
            "schedule.decay_steps: 0 steps comes to 0 steps; allowed",
        ),
        ({"model.pad_vocab_to": 100}, "model.pad_vocab_to: 100 is less than the 257 tokens of the tokenizer bytes"),
        (
            {"schedule.dialect": "llm.c", "schedule.horizon": 1000},
            "duration: 1200 steps go past the horizon of 1000, where the dialect llm.c ends",
        ),
    ],
)
def test_what_counting_shows_to_be_wrong_is_named(plan_of: Any, flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of("demo", flags, tokens=TOKENS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_of_the_configuration_and_of_counting_come_together(plan_of: Any) -> None:
    config = RunConfig.model_validate({"name": "a/b", "schedule": {"dialect": "book"}, "model": {"pad_vocab_to": 3}})
    with pytest.raises(
        ConfigError, match=r"^4 mistakes .*\n  name.*\n  schedule\.initial_lr.*\n  model\.pad.*\n  sample\.every"
    ):
        resolve(config)


def test_the_vocabulary_is_the_padded_one_and_unknown_without_its_text(plan_of: Any) -> None:
    assert plan_of("demo").vocab_size == 257
    assert plan_of("demo", {"model.pad_vocab_to": 320}).vocab_size == 320
    assert plan_of("shakespeare-char").vocab_size is None
    assert plan_of("shakespeare-char", tokens=10_000).vocab_size == 65


def test_windows_overlap_by_the_stride_in_training_and_never_in_validation(plan_of: Any) -> None:
    plan = plan_of("demo", {"data.stride": 64}, tokens=TOKENS)
    assert (plan.num_windows, plan.num_val_windows) == (2 * EPOCH - 1, (TOKENS // 8 - 1) // 128)
    assert plan.epoch(100) == pytest.approx(1600 / plan.num_windows)


def test_the_schedules_are_named_by_the_setting_they_set(plan_of: Any) -> None:
    plan = plan_of("demo")
    assert plan.schedules == {"lr": plan.lr}


def test_the_rate_is_exactly_the_share_of_the_peak(plan_of: Any) -> None:
    plan = plan_of("demo", {"optim.lr": 3e-3, "schedule.min_lr": "10%"})
    assert plan.lr(plan.num_steps - 1) == 3e-4
    assert Fraction(str(plan.lr(plan.num_steps))) == Fraction("0.0003")


RAMP: dict[str, object] = {"batch_ramp.from_tokens": 512, "batch_ramp.over": "65536 tokens", "micro_batch": 4}
"""From 4 to 16 sequences of 128."""


def test_a_ramp_counts_steps_tokens_and_epochs(plan_of: Any) -> None:
    plan = plan_of("demo", RAMP | {"duration": "1 epochs"}, tokens=TOKENS)
    assert (plan.batch.size(0), plan.batch.size(plan.num_steps)) == (4, 16)
    assert plan.batch.examples_before(plan.num_steps - 1) < EPOCH <= plan.batch.examples_before(plan.num_steps)
    half = plan_of("demo", RAMP | {"duration": "64000 tokens"})
    assert half.batch.tokens_before(half.num_steps) <= 64_000 < half.batch.tokens_before(half.num_steps + 1)
    assert half.num_steps > 64_000 // 2048


def test_a_ramp_over_epochs_is_one_over_their_tokens(plan_of: Any) -> None:
    by_epochs = plan_of("demo", RAMP | {"batch_ramp.over": "0.5 epochs"}, tokens=TOKENS)
    assert by_epochs.batch.ramp.over == EPOCH * 128 // 2
    with pytest.raises(ConfigError, match=r"batch_ramp.over: 0.5 epochs cannot be counted without the text"):
        plan_of("demo", RAMP | {"batch_ramp.over": "0.5 epochs"})


def test_a_time_counts_the_small_steps_of_a_ramp_as_small(plan_of: Any) -> None:
    config = plan_of("demo", RAMP | {"duration": 100}).config
    timed = resolve(config.model_copy(update={"duration": Duration.parse("1 minutes")}), seconds_per_step=1.6)
    assert timed.batch.examples_before(timed.num_steps) == pytest.approx(60 / 1.6 * 16, abs=16)
    assert timed.num_steps > 60 / 1.6


@pytest.mark.parametrize(("flags", "multiple"), [({}, 4), ({"micro_batch": "auto"}, 4), ({"micro_batch": 6}, 4)])
def test_a_ramp_grows_by_what_fits_its_ends_whatever_the_micro_batch(
    plan_of: Any, flags: dict[str, object], multiple: int
) -> None:
    assert plan_of("demo", RAMP | flags).batch.multiple_of == multiple
    assert plan_of("demo", RAMP | flags | {"batch_ramp.multiple_of": 1}).batch.multiple_of == 1


def test_a_rate_may_grow_with_the_root_of_the_batch(plan_of: Any) -> None:
    plan = plan_of("demo", RAMP | {"batch_ramp.lr_scaling": "sqrt"})
    assert plan.lr(0) == plan.rate(0) / 2  # a quarter of the full batch
    assert plan.lr(500) == plan.rate(500)
    unscaled = plan_of("demo", RAMP)
    assert unscaled.lr is unscaled.rate


@pytest.mark.parametrize("size", ["125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b"])
def test_gpt3s_recipes_have_gpt3s_numbers(plan_of: Any, size: str) -> None:
    plan = plan_of(f"gpt3-{size}")
    peak = plan.config.optim.lr
    assert plan.laid_out == (375_000_000, 260_000_000_000)
    assert plan.batch.tokens_before(0) == 0
    assert plan.batch.size(0) * plan.seq_len == 32_768
    assert plan.lr(0) == 0
    assert plan.lr(plan.horizon) == plan.lr(plan.num_steps - 1) == pytest.approx(peak / 10, rel=1e-15)
    assert plan.lr(plan.warmup - 1) < peak
    assert plan.lr(plan.warmup) == pytest.approx(peak, rel=1e-6)
    behind = 300_000_000_000 - plan.batch.tokens_before(plan.num_steps)
    assert 0 <= behind < plan.batch.batch_size * 2048


def test_gpt3s_lengths_may_be_steps_shares_or_tokens(plan_of: Any) -> None:
    flags = {"schedule.dialect": "gpt3", "duration": 1000, "schedule.horizon": 800}
    tokens = 16 * 128
    assert plan_of("demo", flags | {"schedule.warmup": 80}).laid_out == (80 * tokens, 800 * tokens)
    assert plan_of("demo", flags | {"schedule.warmup": "10%"}).laid_out == (80 * tokens, 800 * tokens)
    assert plan_of("demo", flags | {"schedule.warmup": "1000 tokens"}).laid_out == (1000, 800 * tokens)
    assert plan_of("demo", flags | {"schedule.horizon": "50%"}).laid_out == (50 * tokens, 500 * tokens)
    assert plan_of("demo", flags | {"schedule.horizon": None}).laid_out == (100 * tokens, 1000 * tokens)


@pytest.mark.parametrize("dialect", ["nanogpt", "book", "llm.c-wsd", "nanochat", "gpt3", "torchtitan", "hf-linear"])
def test_a_dialect_reaches_its_minimum_where_asked_to(plan_of: Any, dialect: str) -> None:
    flags = {"schedule.dialect": dialect} | ({"schedule.initial_lr": "1%"} if dialect == "book" else {})
    as_it_is, reaching = (plan_of("demo", flags | {"schedule.reach_min": reach}) for reach in (False, True))
    end = {"nanochat": 0.05, "hf-linear": 0.0}.get(dialect, 0.1) * 3e-3
    assert reaching.lr(1199) == pytest.approx(end, abs=1e-15)
    assert as_it_is.lr(1199) > end
    assert [reaching.lr(step) for step in range(120)] == [as_it_is.lr(step) for step in range(120)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"schedule.dialect": "olmo-core", "schedule.reach_min": True}, "olmo-core reaches its minimum as it is"),
        (
            {"schedule.dialect": "hf-inverse-sqrt", "schedule.reach_min": True},
            "the dialect hf-inverse-sqrt is not laid out towards a minimum; leave it out",
        ),
        (
            {"schedule.dialect": "nanogpt", "schedule.decay_steps": "10%"},
            "schedule.decay_steps: 10% has no effect, because the dialect nanogpt fixes the shape",
        ),
        ({"schedule.dialect": "exponential"}, "the dialect exponential starts there; give one above 0"),
        ({"schedule.dialect": "exponential", "schedule.initial_lr": 0}, "give one above 0, such as 1e-5 or 1%"),
        ({"schedule.dialect": "flashcard-1"}, "the dialect flashcard-1 starts there; give one, such as"),
        (
            {"schedule.dialect": "torchtitan", "schedule.decay_steps": 1190},
            "schedule.decay_steps: 1190 steps comes to 1190 steps; allowed are 1 to 1080",
        ),
        (
            {"schedule.dialect": "nanogpt", "duration": 10, "schedule.warmup": 9, "schedule.reach_min": True},
            "schedule.warmup: 9 steps, which is 9 steps, is not shorter than the horizon",
        ),
    ],
)
def test_what_a_dialect_cannot_take_is_refused(plan_of: Any, flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of("demo", flags)
    assert message in str(caught.value)


def test_weight_decay_and_momentum_move_where_the_configuration_says_so(plan_of: Any) -> None:
    plan = plan_of("demo", {"schedule.final_weight_decay": 0.01, "schedule.initial_momentum": 0.8})
    decay, momentum = plan.schedules["weight_decay"], plan.schedules["momentum"]
    assert [decay(step) for step in (0, 1199, 5000)] == pytest.approx([0.1, 0.01, 0.01], rel=1e-12)
    assert [momentum(step) for step in (0, 60, 120, 1199)] == pytest.approx([0.8, 0.85, 0.9, 0.9])


def test_planning_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys; from trainwell.config.load import load; from trainwell.planning import describe, lints, resolve;"
        "plan = resolve.resolve(load('gpt2-124m')); describe.joints(plan); lints.findings(plan);"
        "sys.exit(', '.join({'torch', 'numpy', 'rich', 'matplotlib'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_skipped_moves_the_place_in_the_data_and_no_length(plan_of: Any) -> None:
    plain, skipping = (plan_of("demo", flags, tokens=TOKENS) for flags in ({}, {"data.skip": "100+50"}))
    assert skipping.num_steps == plain.num_steps
    assert [skipping.lr(step) for step in range(0, 1200, 50)] == [plain.lr(step) for step in range(0, 1200, 50)]
    assert skipping.epoch(99) == plain.epoch(99)
    assert skipping.epoch(100) == plain.epoch(150)


@pytest.mark.parametrize("skip", ["5+99999999999999999999", "99999999999999999999+1"])
def test_a_skip_past_every_text_is_refused(plan_of: Any, skip: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.skip: \d+\+\d+ leaves out more batches than any text has"):
        plan_of("demo", {"data.skip": skip}, tokens=TOKENS)


def test_a_skip_that_cannot_be_read_is_one_mistake(plan_of: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.skip: '5' is no list of skips"):
        plan_of("demo", {"data.skip": "5"})
