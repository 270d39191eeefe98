"""The model of a configuration: made, drawn or loaded from where it starts, and the part of it that learns.

Knows configuration and weights, no data and no run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, device, nn

from trainwell.checkpoint.store import CheckpointStore
from trainwell.config.hf import model_keys
from trainwell.config.load import load_recorded
from trainwell.config.tree import ModelConfig, RunConfig
from trainwell.data.classify import parse_labels
from trainwell.errors import ConfigError
from trainwell.model.decoder import Decoder
from trainwell.model.gpt2 import GPT2, init_gpt2, init_torch
from trainwell.model.hf import read_state
from trainwell.model.llama import Llama, Rope, init_llama_gpt2, init_llama_torch
from trainwell.planning.target import find_step
from trainwell.runs.rundir import RunDir, Step, is_run, parse_target

_HEAD = "lm_head.weight"
_LONGEST_REASON = 200
_POSITIONS = "wpe.weight"


def make_model(config: RunConfig, vocab_size: int, num_labels: int | None, where: device) -> Decoder:
    """The configured model with its initial weights, drawn on the CPU whatever the device."""
    shape, generator = config.model, Generator().manual_seed(config.seed)
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "seq_len": config.data.seq_len,
        "num_layers": shape.num_layers,
        "num_heads": shape.num_heads,
        "width": shape.width,
        "dropout": shape.dropout,
        "tie_head": shape.tie_head,
        "qkv_bias": shape.has_qkv_bias,
        "qk_norm": shape.qk_norm,
        "norm_eps": shape.norm_eps,
        "num_labels": num_labels,
    }
    model = GPT2(**shared) if shape.arch == "gpt2" else Llama(**shared, **_of_llama(shape))
    _INITIAL_WEIGHTS[shape.arch, shape.init](model, generator)
    model.recompute = config.recompute
    return model.to(where)


def _of_llama(shape: ModelConfig) -> dict[str, Any]:
    return {
        "num_kv_heads": shape.kv_heads,
        "head_dim": shape.size_of_head,
        "mlp_width": shape.width_of_mlp,
        "rope": Rope(shape.rope_theta, shape.rope_scaling, shape.rope_factor, shape.rope_original_context),
    }


_INITIAL_WEIGHTS: dict[tuple[str, str], Callable[..., None]] = {
    ("gpt2", "gpt2"): init_gpt2,
    ("gpt2", "torch"): init_torch,
    ("llama", "gpt2"): init_llama_gpt2,
    ("llama", "torch"): init_llama_torch,
}


def load_weights(model: nn.Module, source: str, *, labels: Sequence[str] = ()) -> None:
    """Start from the weights of a run, a step of one (`runs/demo@best`) or a Hugging Face folder.

    A classifier of `labels` keeps its own head unless that of the weights is for the same labels. A context longer than
    the model's loses its last positions. Raises ConfigError where the weights do not fit, naming what does not.
    """
    name, step = parse_target(source)
    if is_run(Path(name)):
        theirs = load_recorded(RunDir(Path(name)).config_yaml).data.labels
        state = _of_run(RunDir(Path(name)), "last" if step is None else step, model)
    else:
        found = model_keys(Path(source)).get("data.labels")
        theirs = None if found is None else str(found)
        state = read_state(Path(source), model)
    own = model.state_dict()
    if labels and _HEAD in own and (theirs is None or parse_labels(theirs) != tuple(labels)):
        state[_HEAD] = own[_HEAD]
    _load(model, state, source)


def _of_run(run: RunDir, step: Step, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a run, with positions past the model's context left out."""
    saved, _ = CheckpointStore(run.checkpoints).load(find_step(run, step))
    state, own = dict(saved["trainer"]["model"]), model.state_dict()
    if _POSITIONS in state and _POSITIONS in own:
        state[_POSITIONS] = state[_POSITIONS][: own[_POSITIONS].shape[0]]
    return state


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"init_from: the weights of {source} do not fit this model; give both the same model keys, tokenizer and "
            f"data.seq_len. {str(error).splitlines()[-1].strip()[:_LONGEST_REASON]}"
        ) from error


def freeze(model: Decoder) -> None:
    """Let only the last block, the last norm and the head learn, as the book's chapter 6 does."""
    model.requires_grad_(False)
    for part in (model.blocks[-1], model.final_norm, model.lm_head):
        part.requires_grad_(True)
