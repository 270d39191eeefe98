"""What the weights that a run starts from say about its configuration: shape, tokenizer, context.

Reads a run's config.yaml or a Hugging Face folder's config.json, never a tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainwell.config.hf import model_keys
from trainwell.config.syntax import read_config_file
from trainwell.config.tree import ModelConfig, RunConfig
from trainwell.errors import ConfigError

_SHAPE = {
    "arch": "arch",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "width": "width",
    "num_kv_heads": "kv_heads",
    "head_dim": "size_of_head",
    "mlp_width": "width_of_mlp",
    "qk_norm": "qk_norm",
}
"""Keys that decide which weights there are, and what each comes to."""
_OF_DATA = ("tokenizer", "seq_len", "template", "labels")
_BY_NAME = {"data.tokenizer": ("bytes", "gpt2"), "data.template": ("alpaca", "phi3")}
"""Tokenizers and templates that are the same everywhere; of others the run has a copy."""


def keys_of_weights(source: str, record: Path | None = None) -> dict[str, object]:
    """Dotted keys that `init_from: source` stands for; a file or a flag may say otherwise about each.

    `record` is the config.yaml of a run that started there: it says the same, whatever became of the source. Raises
    ConfigError when there is nothing to start from.
    """
    folder = _folder(source)
    if record is not None and not folder.is_dir():
        return _on_record(read_config_file(record))
    if (folder / "config.yaml").is_file():
        return _of_run(folder, read_config_file(folder / "config.yaml"))
    if (folder / "config.json").is_file():
        return model_keys(folder)
    found = "has neither config.yaml nor config.json" if folder.is_dir() else "is not there"
    raise ConfigError(
        f"init_from: {source}: the folder {found}; give a run (runs/demo), a step of one (runs/demo@best), or a "
        "Hugging Face folder with config.json and safetensors"
    )


def misfits(config: RunConfig, source: str, said: Mapping[str, object]) -> list[str]:
    """Give a line for every part of a configuration that the weights of `source`, which `said` so much, cannot be."""
    theirs = ModelConfig.model_validate(
        {key.removeprefix("model."): value for key, value in said.items() if key.startswith("model.")}
    )
    found = [
        f"model.{key}: {getattr(config.model, resolved)}, but the weights of {source} have "
        f"{getattr(theirs, resolved)}; leave it out, or start from weights of that shape"
        for key, resolved in _SHAPE.items()
        if getattr(config.model, key) is not None  # else it follows from another, which is named
        and getattr(config.model, resolved) != getattr(theirs, resolved)
    ]
    if config.model.arch != theirs.arch:
        return found[:1]
    learned = said.get("data.seq_len")
    if theirs.arch == "gpt2" and isinstance(learned, int) and config.data.seq_len > learned:
        found.append(
            f"data.seq_len: {config.data.seq_len}, but the weights of {source} have learned {learned} positions; "
            f"give at most {learned}"
        )
    if config.task != "classify" and "data.labels" in said:
        found.append(
            f"task: {config.task}, but {source} gives labels ({said['data.labels']}) and no next token; start from the "
            "weights it began with, or give task classify"
        )
    return found


def _folder(source: str) -> Path:
    """The folder of `runs/demo@1200`, or of a path that has an @ in its own name."""
    path, at, _ = source.rpartition("@")
    return Path(path if at and not Path(source).exists() else source)


def _of_run(folder: Path, said: dict[str, Any]) -> dict[str, object]:
    keys = _on_record(said)
    for key, everywhere in _BY_NAME.items():
        if key in keys and keys[key] not in everywhere:
            keys[key] = str(folder / f"{key.removeprefix('data.')}.json")
    return keys


def _on_record(said: dict[str, Any]) -> dict[str, object]:
    data: dict[str, Any] = said.get("data") or {}
    keys: dict[str, object] = {f"model.{key}": value for key, value in (said.get("model") or {}).items()}
    return keys | {f"data.{key}": data[key] for key in _OF_DATA if data.get(key) is not None}
