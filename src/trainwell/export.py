"""A trained model as files for other tools: a Hugging Face folder, or its weights alone as safetensors.

A folder appears whole or not at all. Knows models, configuration and tokenizers; not transformers, and no run.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from trainwell.checkpoint.layout import sync_directory, write_synced
from trainwell.config.hf import hf_config
from trainwell.config.tree import RunConfig
from trainwell.data.hf_tokenizer import hf_tokenizer, normalizes_as_qwen2
from trainwell.data.templates import Template
from trainwell.data.tokenizer import FileTokenizer, Tokenizer
from trainwell.errors import ConfigError, StorageError
from trainwell.model.decoder import Decoder
from trainwell.model.hf import WEIGHTS, hf_state, plain_state

Format = Literal["hf", "safetensors"]


def export(
    model: nn.Module,
    config: RunConfig,
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    template: Template | None = None,
    labels: Sequence[str] = (),
    format: Format = "hf",
    fill_biases: bool = False,
) -> list[Path]:
    """Write a GPT-2 or Llama of ours into the new folder `out` and return its files, the weights first.

    Rows of the embedding past the tokenizer's ids are cut, and a tied head is not written twice.

    Args:
        model: the weights.
        config: the configuration that it was made of.
        tokenizer: what its ids mean; None where that is not known, and then there are no files of it.
        out: a folder that is not there or is empty.
        template: how messages become text, for a model that has learned one; written as its chat template.
        labels: of a classifier, the names of its classes in order.
        format: `hf` for what AutoModelForCausalLM (of a classifier AutoModelForSequenceClassification) and
            AutoTokenizer open; `safetensors` for the weights alone, under our names and in torch's layout.
        fill_biases: write zeros for the biases that GPT-2 has and this model has not.

    Raises:
        ConfigError: for a model without equivalent in that format, or a folder that holds something.
        StorageError: when it cannot be written.
    """
    if not isinstance(model, Decoder):
        raise ConfigError(
            f"{type(model).__name__} is a model of your own, and only trainwell's own are exported. Save it from your "
            "script: safetensors.torch.save_model(trainwell.open_run(...).model, 'model.safetensors')"
        )
    refuse_used(out)
    if fill_biases and (format != "hf" or config.model.arch != "gpt2" or config.model.has_qkv_bias):
        raise ConfigError(
            "--fill-biases has no effect: this model has these biases, or its format has none of them; leave it out"
        )
    vocab_size = model.vocab_size if tokenizer is None else tokenizer.vocab_size
    if format == "safetensors":
        return _write(out, plain_state(model, vocab_size), {})
    labels = labels or tuple(f"LABEL_{number}" for number in range(model.num_labels or 0))
    described = hf_config(
        config.model,
        vocab_size=vocab_size,
        seq_len=model.seq_len,
        end_of_text=None if tokenizer is None else tokenizer.end_of_text,
        end_of_answer=None if tokenizer is None or template is None else template.end_of_answer(tokenizer),
        labels=labels,
        fill_biases=fill_biases,
        dtype=str(model.lm_head.weight.dtype).removeprefix("torch."),
    )
    files = {"config.json": _as_json(described)}
    if not labels:
        files["generation_config.json"] = _as_json(_generation(described))
    if tokenizer is not None:
        files |= hf_tokenizer(tokenizer, seq_len=model.seq_len, **_chat(template))
    return _write(out, hf_state(model, vocab_size, fill_biases=fill_biases), files)


def notes(config: RunConfig, tokenizer: Tokenizer | None) -> list[str]:
    """What is worth knowing about the Hugging Face folder of such a model."""
    shape = config.model
    if shape.arch != "llama" or shape.qk_norm or not shape.has_qkv_bias or tokenizer is None:
        return []
    if isinstance(tokenizer, FileTokenizer) and normalizes_as_qwen2(tokenizer):
        return []
    return [
        "AutoTokenizer of transformers 5 splits the text of every Qwen2 folder as Qwen2 does, whatever tokenizer.json "
        "says; open this one with transformers.PreTrainedTokenizerFast.from_pretrained"
    ]


def refuse_used(out: Path) -> None:
    """Raise ConfigError when `out` is a file, or a folder that holds something."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file; give a folder that is not there yet")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} is not empty, and nothing in it is overwritten; give another folder")


def _chat(template: Template | None) -> dict[str, Any]:
    """How messages become text, with the special tokens that a tokenizer's own template was made for."""
    if template is None:
        return {}
    tokens = {name: value for name, value in template.state().items() if name.endswith("_token")}
    return {"chat_template": template.jinja(), "tokens": tokens}


def _generation(described: dict[str, Any]) -> dict[str, Any]:
    return {key: described[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _write(out: Path, weights: dict[str, Tensor], files: dict[str, bytes]) -> list[Path]:
    """Write the files beside the folder's place and put them there with one rename."""
    place = out.resolve()
    beside = place.with_name(f".{place.name}.tmp-{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        save_file(weights, beside / WEIGHTS, metadata={"format": "pt"})  # which transformers asks for
        (beside / WEIGHTS).chmod(beside.stat().st_mode & 0o666)  # safetensors lets the owner alone read it
        with (beside / WEIGHTS).open("rb+") as file:
            os.fsync(file.fileno())
        for name, content in files.items():
            write_synced(beside / name, content)
        sync_directory(beside)
        if place.is_dir():
            place.rmdir()
        beside.rename(place)
        sync_directory(place.parent)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out} could not be written: {error}; free space or give another --out") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [out / name for name in (WEIGHTS, *files)]
