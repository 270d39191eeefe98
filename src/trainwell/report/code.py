"""`show RECIPE --code`: the run as one plain PyTorch file, made from `reference.py` with its settings filled in.

Reads that file as text; torch is never imported. Configurations outside the subset are refused, naming the key.
"""

import re
from importlib import resources
from pathlib import Path

from trainwell.config.tree import RunConfig
from trainwell.data.corpora import file_name
from trainwell.errors import ConfigError
from trainwell.planning.resolve import Plan
from trainwell.planning.target import flat

_ALLOWED: dict[str, tuple[object, ...]] = {
    "task": ("pretrain",),
    "device": ("auto", "cpu"),
    "precision": ("auto", "fp32"),
    "compile": ("auto", False),
    "recompute": (False,),
    "init_from": (None,),
    "data.tokenizer": ("bytes", "chars"),
    "data.split": ("auto", "tail"),
    "data.skip": (None,),
    "model.arch": ("gpt2",),
    "model.dropout": (0.0,),
    "model.qk_norm": (False,),
    "model.init": ("gpt2",),
    "optim.name": ("adamw",),
    "model.norm_eps": (1e-5,),
    "optim.decay": ("matrices",),
    "optim.z_loss": (0.0,),
    "optim.train": ("all",),
    "guard.policy": ("log",),
    "schedule.dialect": (None, "nanogpt", "build-nanogpt"),
    "schedule.warmup_shape": ("linear",),
    "schedule.initial_lr": (None,),
    "schedule.decay": ("cosine",),
    "schedule.reach_min": (False,),
    "schedule.final_weight_decay": (None,),
    "schedule.initial_momentum": (None,),
    "batch_ramp.from_tokens": (None,),
}
"""What the plain file can do, for each key that it cannot do everything of."""


def refuse_unless_plain(config: RunConfig) -> None:
    """Raise ConfigError naming every key that is more than the plain file can do."""
    given = flat(config)
    lines = [
        f"{key}: {given[key]}; the plain file has {' or '.join(map(_shown, allowed))}"
        for key, allowed in _ALLOWED.items()
        if given[key] not in allowed
    ]
    if config.micro_batch == "auto":
        lines.append("micro_batch: auto; the plain file has a number, since it decides the last bits of a sum")
    if config.data.path is not None and Path(config.data.path).is_dir():
        lines.append(f"data.path: {config.data.path} is a folder; the plain file reads one text")
    if lines:
        raise ConfigError(
            f"{config.name} is more than the plain file can show:\n" + "\n".join(f"  {line}" for line in lines)
        )


def plain_file(plan: Plan) -> str:
    """The file that prints the losses of this plan under `kernels: reference`; ConfigError names what it cannot do."""
    refuse_unless_plain(plan.config)
    source = resources.files("trainwell").joinpath("reference.py").read_text("utf-8")
    settings = f"# --- settings ---\n{_settings(plan)}# --- end of settings ---\n"
    return re.sub(r"# --- settings ---\n.*# --- end of settings ---\n", lambda _: settings, source, flags=re.DOTALL)


def _settings(plan: Plan) -> str:
    config, data, model, optim = plan.config, plan.config.data, plan.config.model, plan.config.optim
    size = plan.batch.size(0)
    rows: list[tuple[str, list[object]]] = [
        ("NAME", [config.name]),
        ("CORPUS, TOKENIZER, VAL_FRACTION", [_text(config), data.tokenizer, data.val_fraction]),
        ("SEED, NUM_STEPS, BATCH, MICRO_BATCH", [config.seed, plan.num_steps, size, _micro_batch(config, size)]),
        ("SEQ_LEN, STRIDE, SHUFFLED", [plan.seq_len, data.stride or plan.seq_len, data.order == "shuffled"]),
        (
            "LAYERS, HEADS, WIDTH, QKV_BIAS, TIE_HEAD, PAD_VOCAB_TO",
            [model.num_layers, model.num_heads, model.width, model.has_qkv_bias, model.tie_head, model.pad_vocab_to],
        ),
        (
            "PEAK, MIN_LR, WARMUP, HORIZON, DIALECT",
            [optim.lr, config.schedule.min_lr.of(optim.lr), plan.warmup, plan.horizon, config.schedule.dialect],
        ),
        (
            "BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM, CLIP_FROM",
            [optim.betas, optim.eps, optim.weight_decay, optim.max_grad_norm, plan.clip_from],
        ),
    ]
    return "".join(f"{names} = {', '.join(_literal(value) for value in values)}\n" for names, values in rows)


def _micro_batch(config: RunConfig, size: int) -> int:
    assert config.micro_batch != "auto", "refuse_unless_plain asked for a number"
    return min(config.micro_batch, size)


def _text(config: RunConfig) -> str:
    if config.data.path is not None:
        return config.data.path
    file = file_name(config.data.corpus or "")
    return config.data.corpus or "" if file is None else f"$TRAINWELL_DATA_DIR/{file}"


def _literal(value: object) -> str:
    simple = isinstance(value, str) and value.isprintable() and not set('"\\') & set(value)
    return f'"{value}"' if simple else repr(value)


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
