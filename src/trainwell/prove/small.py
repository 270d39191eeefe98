"""The same configuration with keys changed, and smaller: what `--small` changes, and the words for it. Never torch."""

from collections.abc import Mapping
from typing import Any

from trainwell.config.tree import RunConfig
from trainwell.planning.resolve import Plan
from trainwell.planning.target import flat

LAYERS, WIDTH, HEADS, SEQUENCES, SEQ_LEN = 2, 64, 2, 4, 64


def scaled_down(config: RunConfig, plan: Plan, *, own_model: bool, own_data: bool) -> dict[str, Any]:
    """The keys to change: no more than 2 layers, width 64, 2 heads, 4 sequences of 64 tokens; lengths in steps stay.

    A model or data given in Python is as it is: `own_model` and `own_data` say that they are the configuration's.
    """
    changes: dict[str, Any] = {}
    if own_model:
        changes |= _model(config)
    sequences = min(plan.batch.batch_size, SEQUENCES)
    if sequences < plan.batch.batch_size and own_data:
        changes |= {"batch_size": sequences, "batch_tokens": None}
    if own_data and config.task == "pretrain" and config.data.seq_len > SEQ_LEN:
        stride = config.data.stride
        changes |= {"data.seq_len": SEQ_LEN, "data.stride": None if stride is None else min(stride, SEQ_LEN)}
        changes |= {"batch_size": sequences, "batch_tokens": None}  # tokens would be more sequences now
    if changes and config.batch_ramp.from_tokens is not None:
        changes["batch_ramp.from_tokens"] = None
    return changes | (_lengths(config, plan) if changes else {})


def _model(config: RunConfig) -> dict[str, Any]:
    shape, changes = config.model, dict[str, Any]()
    if shape.num_layers > LAYERS:
        changes["model.num_layers"] = LAYERS
    if shape.width > WIDTH:
        heads = min(shape.num_heads, HEADS)
        changes |= {"model.width": WIDTH, "model.num_heads": heads, "model.mlp_width": None}
        changes |= {"model.head_dim": None} if shape.head_dim else {}
        changes |= {"model.num_kv_heads": min(shape.num_kv_heads, heads)} if shape.num_kv_heads else {}
    if changes and config.init_from is not None:
        changes["init_from"] = None
    return {key: value for key, value in changes.items() if flat(config)[key] != value}


def _lengths(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Every length of the schedule as the full size has it, in steps: tokens would be more of them now."""
    staying = {"schedule.decay_steps": plan.decay_steps} if config.schedule.decay_steps is not None else {}
    lengths = {"schedule.horizon": plan.horizon, "schedule.warmup": plan.warmup, "optim.clip_from": plan.clip_from}
    return lengths | staying


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with dotted keys set, validated again."""
    tree = config.model_dump()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = value
    return RunConfig.model_validate(tree)


def in_words(config: RunConfig, changes: Mapping[str, Any]) -> str:
    """What was scaled, from what to what: "model.width 768 -> 64, batch_size 32 -> 4"."""
    before, quiet = flat(config), ("schedule.", "optim.clip_from")
    said = [
        f"{key} {_word(before[key])} -> {_word(value)}"
        for key, value in changes.items()
        if not key.startswith(quiet) and before[key] != value
    ]
    return ", ".join(said)


def _word(value: object) -> str:
    return "null" if value is None else str(value)
