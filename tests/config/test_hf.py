"""config.json of a Hugging Face folder as our keys, and back; what has no equivalent is one message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.hf import hf_config, model_keys
from trainwell.config.load import load
from trainwell.config.tree import ModelConfig
from trainwell.errors import ConfigError

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "vocab_size": 50257,
}
"""As GPT-2 itself was published: without n_inner and tie_word_embeddings."""
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
"""As SmolLM2-135M was published."""
QWEN2: dict[str, Any] = LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768}
QWEN3: dict[str, Any] = LLAMA | {"model_type": "qwen3", "head_dim": 128, "layer_types": ["full_attention"] * 30}
BEFORE = {"original_max_position_embeddings": 8192}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **BEFORE}

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make a folder whose config.json has these fields, changed; `absent` takes a field away."""

    def make(fields: dict[str, Any], **changes: Any) -> Path:
        content = fields | changes
        said = {key: value for key, value in content.items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(said))
        return tmp_path

    return make


def model_of(keys: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**{key.removeprefix("model."): keys[key] for key in keys if key.startswith("model.")})


def test_gpt2_as_it_was_published(folder: Folder) -> None:
    keys = model_keys(folder(GPT2))
    model = model_of(keys)
    assert (model.arch, model.num_layers, model.num_heads, model.width) == ("gpt2", 12, 12, 768)
    assert (model.norm_eps, model.tie_head, model.has_qkv_bias, model.pad_vocab_to) == (1e-5, True, True, 50257)
    assert keys["data.seq_len"] == 1024
    assert keys["data.tokenizer"] == "gpt2"


def test_smollm_is_a_llama(folder: Folder) -> None:
    model = model_of(model_keys(folder(LLAMA)))
    assert (model.arch, model.num_layers, model.num_heads, model.kv_heads) == ("llama", 30, 9, 3)
    assert (model.size_of_head, model.width, model.width_of_mlp) == (64, 576, 1536)
    assert (model.norm_eps, model.rope_theta, model.rope_scaling) == (1e-5, 100_000.0, None)
    assert (model.tie_head, model.has_qkv_bias, model.qk_norm) == (True, False, False)


def test_qwen2_has_biases_and_qwen3_norms_its_heads(folder: Folder) -> None:
    qwen2 = model_of(model_keys(folder(QWEN2)))
    assert (qwen2.has_qkv_bias, qwen2.qk_norm, qwen2.size_of_head) == (True, False, 64)
    qwen3 = model_of(model_keys(folder(QWEN3)))
    assert (qwen3.has_qkv_bias, qwen3.qk_norm, qwen3.size_of_head) == (False, True, 128)


def test_what_a_file_leaves_out_is_what_transformers_takes_for_it(folder: Folder) -> None:
    left_out = dict.fromkeys(["num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"], "absent")
    model = model_of(model_keys(folder(LLAMA, **left_out)))
    assert (model.kv_heads, model.norm_eps, model.rope_theta, model.tie_head) == (9, 1e-6, 10_000.0, False)
    assert model_of(model_keys(folder(QWEN3, head_dim="absent"))).size_of_head == 128


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": "absent", "rope_scaling": "absent", "rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 32, **BEFORE}},
    ],
)
def test_rotary_positions_are_read_in_both_spellings(folder: Folder, spelling: dict[str, Any]) -> None:
    model = model_of(model_keys(folder(LLAMA, **spelling)))
    assert (model.rope_theta, model.rope_scaling, model.rope_factor) == (500_000.0, "llama3", 32.0)
    assert model.rope_original_context == 8192


def test_an_old_linear_stretch_is_read(folder: Folder) -> None:
    model = model_of(model_keys(folder(LLAMA, rope_scaling={"type": "linear", "factor": 2.0})))
    assert (model.rope_scaling, model.rope_factor, model.rope_original_context) == ("linear", 2.0, None)


def test_a_long_context_is_not_forced_on_anybody(folder: Folder) -> None:
    assert "data.seq_len" not in model_keys(folder(LLAMA))
    assert model_keys(folder(LLAMA, max_position_embeddings=512))["data.seq_len"] == 512


