"""Mistakes between keys: each value is allowed by itself, but not beside the others.

Knows only the configuration. What needs the text or a count to be seen is found in `planning`, and what needs the
machine in `build`. Every problem is one line: the key, the value, what is allowed, what to do.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence

from trainwell.config.tree import DataConfig, ModelConfig, RunConfig, ScheduleConfig
from trainwell.config.values import Duration, parse_skips
from trainwell.errors import ConfigError

_MOST_TOKENS = 10**18
"""Of a ramp: a thousand times the largest corpus there is."""
_LOOKED_AT = 10_000
"""Numbers on either side that are tried as divisors: more than any model has heads."""
SINKS = ("tensorboard", "trackio", "wandb")
"""What `runs.sinks` can open."""
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def problems(config: RunConfig) -> list[str]:
    """Give a line for every mistake that can be seen from the configuration alone."""
    return [
        *_name_problems(config),
        *_batch_problems(config),
        *_ramp_problems(config),
        *_text_problems(config),
        *_model_problems(config),
        *_switch_problems(config),
        *_task_problems(config),
        *_skip_problems(config),
        *_length_problems(config),
        *_rate_problems(config),
        *_arithmetic_problems(config),
        *_sink_problems(config),
    ]


def _sink_problems(config: RunConfig) -> Iterable[str]:
    """A sink that there is none of."""
    for name in config.log.sink_names:
        if name not in SINKS:
            yield f"log.sinks: {name!r} is none; allowed are {', '.join(SINKS)}{did_you_mean(name, SINKS)}"


def training_problems(config: RunConfig) -> list[str]:
    """Give a line for what only a run needs and `show` can do without: a text."""
    if config.data.path is not None or (config.data.corpus is not None and config.task == "pretrain"):
        return []
    instead = {
        "pretrain": "give one with --data.path FILE_OR_FOLDER, or an embedded one with --data.corpus python-docs",
        "instruct": "give a .json or .jsonl file of instructions and answers with --data.path FILE",
        "classify": "give a .csv, .json or .jsonl file of texts and labels with --data.path FILE",
    }
    return [
        f"data.path: {config.name} has no data of its own, so it can be shown but not trained; {instead[config.task]}"
    ]


def error(lines: Sequence[str]) -> ConfigError:
    """Put all problems into one error; a single one stands alone."""
    if len(lines) == 1:
        return ConfigError(lines[0])
    return ConfigError("\n  ".join([f"{len(lines)} mistakes in the configuration:", *lines]))


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Give "; did you mean x?" for the nearest of `allowed`, to end a message with; nothing when none is near."""
    spelled = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(given.lower(), list(spelled), n=1)
    return f"; did you mean {spelled[near[0]]}?" if near else ""


def sequences(config: RunConfig) -> int:
    """Sequences per step; 0 when that cannot be said, which `problems` explains."""
    if (config.batch_size is None) == (config.batch_tokens is None):
        return 0
    return config.batch_size or (config.batch_tokens or 0) // config.data.seq_len


def ramp_multiple(config: RunConfig) -> int:
    """Sequences by which a ramp grows; where that is left open, the most that both ends of it are a multiple of."""
    start = (config.batch_ramp.from_tokens or 0) // config.data.seq_len
    return config.batch_ramp.multiple_of or math.gcd(start, sequences(config))


def warmup_is_too_long(config: RunConfig) -> bool:
    """Say whether the warmup leaves nothing of the horizon, where that needs no counting."""
    warmup, horizon = config.schedule.warmup, config.schedule.horizon or config.duration
    if warmup.unit == "%":
        return warmup.amount >= 100
    return warmup.unit == horizon.unit and 0 < horizon.amount <= warmup.amount


def _name_problems(config: RunConfig) -> list[str]:
    if _FOLDER_NAME.fullmatch(config.name):
        return []
    return [
        f"name: {config.name!r} cannot name the run's folder; "
        "allowed are letters, digits, dots, hyphens and underscores, the first not a dot or a hyphen"
    ]


