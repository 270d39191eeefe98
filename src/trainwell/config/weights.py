"""What the weights that a run starts from say about its configuration: shape, tokenizer, context.

Reads a run's config.yaml or a Hugging Face folder's config.json, never a tensor.
"""

from pathlib import Path
from typing import Any

from trainwell.config.syntax import read_config_file
from trainwell.errors import ConfigError

_BY_NAME = ("bytes", "gpt2")
"""Tokenizers that are the same everywhere."""


def keys_of_weights(source: str) -> dict[str, object]:
    """Dotted keys that `init_from: source` stands for; a file or a flag may say otherwise about each.

    Raises ConfigError when there is nothing to start from.
    """
    folder = _folder(source)
    if (folder / "config.yaml").is_file():
        return _of_run(folder, read_config_file(folder / "config.yaml"))
    if (folder / "config.json").is_file():
        from trainwell.config.hf import model_keys

        return model_keys(folder)
    found = "holds neither" if folder.is_dir() else "is not there"
    raise ConfigError(
        f"init_from: {source}: the folder {found}; give a run (runs/demo), a step of one (runs/demo@best), or a "
        "Hugging Face folder with config.json and safetensors"
    )


def _folder(source: str) -> Path:
    """The folder of `runs/demo@1200`, or of a path that has an @ in its own name."""
    path, at, _ = source.rpartition("@")
    return Path(path if at and not Path(source).exists() else source)


def _of_run(folder: Path, said: dict[str, Any]) -> dict[str, object]:
    data: dict[str, Any] = said.get("data") or {}
    tokenizer = data.get("tokenizer", "bytes")
    keys = {f"model.{key}": value for key, value in (said.get("model") or {}).items()}
    keys["data.tokenizer"] = tokenizer if tokenizer in _BY_NAME else str(folder / "tokenizer.json")
    keys |= {"data.seq_len": data["seq_len"]} if "seq_len" in data else {}
    if data.get("labels") is not None:
        keys["data.labels"] = data["labels"]
    return keys
