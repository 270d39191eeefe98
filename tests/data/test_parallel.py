"""Long texts in pieces: the ids of the pieces, joined, are the ids of the whole, for any tokenizer and any threads."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from trainwell.data.corpora import read_corpus
from trainwell.data.parallel import PIECE, cut_text, encode_texts, next_cut
from trainwell.data.shards import Tokens
from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer, FileTokenizer, Gpt2Tokenizer, Tokenizer
from trainwell.errors import DataError

REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST

NASTY = st.lists(
    st.sampled_from(
        [
            *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\u00a0", "\u2028"),
            *("\u3000", "\u200b", "\ufeff", "'", "'s", "'S", "'ll", "''", "a", "B", "the", "moves", "1", "12", "345"),
            *(
                "\u00bd",
                "\u0663",
                "\u00e9",
                "e\u0301",
                "\u0301",
                "\u0915\u093f",
                "\u4e2d",
                "\u02b0",
                "\u01c5",
                "\u017f",
            ),
            *("!", "...", "(", "/", "_", "<|endoftext|>", "</s>", "<tool>", "\U0001f642", "\U0001f468\u200d\U0001f469"),
        ]
    ),
    max_size=60,
).map("".join)


def byte_level(
    split: str | None, *, normalizer: normalizers.Normalizer | None = None, added: Sequence[str] = ()
) -> FileTokenizer:
    """A tokenizer.json as models publish it: byte-level BPE behind a regular expression, merges learned here."""
    inner = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    steps = [level] if split is None else [pre_tokenizers.Split(tokenizers.Regex(split), "isolated"), level]
    inner.pre_tokenizer = level if split is None else pre_tokenizers.Sequence(steps)
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    text = read_corpus(corpus="python-docs").texts[0][:40_000]
    inner.train_from_iterator([text, "  the   moves\n\n  a\r\n\r\n 's 'll  ...  \n"], trainer)
    inner.add_tokens(list(added))
    return FileTokenizer("tokenizer.json", inner.to_str().encode())


def changed(tokenizer: FileTokenizer, change: Callable[[dict[str, Any]], object]) -> FileTokenizer:
    document = json.loads(tokenizer.content)
    change(document)
    return FileTokenizer("tokenizer.json", json.dumps(document).encode())


@pytest.fixture(scope="module")
def known() -> dict[str, Tokenizer]:
    """Every kind of tokenizer whose texts may be cut."""
    return {
        "bytes": BytesTokenizer(),
        "gpt2": Gpt2Tokenizer(),
        "like gpt2": byte_level(None),
        "like llama": byte_level(LLAMA3, added=["<tool>"]),
        "like qwen": byte_level(QWEN2, normalizer=normalizers.NFC(), added=["<tool>"]),
    }


KNOWN = ("bytes", "gpt2", "like gpt2", "like llama", "like qwen")


def joined(parts: Sequence[Tokens]) -> list[int]:
    return [int(token) for part in parts for token in part]


@pytest.mark.parametrize("name", KNOWN)
@given(text=NASTY, size=st.integers(1, 20))
def test_the_ids_of_the_pieces_are_the_ids_of_the_whole(
    known: dict[str, Tokenizer], name: str, text: str, size: int
) -> None:
    tokenizer = known[name]
    pieces = list(cut_text(text, next_cut(tokenizer), size))
    assert "".join(pieces) == text
    assert joined([tokenizer.encode(piece) for piece in pieces]) == tokenizer.encode(text).tolist()


@given(text=NASTY, size=st.integers(1, 20))
def test_chars_may_be_cut_anywhere(text: str, size: int) -> None:
    tokenizer = CharsTokenizer.of([text, "more"])
    pieces = list(cut_text(text, next_cut(tokenizer), size))
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert joined([tokenizer.encode(piece) for piece in pieces]) == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("name", KNOWN)
def test_ordinary_text_is_cut_near_every_multiple_of_the_size(known: dict[str, Tokenizer], name: str) -> None:
    text = read_corpus(corpus="python-docs").texts[0][:50_000]
    pieces = list(cut_text(text, next_cut(known[name]), 1000))
    assert len(pieces) > 40
    assert max(map(len, pieces)) < 1300


def test_a_text_without_a_safe_place_stays_whole(known: dict[str, Tokenizer]) -> None:
    for text in ("word" * 100, " " * 400, "\n \n" * 100, "\u4e2d" * 400):
        assert list(cut_text(text, next_cut(known["gpt2"]), 10)) == [text]


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a normalizer that may make spaces": lambda file: file.update(normalizer={"type": "NFKC"}),
    "another split": lambda file: file.update(pre_tokenizer={"type": "Whitespace"}),
    "no split": lambda file: file.update(pre_tokenizer=None),
    "a space before each text": lambda file: file["pre_tokenizer"].update(add_prefix_space=True),
    "bytes without a split": lambda file: file["pre_tokenizer"].update(use_regex=False),
    "merges by chance": lambda file: file["model"].update(dropout=0.1),
    "an added token with a space": lambda file: add_token(file, content="two words"),
    "an added token that takes spaces": lambda file: add_token(file, content="<x>", rstrip=True),
}


def add_token(document: dict[str, Any], **content: object) -> None:
    document["added_tokens"].append({**document["added_tokens"][0], "id": 600, "special": False, **content})


@pytest.mark.parametrize("name", CHANGES)
def test_a_tokenizer_of_which_too_little_is_known_gets_whole_texts(known: dict[str, Tokenizer], name: str) -> None:
    plain = known["like gpt2"]
    assert isinstance(plain, FileTokenizer)
    text = "some words " * 50
    assert len(list(cut_text(text, next_cut(plain), 20))) > 10
    assert list(cut_text(text, next_cut(changed(plain, CHANGES[name])), 20)) == [text]


def test_an_unknown_split_gets_whole_texts() -> None:
    text = "some words " * 50
    assert list(cut_text(text, next_cut(byte_level(r"\w+ \w+|\s+")), 20)) == [text]


def long_text() -> str:
    text = read_corpus(corpus="python-docs").texts[0]
    return text + text[::-1] + text


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_threads_change_no_id(known: dict[str, Tokenizer], name: str, threads: int) -> None:
    texts = ["", long_text(), "short", long_text()[1000:]]
    parts = list(encode_texts(texts, known[name], end=256, threads=threads))
    assert len(parts) > 4
    expected = [[*known[name].encode(text).tolist(), 256] for text in texts]
    assert joined(parts) == [token for ids in expected for token in ids]


def test_many_short_texts_are_tokenised_together() -> None:
    texts = [f"text {number}" for number in range(100_000)]
    parts = list(encode_texts(texts, BytesTokenizer(), end=256, threads=2))
    assert len(parts) < 10
    assert bytes(token if token < 256 else 10 for token in joined(parts)).decode().split("\n")[:-1] == texts


def test_no_end_is_added_unless_asked_for() -> None:
    assert joined(list(encode_texts(["ab", "c"], BytesTokenizer()))) == [97, 98, 99]


def test_progress_counts_every_character() -> None:
    counted: list[int] = []
    texts = [long_text(), "short"]
    for _ in encode_texts(texts, BytesTokenizer(), threads=2, on_piece=counted.append):
        pass
    assert sum(counted) == sum(map(len, texts))
    assert len(counted) > 4


def test_a_character_that_is_missing_is_found_in_the_whole_text() -> None:
    text = "ab" * PIECE + "z" + "ab" * PIECE
    with pytest.raises(DataError, match=rf"the character 'z' \(U\+007A\) at offset {2 * PIECE:,} is not among"):
        list(encode_texts([text], CharsTokenizer("ab", ends_texts=False), threads=2))


def test_a_failure_in_a_thread_is_the_callers(known: dict[str, Tokenizer]) -> None:
    def fail(_text: str) -> Tokens:
        raise DataError("it broke")

    with pytest.raises(DataError, match="it broke"):
        list(encode_texts([long_text()], known["gpt2"], encode=fail, threads=2))


def test_closed_early_it_starts_nothing_more_and_leaves_no_thread() -> None:
    started: list[str] = []

    def slow(text: str) -> Tokens:
        started.append(text)
        time.sleep(0.01)
        return np.zeros(1, dtype=np.uint16)

    parts = encode_texts(["a" * (40 * PIECE)], BytesTokenizer(), encode=slow, threads=2)
    next(parts)
    parts.close()
    assert len(started) < 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trainwell-tokenise")]


def test_an_interrupt_ends_the_threads(known: dict[str, Tokenizer]) -> None:
    def interrupt(_characters: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(encode_texts([long_text()], known["gpt2"], threads=2, on_piece=interrupt))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trainwell-tokenise")]


def test_a_short_text_starts_no_thread() -> None:
    seen: list[str] = []

    def note(text: str) -> Tokens:
        seen.append(threading.current_thread().name)
        return BytesTokenizer().encode(text)

    list(encode_texts(["x" * PIECE], BytesTokenizer(), encode=note, threads=4))
    assert seen == ["MainThread"]


def test_a_tokenizer_of_ones_own_gets_whole_texts() -> None:
    class Own:
        name, identity = "own", "own"
        vocab_size, end_of_text = 100_000_000, None

        def encode(self, text: str) -> Tokens:
            return np.array([len(text)], dtype=np.uint32)

        def decode(self, ids: Sequence[int]) -> str:
            return "a" * sum(ids)

        def save(self, folder: Path) -> None:
            folder.mkdir()

    assert joined(list(encode_texts(["a" * 3 * PIECE, "b"], Own(), threads=2))) == [3 * PIECE, 1]