def _batch_problems(config: RunConfig) -> list[str]:
    size, tokens, seq_len = config.batch_size, config.batch_tokens, config.data.seq_len
    if size is not None and tokens is not None:
        return [f"batch_size, batch_tokens: {size} and {tokens} exclude each other; give one and set the other to null"]
    if size is None and tokens is None:
        return ["batch_size, batch_tokens: both are null; give one of them"]
    if tokens is not None and tokens % seq_len:
        below = tokens // seq_len * seq_len
        near = f"{below} or {below + seq_len}" if below else f"{seq_len}"
        return [f"batch_tokens: {tokens} is not a multiple of data.seq_len {seq_len}; the nearest is {near}"]
    return []


def _ramp_problems(config: RunConfig) -> list[str]:
    """What keeps a ramp from climbing to the full batch in whole sequences."""
    ramp, seq_len, full = config.batch_ramp, config.data.seq_len, sequences(config)
    if ramp.from_tokens is None or not full:
        return []
    start, multiple, found = ramp.from_tokens // seq_len, ramp.multiple_of or 1, []
    if ramp.from_tokens % seq_len or not 0 < start < full:
        found.append(
            f"batch_ramp.from_tokens: {ramp.from_tokens} is no start of a climb to {full * seq_len} tokens a step; "
            f"give a multiple of data.seq_len {seq_len} below that, or null for no ramp"
        )
    elif full % multiple or start < multiple:
        fits = math.gcd(start, full)
        found.append(
            f"batch_ramp.multiple_of: {multiple} does not fit a climb from {start} to {full} sequences; it must divide "
            f"the second and be at most the first: give {fits}, or a divisor of it"
        )
    elif ramp.stages is not None and ramp.stages > full - start:
        found.append(
            f"batch_ramp.stages: {ramp.stages} is more than the {full - start} sequences by which the batch grows; "
            "give at most that, or null to climb with every step"
        )
    if ramp.over is None:
        found.append('batch_ramp.over: it is null; say how long the climb takes, such as "4B tokens"')
    elif ramp.over.unit not in {"tokens", "epochs"} or not 0 < ramp.over.amount < _MOST_TOKENS:
        found.append(
            f'batch_ramp.over: {ramp.over} is no length of a climb; give tokens, such as "4B tokens", or epochs'
        )
    return found


def _text_problems(config: RunConfig) -> list[str]:
    found = []
    if config.data.corpus is not None and config.data.path is not None:
        found.append(
            f"data.corpus, data.path: {config.data.corpus!r} and {config.data.path!r} exclude each other; "
            "give one and set the other to null"
        )
    if config.sample.every is not None and not config.sample.prompt:
        found.append("sample.prompt: '' gives the model nothing to continue; give some text, or sample.every null")
    return found


def _model_problems(config: RunConfig) -> list[str]:
    """Heads that do not divide what they must."""
    shape, found = config.model, []
    width, heads = shape.width, shape.num_heads
    if shape.head_dim is None and width % heads:
        found.append(
            f"model.num_heads: {heads} does not divide model.width {width}; nearest that do: "
            f"{_nearest_divisors(width, heads)}; or a width of {width // heads * heads + heads}"
        )
    if heads % shape.kv_heads:
        found.append(
            f"model.num_kv_heads: {shape.kv_heads} does not divide model.num_heads {heads}; "
            f"nearest that do: {_nearest_divisors(heads, shape.kv_heads)}; or null for as many"
        )
    if shape.arch == "llama" and not found and shape.size_of_head % 2:
        found.append(
            f"model.head_dim: a head of size {shape.size_of_head} cannot be rotated in pairs; give an even one"
            + ("" if shape.head_dim else ", or another model.width or model.num_heads")
        )
    return found


def _nearest_divisors(number: int, wanted: int) -> str:
    """The two divisors nearest to `wanted`; of a number that is far too large, the nearest of those close by."""
    wanted = min(wanted, number)
    close = range(max(2, wanted - _LOOKED_AT), min(number, wanted + _LOOKED_AT))
    divisors = sorted({1, number, *(each for each in close if number % each == 0)})
    near = sorted(sorted(divisors, key=lambda each: abs(each - wanted))[:2])
    return " and ".join(map(str, near))


_OF_LLAMA = (
    "num_kv_heads",
    "head_dim",
    "mlp_width",
    "rope_theta",
    "rope_scaling",
    "rope_factor",
    "rope_original_context",
)


