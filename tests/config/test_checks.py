"""Mistakes between keys, each provoked."""

from pathlib import Path

import pytest

from trainwell.config import checks
from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError

BASE = """\
duration: 1200
batch_size: 16
micro_batch: 16
data: {seq_len: 128}
model: {num_heads: 4, width: 128}
optim: {lr: 3.0e-3}
schedule: {warmup: 10%, min_lr: 10%}
"""
"""The numbers that the messages below contradict, laid over the recipe, whose own tuning is not at issue."""

LLAMA: dict[str, object] = {"model.arch": "llama"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model.head_dim": 16}, "model.head_dim: 16 has no effect, because model.arch gpt2 has no such part"),
        ({"model.rope_theta": 5e5}, "model.rope_theta: 500000.0 has no effect"),
        (LLAMA | {"model.num_kv_heads": 3}, "model.num_kv_heads: 3 does not divide model.num_heads 4"),
        (
            LLAMA | {"model.head_dim": 7},
            "model.head_dim: a head of size 7 cannot be rotated in pairs; give an even one",
        ),
        (
            LLAMA | {"model.width": 36},
            "a head of size 9 cannot be rotated in pairs; give an even one, or another model.width",
        ),
        (LLAMA | {"model.rope_factor": 2}, "model.rope_scaling: null, but model.rope_factor is 2"),
        (LLAMA | {"model.rope_scaling": "llama3"}, "model.rope_original_context: null does not go with"),
        (
            LLAMA | {"model.rope_scaling": "linear", "model.rope_original_context": 99},
            "model.rope_original_context: 99 does not go with model.rope_scaling linear",
        ),
        (
            {"data.template": "phi3"},
            "data.template: phi3 has no effect, because task is pretrain; leave it out, or give task instruct",
        ),
        (
            {"data.rows": "packed"},
            "data.rows: packed has no effect, because task is pretrain; leave it out, or give task ",
        ),
        ({"data.labels": "a,b", "task": "instruct"}, "data.labels: a,b has no effect, because task is instruct"),
        ({"data.rows": "packed", "task": "classify"}, "data.rows: packed is for task instruct"),
        ({"eval.hellaswag": "x.jsonl", "task": "classify"}, "eval.hellaswag: a classifier continues no text"),
        ({"data.stride": 64, "task": "instruct"}, "data.stride: 64 is for task pretrain, and task is instruct"),
        ({"data.split": "tail", "task": "classify"}, "data.split: tail is for task pretrain"),
        ({"model.num_heads": 3}, "model.num_heads: 3 does not divide model.width 128; nearest that do: 2 and 4"),
        ({"model.width": 10**15, "model.num_heads": 3}, "nearest that do: 2 and 4"),
        ({"model.width": 128, "model.num_heads": 10**15}, "nearest that do: 64 and 128"),
        (
            {"batch_tokens": 1000},
            "batch_tokens: 1000 is not a multiple of data.seq_len 128; the nearest is 896 or 1024",
        ),
        ({"batch_tokens": 100}, "the nearest is 128"),
        ({"batch_size": None}, "batch_size, batch_tokens: both are null; give one of them"),
        ({"duration": 0}, "duration: 0 steps is no run; give at least 1 step"),
        ({"duration": "10%"}, "duration: 10% of what? give steps, tokens, epochs or minutes"),
        ({"eval.every": 0}, "eval.every: 0 steps is not a length; give at least 1 step, or null for never in between"),
        ({"schedule.horizon": 0}, "or null for the run's duration"),
        ({"sample.every": "5 minutes"}, "sample.every: 5 minutes is a time, and only the duration may be one"),
        ({"schedule.warmup": "5 minutes"}, "schedule.warmup: 5 minutes is a time"),
        ({"optim.clip_from": "5 minutes"}, "optim.clip_from: 5 minutes is a time"),
        ({"schedule.warmup": 1200}, "schedule.warmup: 1200 steps is not shorter than the horizon of 1200 steps"),
        ({"schedule.warmup": "100%"}, "schedule.warmup: 100% is not shorter than the horizon"),
        ({"schedule.warmup": 50, "schedule.horizon": 40}, "than the horizon of 40 steps (schedule.horizon)"),
        ({"schedule.min_lr": "200%"}, "schedule.min_lr: 200% is above the peak optim.lr 0.003"),
        ({"schedule.initial_lr": 1.0}, "schedule.initial_lr: 1.0 is above the peak optim.lr 0.003"),
        ({"schedule.warmup_shape": "exponential"}, "give a schedule.initial_lr above 0"),
        ({"schedule.initial_lr": "1%", "schedule.warmup": 1}, "schedule.initial_lr: 1% cannot rise to the peak"),
        ({"schedule.dialect": "nanogpt", "schedule.decay": "wsd"}, "schedule.decay: wsd has no effect"),
        (
            {"schedule.dialect": "nanogpt", "schedule.warmup_shape": "exponential"},
            "warmup_shape: exponential has no effect",
        ),
        (
            {"schedule.decay_steps": 20},
            "schedule.decay_steps: 20 steps has no effect, because schedule.decay cosine begins",
        ),
        (
            {"schedule.initial_momentum": 0.8, "schedule.warmup": 0},
            "schedule.initial_momentum: 0.8 has no effect, because it rises over a warmup, and schedule.warmup",
        ),
        (
            {"batch_ramp.from_tokens": 1024, "batch_ramp.over": "1M tokens", "batch_ramp.stages": 9},
            "batch_ramp.stages: 9 is more than the 8 sequences by which the batch grows; give at most that, or null",
        ),
        (
            {"batch_ramp.from_tokens": 1024, "batch_ramp.over": "1e24 tokens"},
            "is no length of a climb; give tokens, such as",
        ),
        (
            {"schedule.final_weight_decay": 0.1, "optim.weight_decay": 0},
            "schedule.final_weight_decay: 0.1 has no effect, because optim.weight_decay is 0 and nothing decays",
        ),
        ({"schedule.reach_min": True}, "schedule.reach_min: true has no effect, because trainwell's own schedule"),
        (
            {"schedule.initial_momentum": 0.8, "optim.name": "muon"},
            "schedule.initial_momentum: 0.8 is for adamw, and optim.name is muon",
        ),
        (
            {"batch_ramp.from_tokens": 100, "batch_ramp.over": "1M tokens"},
            "batch_ramp.from_tokens: 100 is no start of a climb to 2048 tokens a step; give a multiple of data.seq_len",
        ),
        (
            {"batch_ramp.from_tokens": 2048, "batch_ramp.over": "1M tokens"},
            "2048 is no start of a climb to 2048 tokens a step; give a multiple of data.seq_len 128 below that",
        ),
        (
            {"batch_ramp.from_tokens": 1024},
            'batch_ramp.over: it is null; say how long the climb takes, such as "4B tokens"',
        ),
        (
            {"batch_ramp.from_tokens": 1024, "batch_ramp.over": 500},
            "batch_ramp.over: 500 steps is no length of a climb; give tokens",
        ),
        (
            {"batch_ramp.from_tokens": 1024, "batch_ramp.over": "1M tokens", "batch_ramp.multiple_of": 3},
            "batch_ramp.multiple_of: 3 does not fit a climb from 8 to 16 sequences; it must divide the second and "
            "be at most the first: give 8, or a divisor of it",
        ),
        (
            {"batch_ramp.from_tokens": 1024, "batch_ramp.over": "1M tokens", "batch_ramp.multiple_of": 16},
            "batch_ramp.multiple_of: 16 does not fit a climb from 8 to 16",
        ),
        ({"sample.prompt": ""}, "sample.prompt: '' gives the model nothing to continue"),
        ({"name": "a/b"}, "name: 'a/b' cannot name the run's folder"),
        ({"name": ".."}, "name: '..' cannot name the run's folder"),
        ({"precision": "fp16", "device": "cpu"}, "precision: fp16 is not for training on device cpu"),
        ({"kernels": "reference", "compile": True}, "compile: true contradicts kernels reference"),
    ],
)
def test_each_contradiction_is_found_and_named(tmp_path: Path, flags: dict[str, object], message: str) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    with pytest.raises(ConfigError) as caught:
        load("demo", file=file, flags=flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_contradictions_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"^3 mistakes in the configuration:\n  name.*\n  model.*\n  duration"):
        load("demo", flags={"name": "", "model.num_heads": 3, "model.width": 128, "duration": 0})


def test_a_tree_made_by_hand_is_checked_too() -> None:
    assert checks.problems(RunConfig(batch_tokens=1024)) == [
        "batch_size, batch_tokens: 32 and 1024 exclude each other; give one and set the other to null"
    ]


def test_a_recipe_without_text_is_a_mistake_only_when_training() -> None:
    config = load("gpt2-124m")
    assert checks.problems(config) == []
    [line] = checks.training_problems(config)
    assert "--data.path FILE_OR_FOLDER" in line
    assert checks.training_problems(load("gpt2-124m", flags={"data.path": "mine"})) == []
