"""A tokenizer learned from raw text: the same twice, exact for any text, better on its own kind of text than chance."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.raw import DOCUMENTS, FORMATS, write_jsonl

from trainwell.data.bpe import FEWEST, Learned, learn
from trainwell.data.care import Care
from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.parallel import next_cut
from trainwell.data.reading import Reading
from trainwell.data.tokenizer import FileTokenizer, Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, DataError


def learned(file: Path, out: Path, size: int = 320) -> Learned:
    return learn([str(file)], out, size, Reading("text", Care()), show_progress=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    learned(write_jsonl(folder), folder / "tokenizer.json")
    return load_tokenizer(str(folder / "tokenizer.json"))


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_from_its_ids(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


@pytest.mark.slow
@given(st.lists(st.characters(codec="utf-8"), min_size=1, max_size=3).map("".join))
def test_no_text_becomes_the_end_of_one(tokenizer: Tokenizer, text: str) -> None:
    spelled = f"{text}<|endoftext|>{text}"
    assert tokenizer.end_of_text not in tokenizer.encode(spelled).tolist()
    assert tokenizer.decode(tokenizer.encode(spelled).tolist()) == spelled


def test_it_has_as_many_tokens_as_were_asked_for_and_an_end_of_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.vocab_size == 320
    assert tokenizer.end_of_text is not None
    learned(write_jsonl(tmp_path), tmp_path / "bytes.json", FEWEST)
    alone = load_tokenizer(str(tmp_path / "bytes.json"))
    assert len(alone.encode("the tide é")) == len("the tide é".encode())


def test_long_texts_may_be_cut_for_it(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.is_byte_level
    assert next_cut(tokenizer)("one two three", 4) == 7


def test_the_same_text_in_another_format_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("jsonl", "parquet"):
        learned(FORMATS[name](tmp_path), tmp_path / f"{name}.json")
    assert (tmp_path / "jsonl.json").read_bytes() == (tmp_path / "parquet.json").read_bytes()


def test_what_is_kept_aside_is_not_learned_from(tmp_path: Path) -> None:
    found = learned(write_jsonl(tmp_path), tmp_path / "a.json")
    aside = [text for text in DOCUMENTS if is_held_out(key_of(text), 0.05)]
    assert found.held_out == aside
    assert found.size == sum(len(text.encode()) for text in DOCUMENTS if text not in aside)


def test_of_a_single_document_the_end_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the tide turns " * 100)
    found = learned(tmp_path / "a.txt", tmp_path / "a.json", 300)
    assert found.held_out == [("the tide turns " * 100)[1425:]]
    assert found.bytes_a_token(load_tokenizer(str(tmp_path / "a.json"))) > 3


def test_what_cannot_be_learned_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="257 at least"):
        learned(write_jsonl(tmp_path), tmp_path / "a.json", 256)
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(ConfigError, match="there is a file already"):
        learned(write_jsonl(tmp_path), tmp_path / "there.json")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text to learn from"):
        learned(tmp_path / "empty.txt", tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()