def _switch_problems(config: RunConfig) -> list[str]:
    """Keys of one architecture that another has no use for, and a stretch of positions that says half of it."""
    shape, own = config.model, ModelConfig()
    if shape.arch != "llama":
        return [
            f"model.{key}: {getattr(shape, key)} has no effect, because model.arch {shape.arch} has no such part; "
            "leave it out, or give model.arch llama"
            for key in _OF_LLAMA
            if getattr(shape, key) != getattr(own, key)
        ]
    found = []
    if shape.rope_scaling is None and (shape.rope_factor != 1 or shape.rope_original_context is not None):
        found.append(
            f"model.rope_scaling: null, but model.rope_factor is {shape.rope_factor:g} and model.rope_original_context "
            f"{shape.rope_original_context or 'null'}; give linear or llama3, or leave both out"
        )
    if (shape.rope_scaling == "llama3") != (shape.rope_original_context is not None) and shape.rope_scaling:
        found.append(
            f"model.rope_original_context: {shape.rope_original_context or 'null'} does not go with model.rope_scaling "
            f"{shape.rope_scaling}; llama3 needs the context length before it (8192 for Llama 3.1), linear has none"
        )
    return found


_OF_TASKS: dict[str, tuple[str, ...]] = {
    "pretrain": (),
    "instruct": ("template", "train_on_prompt", "rows"),
    "classify": ("labels", "rows"),
}


def _task_problems(config: RunConfig) -> list[str]:
    """Keys of one task that another has no use for."""
    data, own, task = config.data, DataConfig(), config.task
    found = [
        f"data.{key}: {getattr(data, key)} has no effect, because task is {task}; "
        f"leave it out, or give task {' or '.join(name for name, keys in _OF_TASKS.items() if key in keys)}"
        for key in sorted({key for keys in _OF_TASKS.values() for key in keys} - set(_OF_TASKS[task]))
        if getattr(data, key) != getattr(own, key)
    ]
    if task == "classify" and data.rows == "packed":
        found.append("data.rows: packed is for task instruct; a text to classify has a row of its own: give buckets")
    if task == "classify" and config.eval.hellaswag is not None:
        found.append("eval.hellaswag: a classifier continues no text; leave it out, or give task pretrain or instruct")
    if task != "pretrain":
        found += [
            f"data.{key}: {getattr(data, key)} is for task pretrain, and task is {task}, whose data are examples; "
            f"leave it out, or set it to {instead}"
            for key, instead in (("stride", "null"), ("split", "auto"))
            if getattr(data, key) not in {getattr(own, key), "documents"}
        ]
    return found


def _skip_problems(config: RunConfig) -> list[str]:
    try:
        parse_skips(config.data.skip)
    except ValueError as error:
        return [f"data.skip: {config.data.skip!r} {error}"]
    return []


def _length_problems(config: RunConfig) -> list[str]:
    """Units that a key has no use for, lengths of nothing, and a warmup that leaves nothing."""
    lengths: dict[str, Duration | str | None] = {
        "schedule.horizon": config.schedule.horizon,
        "eval.every": config.eval.every,
        "sample.every": config.sample.every,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep_every": config.checkpoint.keep_every,
    }
    found = []
    if config.duration.unit == "%":
        found.append(f"duration: {config.duration} of what? give steps, tokens, epochs or minutes")
    if not config.duration.amount:
        found.append(f"duration: {config.duration} is no run; give at least 1 step")
    for key, length in lengths.items():
        if isinstance(length, Duration) and not length.amount:
            instead = "the run's duration" if key == "schedule.horizon" else "never in between"
            found.append(f"{key}: {length} is not a length; give at least 1 step, or null for {instead}")
    lengths |= {
        "schedule.warmup": config.schedule.warmup,
        "schedule.decay_steps": config.schedule.decay_steps,
        "optim.clip_from": config.optim.clip_from,
    }
    found += [
        f"{key}: {length} is a time, and only the duration may be one; give steps, tokens, epochs or %"
        for key, length in lengths.items()
        if isinstance(length, Duration) and length.unit == "minutes"
    ]
    if warmup_is_too_long(config):
        laid_out = config.schedule.horizon or config.duration
        source = "schedule.horizon" if config.schedule.horizon else "the duration, since schedule.horizon is null"
        found.append(
            f"schedule.warmup: {config.schedule.warmup} is not shorter than the horizon of {laid_out} ({source}); "
            "give a shorter warmup, or a longer schedule.horizon"
        )
    return found