def test_the_tokenizer_is_the_folders_own_even_where_it_has_none_but_for_gpt2s(folder: Folder) -> None:
    assert model_keys(folder(LLAMA))["data.tokenizer"] == str(folder(LLAMA) / "tokenizer.json")
    assert model_keys(folder(GPT2, vocab_size=50304))["data.tokenizer"] == str(folder(GPT2) / "tokenizer.json")
    assert model_keys(folder(GPT2))["data.tokenizer"] == "gpt2"
    (folder(GPT2) / "tokenizer.json").write_text("{}")
    assert model_keys(folder(GPT2))["data.tokenizer"] == str(folder(GPT2) / "tokenizer.json")


def test_a_classifier_says_its_classes_in_order(folder: Folder) -> None:
    architecture = {"architectures": ["GPT2ForSequenceClassification"]}
    assert model_keys(folder(GPT2, **architecture, id2label={"1": "spam", "0": "ham"}))["data.labels"] == "ham,spam"
    numbered = {"0": "LABEL_0", "1": "LABEL_1"}
    for unnamed in ({"0": "ham, or not", "1": "spam"}, {"0": "ham", "2": "spam"}, numbered):
        assert "data.labels" not in model_keys(folder(GPT2, **architecture, id2label=unnamed))
    assert "data.labels" not in model_keys(folder(GPT2, id2label={"0": "ham", "1": "spam"}))


def test_a_folder_stands_between_recipe_and_flags(folder: Folder) -> None:
    config = load("demo", flags={"init_from": str(folder(LLAMA)), "data.seq_len": 64, "model.dropout": 0.1})
    assert (config.model.arch, config.model.num_layers, config.data.seq_len) == ("llama", 30, 64)
    assert config.model.dropout == 0.1


