"""Weights from Hugging Face folders and into their layout, against transformers; damaged folders are one message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from trainwell.config.hf import hf_config, model_keys
from trainwell.config.tree import DataConfig, ModelConfig, RunConfig
from trainwell.errors import ConfigError, DataError
from trainwell.generate import generate
from trainwell.model.decoder import Decoder
from trainwell.model.hf import hf_state, plain_state, read_state
from trainwell.models import make_model

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, CONTEXT = 31, 24
KINDS = ("gpt2", "llama", "qwen2", "qwen3")
IDS = torch.randint(VOCAB, (3, CONTEXT), generator=Generator().manual_seed(5))

Shape = dict[str, Any]


@st.composite
def shapes(draw: st.DrawFn, kind: str) -> Shape:
    """Fields of a small config.json of this kind."""
    heads, layers = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    width = heads * draw(st.sampled_from([4, 6]))
    common = {"model_type": kind, "vocab_size": VOCAB, "tie_word_embeddings": draw(st.booleans())}
    if kind == "gpt2":
        shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": CONTEXT}
        return common | shape | {"layer_norm_epsilon": draw(st.sampled_from([1e-5, 1e-2]))}
    rope: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"rope_type": "default"},
                {"rope_type": "linear", "factor": 3.0},
                {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 12,
                },
            ]
        )
    )
    return common | {
        "hidden_size": width,
        "intermediate_size": draw(st.sampled_from([10, 17])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([1, heads])),
        "head_dim": draw(st.sampled_from([width // heads, 8])),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
        "rope_parameters": rope | {"rope_theta": draw(st.sampled_from([100.0, 10_000.0]))},
    }


def theirs(shape: Shape, *, dtype: torch.dtype = torch.float64, classes: int = 0, seed: int = 0) -> Any:
    """A model of transformers with random weights, none of them as at the start of training."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    options: dict[str, Any] = {"num_labels": classes} if classes else {}
    config = AutoConfig.for_model(**shape, **options, pad_token_id=VOCAB - 1, bos_token_id=None, eos_token_id=None)
    kind: Any = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
    return model.to(dtype).eval()


