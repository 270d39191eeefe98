"""Exported folders: transformers opens them, and gives our ids, our logits and our greedy text."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from tokenizers import decoders, models, pre_tokenizers
from torch import nn

from trainwell.build import open_run
from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.data.chat_template import ChatTemplate
from trainwell.data.templates import Template, named_template
from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer, FileTokenizer, Gpt2Tokenizer, Tokenizer
from trainwell.errors import ConfigError, StorageError
from trainwell.export import export, notes
from trainwell.fit import fit
from trainwell.generate import generate
from trainwell.model.decoder import Decoder
from trainwell.models import load_weights, make_model
from trainwell.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")

Keys = dict[str, Any]
SMALL: Keys = {"model.num_layers": 2, "model.num_heads": 2, "model.width": 16, "data.seq_len": 32}
LLAMA: Keys = {"model.arch": "llama", "model.num_kv_heads": 1}


def made(keys: Keys, *, vocab_size: int = 257, num_labels: int | None = None) -> tuple[Decoder, RunConfig]:
    """A small model with weights that are not those of the start, and its configuration."""
    config = load("demo", flags=SMALL | keys)
    model = make_model(config, vocab_size, num_labels, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    return model.eval(), config


def opened(folder: Path, kind: str = "AutoModelForCausalLM") -> Any:
    """What transformers makes of a folder; every weight must be there and known."""
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def their_text(folder: Path, prompt: str, tokens: int) -> str:
    """What transformers continues `prompt` with, always the likeliest token."""
    tokenizer, model = tokenizer_of(folder), opened(folder)
    ids = tokenizer(prompt, return_tensors="pt")
    drawn = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(drawn[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def our_text(model: nn.Module, tokenizer: Tokenizer, prompt: str, tokens: int) -> str:
    """What we continue `prompt` with; the end of text ends it and is not said."""
    ids = tokenizer.encode(prompt).tolist()
    end = tokenizer.end_of_text
    drawn = generate(model, ids, tokens, temperature=0, stop=end, vocab_size=tokenizer.vocab_size)
    return tokenizer.decode([token for token in drawn if token != end])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["demo", "llama-tiny"])
def test_a_trained_run_continues_a_text_there_as_it_does_here(
    build_tiny: Callable[..., Run], own_folders: Path, recipe: str
) -> None:
    fit(build_tiny(recipe, duration=150, data={"seq_len": 48}, model={"width": 64}, optim={"lr": 1e-2}))
    run, tokenizer = open_run(f"runs/{recipe}"), BytesTokenizer()
    export(run.model, run.config, run.tokenizer, own_folders / "out")
    for prompt in ("the tide", "every boat kn", "t"):
        text = our_text(run.model, tokenizer, prompt, 30)
        assert text == their_text(own_folders / "out", prompt, 30)
        assert len(set(text)) > 2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", [{}, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("name", ["bytes", "chars"])
def test_every_tokenizer_and_head_goes_with_every_architecture(
    tmp_path: Path, arch: Keys, name: str, tied: bool
) -> None:
    tokenizer = BytesTokenizer() if name == "bytes" else CharsTokenizer(" aehtx", ends_texts=False)
    assert_same_there(tmp_path / "out", tokenizer, arch | {"model.tie_head": tied})


@pytest.mark.slow
def test_the_tokenizer_of_gpt2_goes_with_gpt2(tmp_path: Path) -> None:
    assert_same_there(tmp_path / "out", Gpt2Tokenizer(), {})


def assert_same_there(out: Path, tokenizer: Tokenizer, keys: Keys) -> None:
    """Export a model with a padded vocabulary, and compare greedy text and logits."""
    model, config = made(keys, vocab_size=tokenizer.vocab_size + 7)
    export(model, config, tokenizer, out)
    assert our_text(model, tokenizer, "that he", 20) == their_text(out, "that he", 20)
    their_model = opened(out)
    assert their_model.config.vocab_size == tokenizer.vocab_size
    ids = torch.tensor([tokenizer.encode("that he that").tolist()])
    with torch.no_grad():
        logits = model(ids)[..., : tokenizer.vocab_size]
        torch.testing.assert_close(their_model(ids).logits, logits, rtol=1e-5, atol=1e-5)


def test_a_folder_is_a_few_files_and_the_tied_head_is_written_once(tmp_path: Path) -> None:
    model, config = made({})
    files = export(model, config, BytesTokenizer(), tmp_path / "a" / "out")
    names = ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert [file.name for file in files] == names
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "a", tmp_path / "a" / "out", *files])
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - it is no mapping
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    assert json.loads(files[2].read_text()) == ends
    assert json.loads(files[1].read_text()).items() >= ends.items()


def test_training_goes_on_from_an_exported_folder(tmp_path: Path) -> None:
    for name, keys in (("gpt2", {}), ("llama", LLAMA | {"model.rope_theta": 500.0})):
        model, config = made(keys)
        export(model, config, BytesTokenizer(), tmp_path / name)
        again = load("demo", flags={"init_from": str(tmp_path / name)})
        assert again.data.tokenizer == str(tmp_path / name / "tokenizer.json")
        started = make_model(again, 257, None, torch.device("cpu"))
        load_weights(started, str(tmp_path / name))
        ids = torch.arange(30)[None]
        assert torch.equal(started.eval()(ids), model(ids))


def test_the_books_model_has_no_equivalent_unless_its_biases_are_filled(tmp_path: Path) -> None:
    model, config = made({"model.qkv_bias": False, "model.tie_head": False, "model.init": "torch"})
    with pytest.raises(ConfigError, match=r"model\.qkv_bias: this model has none.*--fill-biases"):
        export(model, config, BytesTokenizer(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export(model, config, BytesTokenizer(), tmp_path / "out", fill_biases=True)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(tmp_path / "out")(ids).logits, model(ids), rtol=1e-5, atol=1e-5)


def test_norms_of_queries_and_keys_have_an_equivalent_in_a_llama_alone(tmp_path: Path) -> None:
    keys: Keys = {"model.qk_norm": True}
    for fill_biases in (False, True):
        model, config = made(keys | {"model.qkv_bias": not fill_biases})
        with pytest.raises(ConfigError, match=r"model\.qk_norm: .*--format safetensors.*model\.arch llama"):
            export(model, config, BytesTokenizer(), tmp_path / "out", fill_biases=fill_biases)
    assert list(tmp_path.iterdir()) == []
    assert_same_there(tmp_path / "out", BytesTokenizer(), LLAMA | keys)


def test_safetensors_alone_load_into_the_same_model(tmp_path: Path) -> None:
    kinds: dict[str, Keys] = {"tied": {}, "normed": {"model.qk_norm": True}, "llama": LLAMA}
    for name, keys in (kinds | {"book": {"model.qkv_bias": False, "model.tie_head": False}}).items():
        model, config = made(keys)
        assert export(model, config, BytesTokenizer(), tmp_path / name, format="safetensors") == [
            tmp_path / name / "model.safetensors"
        ]
        other = make_model(config, 257, None, torch.device("cpu"))
        load_model(other, tmp_path / name / "model.safetensors")
        assert torch.equal(other.eval()(torch.arange(30)[None]), model(torch.arange(30)[None]))


@pytest.mark.parametrize("arch", [{}, LLAMA], ids=["gpt2", "llama"])
def test_a_classifier_is_one_there_with_the_names_of_its_classes(tmp_path: Path, arch: Keys) -> None:
    model, config = made(arch, num_labels=3)
    export(model, config, BytesTokenizer(), tmp_path / "out", labels=("ham", "spam", "eggs"))
    assert not (tmp_path / "out" / "generation_config.json").exists()
    their_model, tokenizer = (
        opened(tmp_path / "out", "AutoModelForSequenceClassification"),
        tokenizer_of(tmp_path / "out"),
    )
    texts = ["a longer text", "short"]
    with torch.no_grad():
        logits = their_model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        for text, row in zip(texts, logits, strict=True):
            alone = model(torch.tensor([BytesTokenizer().encode(text).tolist()]))[0, -1]
            torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-5)
    assert their_model.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}


def messages(*contents: str) -> list[Any]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


@pytest.mark.parametrize("turns", [("why?",), ("why?", "so.", "and then?")])
@pytest.mark.parametrize("name", ["alpaca", "phi3"])
def test_messages_become_the_ids_that_training_saw(tmp_path: Path, name: str, turns: Sequence[str]) -> None:
    model, config = made({"data.seq_len": 300})
    template, tokenizer = named_template(name), BytesTokenizer()
    export(model, config, tokenizer, tmp_path / "out", template=template)
    assert chat_ids(tmp_path / "out", turns) == template.ids(messages(*turns), tokenizer)


def chat_ids(folder: Path, turns: Sequence[str]) -> list[int]:
    found = tokenizer_of(folder).apply_chat_template(messages(*turns), add_generation_prompt=True, return_dict=True)
    return list(found["input_ids"])


CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def with_turns() -> FileTokenizer:
    """A tokenizer.json of bytes with tokens for turns, in which answers end with another token than texts."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={each: place for place, each in enumerate(characters)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return FileTokenizer("tokenizer.json", inner.to_str().encode())


