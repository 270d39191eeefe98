"""Hugging Face's config.json and our model keys, each from the other; what one side has no word for is refused.

Knows names and numbers only: no tensor, and not transformers. Field names and defaults are those of its GPT2Config,
LlamaConfig, Qwen2Config and Qwen3Config.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainwell.config.tree import ModelConfig
from trainwell.errors import ConfigError

_FILE = "config.json"
_KINDS = ("gpt2", "llama", "qwen2", "qwen3")
_LONG_CONTEXT = 1024
"""From here on a model with rotary positions is trained on less than it was made for; the recipe says on how much."""
_GPT2_VOCABULARY = 50257
_LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of every published Llama; ours are fixed."""
_ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    "llama": ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
}


def model_keys(folder: Path) -> dict[str, object]:
    """Dotted keys that a Hugging Face folder stands for: the shape of the model, its tokenizer, a short context.

    Dropout and initial weights are choices of the training and not read. `data.seq_len` is GPT-2's n_positions; of a
    model with rotary positions only a context below 1024, so that nobody trains on 131072 tokens by surprise.

    Raises:
        ConfigError: naming the file and every field in it that has no equivalent here.
    """
    said = _Said(folder / _FILE)
    kind = said.fields.get("model_type")
    if kind not in _KINDS:
        raise ConfigError(
            f"{said.path}: model_type is {_shown(kind)}, which is not read; trainwell reads gpt2, llama (SmolLM and "
            "SmolLM2 too), qwen2 and qwen3. Any other model of transformers trains through trainwell.build(model=...)"
        )
    said.only("quantization_config", None, allowed="weights that are not quantized (null)")
    context = said.whole("n_positions" if kind == "gpt2" else "max_position_embeddings")
    vocab_size = said.whole("vocab_size")
    shape = _gpt2_shape(said) if kind == "gpt2" else _llama_shape(said, kind)
    said.done()
    try:
        model = ModelConfig(**shape, norm_eps=_norm_eps(said, kind), pad_vocab_to=vocab_size)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{said.path}: as model.{first['loc'][0]} it says {_shown(first['input'])}: {first['msg'].lower()}"
        ) from error
    keys = {f"model.{key}": value for key, value in model.model_dump(exclude={"dropout", "init"}).items()}
    if kind == "gpt2" or context < _LONG_CONTEXT:
        keys["data.seq_len"] = context
    return keys | _tokenizer_key(folder, kind, vocab_size) | _labels_key(said)


class _Said:
    """What a config.json says: fields with their types checked, and all that has no equivalent gathered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unread: list[str] = []
        try:
            self.fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; give a Hugging Face folder") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); copy it again from where the model came from") from error
        if not isinstance(self.fields, dict):
            raise ConfigError(f"{path} holds no object of fields; copy it again from where the model came from")

    def whole(self, name: str, default: int | None = None, within: dict[str, Any] | None = None) -> int:
        """A field that is a whole number from 1 on; `default` where it is absent or null."""
        value = self._get(name, default, within)
        if type(value) is not int or value < 1:
            raise self._mistaken(name, value, "a whole number from 1 on")
        return value

    def number(self, name: str, default: float, within: dict[str, Any] | None = None) -> float:
        """A field that is a number above 0, of the file or of an object in it."""
        value = self._get(name, default, within)
        if type(value) not in {int, float} or not (math.isfinite(value) and value > 0):
            raise self._mistaken(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A field that is true or false."""
        value = self._get(name, default)
        if type(value) is not bool:
            raise self._mistaken(name, value, "true or false")
        return value

    def only(self, name: str, *values: object, allowed: str = "") -> None:
        """Refuse any value of a field but `values`, the first of which is what its absence means."""
        value = self.fields.get(name, values[0])
        if value not in values:
            self.refuse(name, value, allowed or " or ".join(map(_shown, values)))

    def refuse(self, name: str, value: object, allowed: str) -> None:
        """Note a field that has no equivalent here."""
        self._unread.append(f"{name} is {_shown(value)}; trainwell reads {allowed}")

    def done(self) -> None:
        """Raise ConfigError if anything was refused."""
        if self._unread:
            raise ConfigError(f"{self.path} has no equivalent here: " + "\n  ".join(self._unread))

    def _get(self, name: str, default: object, within: dict[str, Any] | None = None) -> Any:
        value = (self.fields if within is None else within).get(name)
        if value is None and default is None:
            raise ConfigError(f"{self.path} does not say {name}; copy it again from where the model came from")
        return default if value is None else value

    def _mistaken(self, name: str, value: object, allowed: str) -> ConfigError:
        return ConfigError(f"{self.path}: {name} is {_shown(value)}; it must be {allowed}")