def with_wide_norms(model: nn.Module) -> nn.Module:
    """Their RMSNorms compute in float32 even in a float64 model: torch's own, with their weights, in their place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, child.variance_epsilon)  # type: ignore[arg-type]
                norm.weight = child.weight  # type: ignore[assignment]
                setattr(parent, name, norm)
    return model


def ours(keys: dict[str, Any], *, dtype: torch.dtype = torch.float64, classes: int | None = None) -> Decoder:
    """The model that the keys of a folder make, with weights of its own."""
    shape = ModelConfig(**{key.removeprefix("model."): keys[key] for key in keys if key.startswith("model.")})
    config = RunConfig(model=shape, data=DataConfig(seq_len=keys.get("data.seq_len", CONTEXT)))
    made = make_model(config, shape.pad_vocab_to or VOCAB, classes, torch.device("cpu")).to(dtype)
    return made.eval()


def read(folder: Path, *, dtype: torch.dtype = torch.float64, classes: int | None = None) -> Decoder:
    """The model of a folder, with its weights."""
    model = ours(model_keys(folder), dtype=dtype, classes=classes)
    model.load_state_dict(read_state(folder, model))
    return model


@torch.no_grad()
def assert_same_logits(model: Decoder, their_model: nn.Module, tolerance: float) -> None:
    torch.testing.assert_close(model(IDS), their_model(IDS).logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), seed=st.integers(0, 99), shards=st.sampled_from(["1KB", "1GB"]))
@examples(max_examples=10)
def test_a_folder_that_transformers_saved_gives_its_logits(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject, seed: int, shards: str
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    their_model = theirs(data.draw(shapes(kind)), seed=seed)
    their_model.save_pretrained(folder, max_shard_size=shards)
    assert (folder / "model.safetensors.index.json").exists() == (shards == "1KB")
    assert_same_logits(read(folder), with_wide_norms(their_model), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), seed=st.integers(0, 99))
@examples(max_examples=10)
def test_a_folder_that_we_write_gives_our_logits(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject, seed: int
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    theirs(data.draw(shapes(kind)), seed=seed).save_pretrained(folder)
    model = read(folder)
    opened = reopened(write(folder / "ours", model, model_keys(folder)), torch.float64)
    assert_same_logits(model, with_wide_norms(opened), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(max_examples=5)
def test_in_float32_as_it_comes_logits_and_greedy_text_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    their_model = theirs(data.draw(shapes(kind)), dtype=torch.float32)
    their_model.save_pretrained(folder)
    model = read(folder, dtype=torch.float32)
    assert_same_logits(model, their_model, 1e-5)
    opened = reopened(write(folder / "ours", model, model_keys(folder)), torch.float32)
    assert_same_logits(model, opened, 1e-5)
    prompt = IDS[0, :4]
    drawn = opened.generate(prompt[None], max_new_tokens=12, do_sample=False, attention_mask=torch.ones(1, 4).long())
    assert drawn[0, 4:].tolist() == list(generate(model, prompt.tolist(), 12, temperature=0))


def write(folder: Path, model: Decoder, keys: dict[str, Any], **options: Any) -> Path:
    """Config and weights of `model`, as transformers reads them."""
    folder.mkdir()
    shape = ModelConfig(**{key.removeprefix("model."): keys[key] for key in keys if key.startswith("model.")})
    (folder / "config.json").write_text(json.dumps(hf_config(shape, vocab_size=VOCAB, seq_len=CONTEXT, **options)))
    save_file(hf_state(model, VOCAB), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def reopened(folder: Path, dtype: torch.dtype, kind: str = "AutoModelForCausalLM") -> Any:
    """What transformers makes of a folder; every weight must be there and known."""
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_is_the_same_classifier_there_and_back(tmp_path: Path, kind: str) -> None:
    theirs(small(kind), classes=3).save_pretrained(tmp_path / "first")
    keys = model_keys(tmp_path / "first")
    model = read(tmp_path / "first", classes=3)
    ends = {"labels": ("a", "b", "c"), "end_of_text": VOCAB - 1}
    folder = write(tmp_path / "second", model, keys, **ends)
    opened = reopened(folder, torch.float64, "AutoModelForSequenceClassification")
    with_wide_norms(opened)
    ids = IDS.clamp(max=VOCAB - 2)
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, model(ids)[:, -1], rtol=1e-10, atol=1e-10)
    assert opened.config.id2label == {0: "a", 1: "b", 2: "c"}
    back = read(folder, classes=3)
    assert torch.equal(back(ids), model(ids))
    assert model_keys(folder)["data.labels"] == "a,b,c"


def test_a_classifier_takes_the_backbone_and_keeps_its_own_head(folder: Callable[..., Path]) -> None:
    for source in (folder("gpt2"), folder("gpt2", classes=2)):
        model = ours(model_keys(source), classes=3)
        state = read_state(source, model)
        assert torch.equal(state["lm_head.weight"], model.lm_head.weight)
        model.load_state_dict(state)
        assert torch.equal(model.get_parameter("wte.weight"), load_file(source / "model.safetensors")[WTE])


def test_a_language_model_does_not_take_a_classifiers_head(folder: Callable[..., Path]) -> None:
    place = folder("llama", classes=3, tie_word_embeddings=False)
    with pytest.raises(ConfigError, match=r"missing: lm_head\.weight"):
        read(place)


WTE = "transformer.wte.weight"


def small(kind: str, **changes: Any) -> Shape:
    if kind == "gpt2":
        shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
    else:
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        shape = sizes | {"intermediate_size": 12, "head_dim": 4, "max_position_embeddings": CONTEXT}
    return {"model_type": kind, "vocab_size": VOCAB} | shape | changes


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder that transformers saved, in float64; a new one each time."""

    def make(kind: str, *, classes: int = 0, shards: str = "1GB", **changes: Any) -> Path:
        place = tmp_path / f"{kind}-{classes}-{len(list(tmp_path.iterdir()))}"
        theirs(small(kind, **changes), classes=classes).save_pretrained(place, max_shard_size=shards)
        return place

    return make


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a folder's one file."""
    path = folder / "model.safetensors"
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path, {"format": "pt"})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_prefixes_masks_angles_and_a_tied_head_written_twice_change_nothing(
    folder: Callable[..., Path], kind: str
) -> None:
    place = folder(kind, tie_word_embeddings=True)
    before = read(place)

    def as_older_files_have_it(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        bare = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        bare["lm_head.weight"] = torch.full((VOCAB, 8), 7.0)
        bare["h.0.attn.bias"], bare["h.1.attn.masked_bias"] = torch.ones(1, 1, 4, 4), torch.tensor(-1e4)
        bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        return bare

    rewrite(place, as_older_files_have_it)
    assert torch.equal(read(place)(IDS), before(IDS))


def test_a_model_with_a_head_apart_starts_it_as_the_embedding_of_a_tied_folder(folder: Callable[..., Path]) -> None:
    place = folder("llama", tie_word_embeddings=True)
    model = ours(model_keys(place) | {"model.tie_head": False})
    model.load_state_dict(read_state(place, model))
    assert torch.equal(model(IDS), read(place)(IDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_widened(folder: Callable[..., Path], dtype: torch.dtype) -> None:
    place = folder("llama")
    rewrite(place, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    model = read(place, dtype=torch.float32)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.equal(model.get_parameter("embed_tokens.weight"), model.get_parameter("embed_tokens.weight").to(dtype))


def test_a_shorter_context_takes_the_first_positions(folder: Callable[..., Path]) -> None:
    place = folder("gpt2")
    model = ours(model_keys(place) | {"data.seq_len": 9})
    model.load_state_dict(read_state(place, model))
    assert torch.allclose(model(IDS[:, :9]), read(place)(IDS[:, :9]), rtol=1e-12, atol=1e-12)


def test_padded_rows_are_cut(gpt2_of: Callable[..., Decoder]) -> None:
    for tied in (True, False):
        model = gpt2_of(tie_head=tied)
        state = hf_state(model, 17)
        assert len(state[WTE]) == 17
        assert {name: len(tensor) for name, tensor in state.items() if "lm_head" in name} == (
            {} if tied else {"lm_head.weight": 17}
        )


def test_biases_that_gpt2_has_and_the_model_has_not_are_zeros(gpt2_of: Callable[..., Decoder]) -> None:
    name = "transformer.h.1.attn.c_attn.bias"
    without = gpt2_of(qkv_bias=False)
    assert name not in hf_state(without, 19)
    assert torch.equal(hf_state(without, 19, fill_biases=True)[name], torch.zeros(48))
    with_them = gpt2_of()
    filled = hf_state(with_them, 19, fill_biases=True)
    assert torch.equal(filled[name], with_them.get_parameter("h.1.attn.c_attn.bias"))


def test_the_plain_state_is_the_models_own_without_the_head_that_is_tied(llama_of: Callable[..., Decoder]) -> None:
    model = llama_of(tie_head=True)
    state = plain_state(model, 19)
    assert state.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: {name: tensors[name] for name in tensors if "ln_f" not in name}, "missing: ln_f.bias, ln_f.w"),
        (lambda tensors: tensors | {"h.9.new": torch.ones(1)}, "not known to this model: h.9.new"),
        (lambda tensors: tensors | {WTE: torch.ones(30, 8)}, r"wte.weight [30, 8] instead of [31, 8]"),
        (
            lambda tensors: tensors | {"transformer.wpe.weight": torch.ones(5, 8)},
            "wpe.weight [5, 8] instead of [24, 8]",
        ),
        (lambda tensors: tensors | {"transformer.h.0.mlp.c_fc.weight": torch.ones(3)}, "c_fc.weight [3] instead of"),
        (lambda tensors: tensors | {WTE: torch.ones(31, 8, dtype=torch.int8)}, "wte.weight is int8; trainwell reads"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Callable[..., Path], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str
) -> None:
    place = folder("gpt2")
    rewrite(place, change)
    with pytest.raises(ConfigError) as refusal:
        read(place)
    assert str(place) in str(refusal.value)
    assert named in str(refusal.value)


def test_many_misfits_are_counted(folder: Callable[..., Path]) -> None:
    place = folder("gpt2")
    model = ours(model_keys(place) | {"model.num_layers": 4, "model.width": 12})
    with pytest.raises(ConfigError, match=r"missing: h\.2.*, and 16 more\n  of another shape: wte.*, and \d+ more"):
        read_state(place, model)


def test_a_folder_of_pickles_is_refused_with_advice(folder: Callable[..., Path]) -> None:
    place = folder("gpt2")
    keys = model_keys(place)
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickles only \(pytorch_model\.bin\).*save_pretrained") as refusal:
        read_state(place, ours(keys))
    assert refusal.value.exit_code == 2


def test_a_folder_without_weights_is_a_message(folder: Callable[..., Path]) -> None:
    place = folder("gpt2")
    model = ours(model_keys(place))
    (place / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no weights; there must be model\.safetensors"):
        read_state(place, model)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (2**60).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0{}x", b"\x03\0\0\0\0\0\0\0{a}"]
)
def test_a_damaged_file_is_bad_data(folder: Callable[..., Path], content: bytes) -> None:
    place = folder("gpt2")
    model = ours(model_keys(place))
    (place / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read: .*; copy it again") as refusal:
        read_state(place, model)
    assert refusal.value.exit_code == 65


def test_a_file_that_was_cut_short_is_bad_data(folder: Callable[..., Path]) -> None:
    place = folder("gpt2")
    model, path = ours(model_keys(place)), place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="cannot be read"):
        read_state(place, model)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "sub\\\\model.safetensors", ""])
def test_an_index_may_name_files_of_its_own_folder_only(indexed: Callable[..., str], name: str) -> None:
    assert "which is no file of its own folder" in indexed({"weight_map": {WTE: name}})


def test_an_index_that_lies_is_bad_data(indexed: Callable[..., str]) -> None:
    assert "names gone.safetensors, which is not there" in indexed({"weight_map": {WTE: "gone.safetensors"}})
    assert "says that model-00001-of" in indexed({}, extra=True)
    damaged: list[Any] = [{"weight_map": [1]}, {"weight_map": None}, [], {}]
    for content in damaged:
        assert "cannot be read as an index of weights" in indexed(content)


@pytest.fixture
def indexed(folder: Callable[..., Path]) -> Callable[..., str]:
    """Put an index into a folder of shards, and give the message with which it is refused."""
    place = folder("gpt2", shards="3KB")
    model, path = ours(model_keys(place)), place / "model.safetensors.index.json"
    index = json.loads(path.read_text())

    def refused(content: Any, *, extra: bool = False) -> str:
        if extra:
            content = {"weight_map": index["weight_map"] | {"more": min(index["weight_map"].values())}}
        path.write_text(json.dumps(content))
        with pytest.raises(DataError) as refusal:
            read_state(place, model)
        return str(refusal.value)

    return refused


def test_a_missing_shard_is_bad_data(folder: Callable[..., Path]) -> None:
    place = folder("gpt2", shards="3KB")
    model = ours(model_keys(place))
    sorted(place.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(DataError, match="which is not there; copy the whole folder"):
        read_state(place, model)