def _rate_problems(config: RunConfig) -> list[str]:
    plan, peak = config.schedule, config.optim.lr
    found = []
    for key, share in {"min_lr": plan.min_lr, "initial_lr": plan.initial_lr}.items():
        if share is not None and share.of(peak) > peak:
            found.append(
                f"schedule.{key}: {share.plain()} is above the peak optim.lr {peak:g}; "
                "give at most that, or a share of it such as 10%"
            )
    if plan.initial_momentum is not None and config.optim.name == "muon":
        found.append(
            f"schedule.initial_momentum: {plan.initial_momentum:g} is for adamw, and optim.name is muon; "
            'leave it out, or give the schedule in Python: build(..., schedules={"momentum": ...})'
        )
    if plan.final_weight_decay is not None and not config.optim.weight_decay:
        found.append(
            f"schedule.final_weight_decay: {plan.final_weight_decay:g} has no effect, because optim.weight_decay is 0 "
            "and nothing decays; give optim.weight_decay above 0, or leave it out"
        )
    if plan.initial_momentum is not None and not plan.warmup.amount:
        found.append(
            f"schedule.initial_momentum: {plan.initial_momentum:g} has no effect, because it rises over a warmup, and "
            f"schedule.warmup is {plan.warmup}; give one, or leave it out"
        )
    return found + (_own_problems(plan) if plan.dialect is None else _fixed_by_dialect(plan))


def _own_problems(plan: ScheduleConfig) -> list[str]:
    found = []
    if plan.reach_min:
        found.append(
            "schedule.reach_min: true has no effect, because trainwell's own schedule reaches its minimum; "
            "leave it out, or name a schedule.dialect"
        )
    if plan.decay_steps is not None and plan.decay != "wsd":
        found.append(
            f"schedule.decay_steps: {plan.decay_steps} has no effect, because schedule.decay {plan.decay} begins at "
            "the end of the warmup; leave it out, or give schedule.decay wsd"
        )
    if plan.warmup_shape == "exponential" and (plan.initial_lr is None or not plan.initial_lr.amount):
        found.append(
            "schedule.warmup_shape: exponential multiplies from step to step; "
            "give a schedule.initial_lr above 0, such as 1%, or the shape linear"
        )
    if plan.initial_lr is not None and plan.warmup.unit == "steps" and plan.warmup.amount < 2:
        found.append(
            f"schedule.initial_lr: {plan.initial_lr.plain()} cannot rise to the peak in a warmup of "
            f"{plan.warmup.plain()}; give schedule.warmup 2 steps or more, or leave initial_lr out"
        )
    return found


def _fixed_by_dialect(plan: ScheduleConfig) -> list[str]:
    """A dialect is a whole formula: the keys that shape our own have nothing to say beside it."""
    own = ScheduleConfig()
    return [
        f"schedule.{key}: {getattr(plan, key)} has no effect, because the dialect {plan.dialect} fixes the shape; "
        f"leave it out, or set schedule.dialect to null"
        for key in ("warmup_shape", "decay")
        if getattr(plan, key) != getattr(own, key)
    ]


def _arithmetic_problems(config: RunConfig) -> list[str]:
    found = []
    if config.precision == "fp16" and config.device == "cpu":
        found.append("precision: fp16 is not for training on device cpu; give fp32 or bf16")
    if config.optim.z_loss and config.task == "classify":
        found.append(
            f"optim.z_loss: {config.optim.z_loss:g} is for language models, and task is classify; leave it out"
        )
    if config.kernels == "reference" and config.compile not in ("auto", False):
        found.append(
            f"compile: {str(config.compile).lower()} contradicts kernels reference, which is eager; set one to auto"
        )
    if config.compile == "max-autotune" and config.deterministic:
        found.append(
            "compile: max-autotune takes whichever kernel wins a race, so it is not deterministic; give compile true, "
            "or deterministic false"
        )
    return found