def _gpt2_shape(said: _Said) -> dict[str, Any]:
    width = said.whole("n_embd")
    said.only("n_inner", None, 4 * width, allowed=f"null or {4 * width}, four times n_embd")
    said.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    said.only("scale_attn_weights", True)
    said.only("scale_attn_by_inverse_layer_idx", False)
    said.only("add_cross_attention", False)
    return {
        "arch": "gpt2",
        "num_layers": said.whole("n_layer"),
        "num_heads": said.whole("n_head"),
        "width": width,
        "tie_head": said.flag("tie_word_embeddings", True),
        "qkv_bias": True,
    }


def _llama_shape(said: _Said, kind: str) -> dict[str, Any]:
    width, heads = said.whole("hidden_size"), said.whole("num_attention_heads")
    said.only("hidden_act", "silu")
    said.only("attention_bias", False, None)
    said.only("mlp_bias", False, None)
    said.only("use_sliding_window", False, None)
    said.only("partial_rotary_factor", 1.0, None)
    _refuse_windows(said)
    return {
        "arch": "llama",
        "num_layers": said.whole("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": said.whole("num_key_value_heads", heads),
        "head_dim": said.whole("head_dim", 128 if kind == "qwen3" else max(width // heads, 1)),
        "width": width,
        "mlp_width": said.whole("intermediate_size"),
        "qk_norm": kind == "qwen3",
        "tie_head": said.flag("tie_word_embeddings", False),
        "qkv_bias": kind == "qwen2",
        **_rope(said),
    }


def _refuse_windows(said: _Said) -> None:
    kinds = said.fields.get("layer_types")
    windowed = [kind for kind in kinds if kind != "full_attention"] if isinstance(kinds, list) else []
    if windowed:
        said.refuse("layer_types", windowed[0], '"full_attention" in every layer')


def _rope(said: _Said) -> dict[str, Any]:
    """Rotary positions, from `rope_parameters` of transformers 5 or `rope_theta` and `rope_scaling` of 4."""
    name = "rope_parameters" if said.fields.get("rope_parameters") else "rope_scaling"
    rope = said.fields.get(name) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        said.refuse(name, rope, "one object for all layers")
        return {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        said.refuse(f"{name}.partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    theta = said.number("rope_theta", said.number("rope_theta", 10_000.0), rope)
    return {"rope_theta": theta, **_stretch(said, name, rope)}


def _stretch(said: _Said, name: str, rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    if kind not in {"linear", "llama3"}:
        said.refuse(f"{name}.rope_type", kind, "default, linear and llama3")
        return {}
    stretch: dict[str, Any] = {"rope_scaling": kind, "rope_factor": said.number("factor", 1.0, rope)}
    if stretch["rope_factor"] < 1:
        said.refuse(f"{name}.factor", stretch["rope_factor"], "factors from 1 on")
    if kind == "llama3":
        for factor, ours in _LLAMA3_FACTORS.items():
            if said.number(factor, ours, rope) != ours:
                said.refuse(f"{name}.{factor}", rope[factor], f"{ours:g}, as in every published Llama")
        longest = said.whole("max_position_embeddings")
        stretch["rope_original_context"] = said.whole("original_max_position_embeddings", longest, rope)
    return stretch


def _norm_eps(said: _Said, kind: str) -> float:
    return said.number("layer_norm_epsilon", 1e-5) if kind == "gpt2" else said.number("rms_norm_eps", 1e-6)


def _tokenizer_key(folder: Path, kind: str, vocab_size: int) -> dict[str, object]:
    """The folder's own, even where it has none: the ids of another would mean something else, and nobody would see."""
    if kind == "gpt2" and vocab_size == _GPT2_VOCABULARY and not (folder / "tokenizer.json").is_file():
        return {"data.tokenizer": "gpt2"}
    return {"data.tokenizer": str(folder / "tokenizer.json")}


def _labels_key(said: _Said) -> dict[str, object]:
    """The classes of a classifier's folder, in their order, where they have names that `data.labels` can hold."""
    architectures, names = said.fields.get("architectures"), said.fields.get("id2label")
    if not (isinstance(architectures, list) and isinstance(names, dict)):
        return {}
    labels = [str(names.get(str(number), "")) for number in range(len(names))]
    named = all(label and "," not in label and not label.startswith("LABEL_") for label in labels)
    classifies = any(str(name).endswith("ForSequenceClassification") for name in architectures)
    return {"data.labels": ",".join(labels)} if classifies and named else {}


def hf_config(
    model: ModelConfig,
    *,
    vocab_size: int,
    seq_len: int,
    end_of_text: int | None = None,
    end_of_answer: int | None = None,
    labels: Sequence[str] = (),
    fill_biases: bool = False,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The fields of a config.json under which transformers builds this model: GPT-2, Llama, or Qwen2 and Qwen3.

    Args:
        model: its shape.
        vocab_size: rows of the embedding as written.
        seq_len: the context length it was trained on.
        end_of_text: the id that begins and ends texts and fills up rows; None where there is none.
        end_of_answer: the id that ends what it writes, where that is another.
        labels: of a classifier, its classes in order.
        fill_biases: whether the weights hold zeros where GPT-2 has biases and this model has none.
        dtype: torch's name of the weights' type.

    Raises:
        ConfigError: for a model that transformers has no equivalent for, saying what can be done.
    """
    kind = _kind_of(model)
    _refuse_unknown(model, kind, fill_biases)
    fields = _gpt2_fields(model, seq_len) if kind == "gpt2" else _llama_fields(model, kind, seq_len)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)
    if end_of_answer is not None:
        ends["eos_token_id"] = end_of_answer
    classes: dict[str, Any] = {}
    if labels:
        classes = {
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
    return {
        "architectures": [_ARCHITECTURES[kind][bool(labels)]],
        "model_type": kind,
        "vocab_size": vocab_size,
        "tie_word_embeddings": model.tie_head,
        "dtype": dtype,
        **fields,
        **ends,
        **classes,
    }


def _kind_of(model: ModelConfig) -> str:
    if model.arch == "gpt2":
        return "gpt2"
    if model.qk_norm:
        return "qwen3"
    return "qwen2" if model.has_qkv_bias else "llama"


def _refuse_unknown(model: ModelConfig, kind: str, fill_biases: bool) -> None:
    as_they_are = "--format safetensors writes the weights as they are"
    if kind == "gpt2" and model.qk_norm:
        raise ConfigError(
            "model.qk_norm: this model norms queries and keys, and the GPT-2 of transformers has no such norms; "
            f"{as_they_are}. A model of model.arch llama may have them: it is exported as Qwen3"
        )
    if kind == "gpt2" and not model.has_qkv_bias and not fill_biases:
        head = "" if model.tie_head else ", and the head stays apart from the embedding (tie_word_embeddings false)"
        raise ConfigError(
            "model.qkv_bias: this model has none, and the GPT-2 of transformers always has them. --fill-biases writes "
            f"zeros in their place, which change no logit{head}; {as_they_are}"
        )
    if kind == "qwen3" and model.has_qkv_bias:
        raise ConfigError(
            "model.qkv_bias: transformers has no model with both these biases and model.qk_norm (Qwen3 would add one "
            f"to the output projection); {as_they_are}"
        )
    if kind == "llama" and model.width % model.num_heads:
        raise ConfigError(
            f"model.width: {model.width} is not a multiple of model.num_heads {model.num_heads}, which the Llama of "
            f"transformers needs whatever model.head_dim is; {as_they_are}"
        )


def _gpt2_fields(model: ModelConfig, seq_len: int) -> dict[str, Any]:
    return {
        "n_embd": model.width,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_positions": seq_len,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm_eps,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
    }


def _llama_fields(model: ModelConfig, kind: str, seq_len: int) -> dict[str, Any]:
    fields = {
        "hidden_size": model.width,
        "intermediate_size": model.width_of_mlp,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.size_of_head,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "rms_norm_eps": model.norm_eps,
        "attention_dropout": model.dropout,
        "rope_theta": model.rope_theta,  # with rope_scaling the spelling of transformers 4, which 5 reads too
        "rope_scaling": _rope_scaling(model),
    }
    if kind != "qwen2":
        fields["attention_bias"] = False
    return fields


def _rope_scaling(model: ModelConfig) -> dict[str, Any] | None:
    if model.rope_scaling is None:
        return None
    scaling: dict[str, Any] = {"rope_type": model.rope_scaling, "factor": model.rope_factor}
    if model.rope_scaling == "llama3":
        scaling |= {**_LLAMA3_FACTORS, "original_max_position_embeddings": model.rope_original_context}
    return scaling


def _shown(value: object) -> str:
    """A value as the file has it, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
