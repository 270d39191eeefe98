"""Weights from and to the layout of a Hugging Face folder: names, transposed matrices, tied heads, many files.

Reads safetensors only, never a pickle. Knows the models and no configuration.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainwell.errors import ConfigError, DataError
from trainwell.model.gpt2 import GPT2

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt")
_PREFIX = re.compile(r"^(transformer|model)\.")
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""What older files hold beside weights: masks and angles that are computed."""
_TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""GPT-2's projections, which lie as (in, out) there and as (out, in) in torch's Linear."""
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_HEAD, _CLASSES, _POSITIONS = "lm_head.weight", "score.weight", "wpe.weight"
_MOST_NAMED = 8


def read_state(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights in `folder` under the names of `model`: GPT-2, Llama, Qwen2 or Qwen3, in one or many safetensors.

    Complete: `model.load_state_dict` takes it strictly, and copies; until then the tensors lie in the files where they
    can, in the type they have there. Of GPT-2's positions the first `model.seq_len` are taken. A head that is not there
    is the embedding. A classifier keeps its own head unless the folder is a classifier's of as many classes.

    Raises:
        ConfigError: for a folder without safetensors, or tensors that are missing, unknown or of another shape.
        DataError: for a file that cannot be read.
    """
    wanted = model.state_dict()
    found: dict[str, Tensor] = {}
    for name, tensor in _tensors(folder):
        plain = _PREFIX.sub("", name)
        if not _BUFFERS.fullmatch(plain):
            found[plain] = _as_ours(folder, plain, tensor, model)
    _place_head(found, wanted, model)
    _check(folder, found, wanted)
    return found


def _as_ours(folder: Path, name: str, tensor: Tensor, model: nn.Module) -> Tensor:
    if tensor.dtype not in _FLOATS:
        raise ConfigError(
            f"{folder}: {name} is {str(tensor.dtype).removeprefix('torch.')}; trainwell reads weights in float64, "
            "float32, float16 and bfloat16, not quantized ones"
        )
    if not isinstance(model, GPT2) or tensor.dim() != 2:
        return tensor
    if _TRANSPOSED.fullmatch(name):
        return tensor.t()
    return tensor[: model.seq_len] if name == _POSITIONS else tensor


def _place_head(found: dict[str, Tensor], wanted: dict[str, Tensor], model: nn.Module) -> None:
    """Bring the head of a folder, which may be tied, apart, or a classifier's, to what the model has."""
    classes = found.pop(_CLASSES, None)
    embedding = _embedding(model)
    if _classifies(model):
        fits = classes is not None and classes.shape == wanted[_HEAD].shape
        found[_HEAD] = classes if classes is not None and fits else wanted[_HEAD]
    elif embedding in found and (_is_tied(wanted, embedding) or (_HEAD not in found and classes is None)):
        found[_HEAD] = found[embedding]


def _embedding(model: nn.Module) -> str:
    return "wte.weight" if isinstance(model, GPT2) else "embed_tokens.weight"


def _classifies(model: nn.Module) -> bool:
    return getattr(model, "num_labels", None) is not None


def _is_tied(state: Mapping[str, Tensor], embedding: str) -> bool:
    return _HEAD in state and state[_HEAD].data_ptr() == state[embedding].data_ptr()


def _check(folder: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise ConfigError naming what is missing, unknown or misshapen."""
    wrong = [
        *_named("missing", sorted(wanted.keys() - found.keys())),
        *_named("not known to this model", sorted(found.keys() - wanted.keys())),
        *_named(
            "of another shape",
            [
                f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
                for name, tensor in wanted.items()
                if name in found and found[name].shape != tensor.shape
            ],
        ),
    ]
    if wrong:
        raise ConfigError(
            f"init_from: the weights in {folder} do not fit this model; leave model.* and data.seq_len to what the "
            "folder says, or give others that fit.\n  " + "\n  ".join(wrong)
        )


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return [f"{what}: {', '.join(names[:_MOST_NAMED])}{more}"]


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a folder with the name it has there, one at a time."""
    for path, expected in _files(folder):
        try:
            yield from _tensors_of(path, folder / _INDEX, expected)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}; copy it again from where it came from") from error


def _tensors_of(path: Path, index: Path, expected: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        missing = sorted(set(expected) - set(names))
        if missing:
            raise DataError(
                f"{index} says that {path.name} holds {missing[0]}, which it does not; copy the folder again"
            )
        for name in names:
            yield name, file.get_tensor(name)


def _files(folder: Path) -> list[tuple[Path, Sequence[str]]]:
    """The files of weights, each with the names that an index says it holds."""
    if (folder / _INDEX).is_file():
        return _indexed(folder)
    if (folder / WEIGHTS).is_file():
        return [(folder / WEIGHTS, [])]
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if pickles:
        raise ConfigError(
            f"{folder} holds its weights as pickles only ({pickles[0]}), and trainwell reads none: a pickle runs what "
            "code it holds. If you trust it, convert it once with transformers: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained('NEW_FOLDER')"
        )
    raise ConfigError(f"{folder} holds no weights; there must be {WEIGHTS}, or {_INDEX} and the files it names")


def _indexed(folder: Path) -> list[tuple[Path, Sequence[str]]]:
    path = folder / _INDEX
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        files: dict[str, list[str]] = {}
        for name, file in places:
            files.setdefault(str(file), []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as an index of weights ({error!r}); copy it again") from error
    for file in files:
        if file in {"", ".", ".."} or {"/", "\\"} & set(file):
            raise DataError(f"{path} names {file!r}, which is no file of its own folder; only those are read")
        if not (folder / file).is_file():
            raise DataError(f"{path} names {file}, which is not there; copy the whole folder")
    return [(folder / file, names) for file, names in files.items()]


@torch.no_grad()
def hf_state(model: nn.Module, vocab_size: int, *, fill_biases: bool = False) -> dict[str, Tensor]:
    """The weights of a GPT-2 or Llama under Hugging Face's names, on the CPU, each in memory of its own.

    Only the first `vocab_size` rows of embedding and head are taken; a tied head is left out; a classifier's head is
    `score`. `fill_biases` adds the zeros of the biases that GPT-2 has there and this model has not.
    """
    prefix = "transformer." if isinstance(model, GPT2) else "model."
    state = {}
    for name, tensor in plain_state(model, vocab_size).items():
        if name == _HEAD:
            state[_CLASSES if _classifies(model) else _HEAD] = tensor
        elif isinstance(model, GPT2) and _TRANSPOSED.fullmatch(name):
            state[prefix + name] = tensor.t().contiguous()
            if fill_biases and name.endswith("c_attn.weight"):
                state.setdefault(prefix + name.replace("weight", "bias"), tensor.new_zeros(len(tensor)))
        else:
            state[prefix + name] = tensor
    return state


def plain_state(model: nn.Module, vocab_size: int) -> dict[str, Tensor]:
    """The weights of a GPT-2 or Llama under our names, on the CPU, without padded rows and without a tied head."""
    state, embedding = model.state_dict(), _embedding(model)
    if _is_tied(state, embedding):
        del state[_HEAD]
    padded = {embedding} if _classifies(model) else {embedding, _HEAD}
    return {
        name: (tensor[:vocab_size] if name in padded else tensor).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