@pytest.mark.parametrize(
    ("fields", "changes", "named"),
    [
        (GPT2, {"model_type": "mistral"}, 'model_type is "mistral", which is not read; trainwell reads gpt2, llama'),
        (GPT2, {"model_type": "absent"}, "model_type is null, which is not read"),
        (GPT2, {"n_inner": 1000}, "n_inner is 1000; trainwell reads null or 3072, four times n_embd"),
        (GPT2, {"activation_function": "relu"}, 'activation_function is "relu"; trainwell reads "gelu_new"'),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights is false; trainwell reads true"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention is true"),
        (LLAMA, {"attention_bias": True}, "attention_bias is true; trainwell reads false"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias is true; trainwell reads false"),
        (LLAMA, {"hidden_act": "gelu"}, 'hidden_act is "gelu"; trainwell reads "silu"'),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 'rope_scaling.rope_type is "yarn"; trainwell'),
        (
            LLAMA,
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            'rope_type is "dynamic"; trainwell reads default',
        ),
        (
            LLAMA,
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 2.0}},
            "low_freq_factor is 2.0; trainwell reads 1, as in",
        ),
        (LLAMA, {"rope_scaling": LLAMA3 | {"high_freq_factor": 8}}, "high_freq_factor is 8; trainwell reads 4, as in"),
        (
            LLAMA,
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            "factor is 0.5; trainwell reads factors from 1 on",
        ),
        (LLAMA, {"rope_parameters": {"full_attention": {}}}, "rope_parameters is {"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; trainwell reads 1"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; trainwell reads 1.0"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window is true; trainwell reads false"),
        (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, 'layer_types is "sliding_attention"'),
        (LLAMA, {"quantization_config": {"bits": 4}}, 'quantization_config is {"bits": 4}; trainwell reads weights'),
        (LLAMA, {"hidden_size": "absent"}, "does not say hidden_size; copy it again"),
        (LLAMA, {"hidden_size": "576"}, 'hidden_size is "576"; it must be a whole number from 1 on'),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers is true; it must be a whole number from 1 on"),
        (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN; it must be a number above 0"),
        (LLAMA, {"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        (LLAMA, {"rope_theta": 0.5}, "as model.rope_theta it says 0.5"),
        (LLAMA, {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": "8k"}}, 'embeddings is "8k"; it must'),
    ],
)
def test_what_has_no_equivalent_is_one_message(
    folder: Folder, fields: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    place = folder(fields, **changes)
    with pytest.raises(ConfigError) as refusal:
        model_keys(place)
    assert str(refusal.value).startswith(str(place / "config.json"))
    assert named in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_everything_without_equivalent_is_named_at_once(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"(?s)hidden_act is .*attention_bias is .*mlp_bias is "):
        model_keys(folder(LLAMA, hidden_act="relu", attention_bias=True, mlp_bias=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "holds no object"), (None, "cannot be read")],
)
def test_a_damaged_file_is_a_message(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        model_keys(tmp_path)


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    """Models that have an equivalent."""
    eps = draw(st.sampled_from([1e-5, 1e-6]))
    plain: dict[str, Any] = {"num_layers": draw(st.integers(1, 40)), "norm_eps": eps, "tie_head": draw(st.booleans())}
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    plain |= {"num_heads": heads, "width": heads * draw(st.sampled_from([8, 64])), "pad_vocab_to": 300}
    if draw(st.booleans()):
        return ModelConfig(arch="gpt2", **plain)
    qk_norm = draw(st.booleans())
    scaling: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"rope_scaling": "linear", "rope_factor": 2.5},
                {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_context": 32},
            ]
        )
    )
    return ModelConfig(
        arch="llama",
        **plain,
        num_kv_heads=draw(st.sampled_from([None, 1, heads])),
        head_dim=draw(st.sampled_from([None, 2, 128])),
        mlp_width=draw(st.sampled_from([None, 100])),
        qk_norm=qk_norm,
        qkv_bias=draw(st.sampled_from([None, False] if qk_norm else [None, False, True])),
        rope_theta=draw(st.sampled_from([1e4, 5e5])),
        **scaling,
    )


@given(shape=shapes(), seq_len=st.integers(8, 1023))
def test_keys_to_config_to_keys_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, shape: ModelConfig, seq_len: int
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    described = hf_config(shape, vocab_size=300, seq_len=seq_len, end_of_text=256)
    (folder / "config.json").write_text(json.dumps(described))
    keys = model_keys(folder)
    assert keys["data.seq_len"] == seq_len
    back = model_of(keys)
    resolved = ("kv_heads", "size_of_head", "width_of_mlp", "has_qkv_bias")
    assert [getattr(back, name) for name in resolved] == [getattr(shape, name) for name in resolved]
    as_given = {"num_kv_heads", "head_dim", "mlp_width", "qkv_bias"}
    assert back.model_dump(exclude=as_given) == shape.model_dump(exclude=as_given)
    assert hf_config(back, vocab_size=300, seq_len=seq_len, end_of_text=256) == described


def test_a_config_names_ends_and_classes() -> None:
    described = hf_config(ModelConfig(), vocab_size=257, seq_len=64, end_of_text=256, labels=("ham", "spam"))
    assert described["architectures"] == ["GPT2ForSequenceClassification"]
    assert described["id2label"] == {"0": "ham", "1": "spam"}
    assert described["label2id"] == {"ham": 0, "spam": 1}
    assert [described[f"{end}_token_id"] for end in ("bos", "eos", "pad")] == [256] * 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"qkv_bias": False, "tie_head": False}, r"model\.qkv_bias: .* --fill-biases writes zeros .* head stays apart"),
        ({"qkv_bias": False}, r"model\.qkv_bias: this model has none.*--format safetensors"),
        ({"qk_norm": True}, r"model\.qk_norm: .* no such norms; --format safetensors .* model\.arch llama .* as Qwen3"),
        ({"qk_norm": True, "qkv_bias": False}, r"model\.qk_norm: "),
        ({"arch": "llama", "qk_norm": True, "qkv_bias": True}, r"both these biases and model\.qk_norm"),
        (
            {"arch": "llama", "num_heads": 3, "head_dim": 8},
            r"model\.width: 128 is not a multiple of model\.num_heads 3",
        ),
    ],
)
def test_a_model_without_equivalent_is_refused_with_advice(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_config(ModelConfig(**shape), vocab_size=257, seq_len=64)


def test_biases_that_are_filled_are_biases() -> None:
    described = hf_config(ModelConfig(qkv_bias=False, tie_head=False), vocab_size=257, seq_len=64, fill_biases=True)
    assert described["model_type"] == "gpt2"
    assert described["tie_word_embeddings"] is False