def test_a_tokenizers_own_chat_template_keeps_its_tokens(tmp_path: Path, with_turns: FileTokenizer) -> None:
    model, config = made({}, vocab_size=with_turns.vocab_size)
    template: Template = ChatTemplate(CHAT, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    files = export(model, config, with_turns, tmp_path / "out", template=template)
    turns = ("why?", "so.", "and then?")
    assert chat_ids(tmp_path / "out", turns) == template.ids(messages(*turns), with_turns)
    assert json.loads(files[2].read_text()) == {"bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}
    assert tokenizer_of(tmp_path / "out").eos_token == "<|im_end|>"


def test_without_a_tokenizer_there_are_no_files_of_it(tmp_path: Path) -> None:
    model, config = made({}, vocab_size=11)
    files = export(model, config, None, tmp_path / "out")
    assert [file.name for file in files] == ["model.safetensors", "config.json", "generation_config.json"]
    assert opened(tmp_path / "out").config.eos_token_id is None


def test_a_model_of_ones_own_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Linear is a model of your own.*safetensors\.torch\.save_model"):
        export(nn.Linear(2, 2), RunConfig(), BytesTokenizer(), tmp_path / "out")


def test_what_lies_in_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    model, config = made({})
    (tmp_path / "empty").mkdir()
    export(model, config, BytesTokenizer(), tmp_path / "empty")
    before = load_file(tmp_path / "empty" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"--out: .*empty is not empty, and nothing in it is overwritten"):
        export(model, config, BytesTokenizer(), tmp_path / "empty")
    assert load_file(tmp_path / "empty" / "model.safetensors").keys() == before.keys()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out: .*file is a file"):
        export(model, config, BytesTokenizer(), tmp_path / "file")
    with pytest.raises(StorageError, match=r"out could not be written"):
        export(model, config, BytesTokenizer(), tmp_path / "file" / "out")


def test_a_folder_whose_tokenizer_transformers_takes_for_another_is_told(tmp_path: Path) -> None:
    model, config = made(LLAMA | {"model.qkv_bias": True})
    assert "PreTrainedTokenizerFast" in notes(config, BytesTokenizer())[0]
    assert notes(made(LLAMA)[1], BytesTokenizer()) == notes(made({})[1], BytesTokenizer()) == []
    export(model, config, BytesTokenizer(), tmp_path / "out")
    from transformers import PreTrainedTokenizerFast

    text = "decomposed: e\u0301"
    ids = BytesTokenizer().encode(text).tolist()
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")(text)["input_ids"] == ids
    assert tokenizer_of(tmp_path / "out")(text)["input_ids"] != ids
