"""The model of a configuration: made, drawn or loaded from where it starts, and the part of it that learns.

Knows configuration and weights, no data and no run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Generator, Tensor, device, nn

from trainwell.checkpoint.store import CheckpointStore
from trainwell.config.load import load_recorded
from trainwell.config.tree import ModelConfig, RunConfig
from trainwell.data.classify import parse_labels
from trainwell.errors import ConfigError
from trainwell.model.gpt2 import GPT2, init_gpt2, init_torch
from trainwell.model.hf import read_state
from trainwell.model.llama import Llama, Rope, init_llama_gpt2, init_llama_torch
from trainwell.planning.target import find_step
from trainwell.runs.rundir import RunDir, is_run, parse_target

OwnModel = GPT2 | Llama
_HEAD = "lm_head.weight"
_LONGEST_REASON = 200
_POSITIONS = "wpe.weight"


def make_model(config: RunConfig, vocab_size: int, num_labels: int | None, where: device) -> OwnModel:
    """The configured model with its initial weights, drawn on the CPU whatever the device."""
    shape, generator = config.model, Generator().manual_seed(config.seed)
    make = _gpt2 if shape.arch == "gpt2" else _llama
    model = make(shape, vocab_size, config.data.seq_len, num_labels)
    _INITIAL_WEIGHTS[shape.arch, shape.init](model, generator)
    return model.to(where)


def _gpt2(shape: ModelConfig, vocab_size: int, seq_len: int, num_labels: int | None) -> OwnModel:
    return GPT2(
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        width=shape.width,
        dropout=shape.dropout,
        tie_head=shape.tie_head,
        qkv_bias=shape.has_qkv_bias,
        norm_eps=shape.norm_eps,
        num_labels=num_labels,
    )


def _llama(shape: ModelConfig, vocab_size: int, seq_len: int, num_labels: int | None) -> OwnModel:
    return Llama(
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        width=shape.width,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.size_of_head,
        mlp_width=shape.width_of_mlp,
        norm_eps=shape.norm_eps,
        rope=Rope(shape.rope_theta, shape.rope_scaling, shape.rope_factor, shape.rope_original_context),
        qk_norm=shape.qk_norm,
        qkv_bias=shape.has_qkv_bias,
        tie_head=shape.tie_head,
        dropout=shape.dropout,
        num_labels=num_labels,
    )


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
    if not is_run(Path(name)):
        _load(model, read_state(Path(source), model), source)
        return
    run = RunDir(Path(name))
    state, _ = CheckpointStore(run.checkpoints).load(find_step(run, "last" if step is None else step))
    theirs = load_recorded(run.config_yaml).data.labels
    if theirs is not None and not labels:
        raise ConfigError(
            f"init_from: {source} gives labels ({theirs}) and no next token; start from the run it began with, or "
            "train it further with task classify"
        )
    new_head = bool(labels) and (theirs is None or parse_labels(theirs) != tuple(labels))
    _load(model, _fitted(state["trainer"]["model"], model.state_dict(), new_head=new_head), source)


def _fitted(state: dict[str, Tensor], own: dict[str, Tensor], *, new_head: bool) -> dict[str, Tensor]:
    """The weights of a run with positions past the context left out, and the head of another task."""
    state = dict(state)
    if _POSITIONS in state and _POSITIONS in own:
        state[_POSITIONS] = state[_POSITIONS][: own[_POSITIONS].shape[0]]
    if new_head and _HEAD in state and _HEAD in own:
        state[_HEAD] = own[_HEAD]
    return state


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"init_from: the weights of {source} do not fit this model; give both the same model keys, tokenizer and "
            f"data.seq_len. {str(error).splitlines()[-1].strip()[:_LONGEST_REASON]}"
        ) from error


def freeze(model: OwnModel) -> None:
    """Let only the last block, the last norm and the head learn, as the book's chapter 6 does."""
    model.requires_grad_(False)
    for part in (model.blocks[-1], model.final_norm, model.lm_head):
        part.requires_grad_(True)
