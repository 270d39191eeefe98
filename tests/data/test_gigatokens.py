"""The package gigatoken: used where its ids are tiktoken's, refused at one difference, and never needed."""

import re
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data.corpora import read_corpus
from trainwell.data.gigatokens import NASTY, checked, faster_gpt2
from trainwell.data.parallel import Encode
from trainwell.data.shards import Tokens
from trainwell.data.tokenizer import BytesTokenizer, Gpt2Tokenizer

TEXT = read_corpus(corpus="python-docs").texts[0]
LONG = TEXT * (4_000_000 // len(TEXT) + 1)

installed = pytest.mark.skipif(util.find_spec("gigatoken") is None, reason="the extra fast is not installed: gigatoken")


@pytest.fixture(scope="module")
def gpt2() -> Gpt2Tokenizer:
    return Gpt2Tokenizer()


def wrong(gpt2: Gpt2Tokenizer, where: Callable[[str], object]) -> Callable[[str], Tokens]:
    """A package that gives one wrong id for texts that are `where`."""

    def encode(text: str) -> Tokens:
        ids = gpt2.encode(text)
        if where(text) and len(ids):
            ids[len(ids) // 2] ^= 1
        return ids

    return encode


def test_the_same_ids_are_taken(gpt2: Gpt2Tokenizer) -> None:
    same = wrong(gpt2, lambda _: False)
    faster = checked("fake 1.0", same, gpt2, [TEXT])
    assert faster.encode is same
    assert faster.note == "tokenised by fake 1.0, whose ids were those of tiktoken on a sample of this text"


@pytest.mark.parametrize("nasty", [text for text in NASTY if text])
def test_one_wrong_id_in_a_nasty_text_is_refused(gpt2: Gpt2Tokenizer, nasty: str) -> None:
    faster = checked("fake 1.0", wrong(gpt2, nasty.__eq__), gpt2, [TEXT])
    assert faster.encode is None
    assert faster.note is not None
    assert faster.note.startswith("fake 1.0 is not used: its ids differ from gpt2's for ")
    assert faster.note.endswith("; tiktoken tokenised instead")
    assert "\n" not in faster.note
    assert faster.note.isascii()


@pytest.mark.parametrize("texts", [["plain " * 9000, TEXT], [TEXT, "", "plain " * 9000], [TEXT[:30]]])
def test_one_wrong_id_in_the_very_text_is_refused(gpt2: Gpt2Tokenizer, texts: list[str]) -> None:
    """Of both ends, and of a text shorter than a slice."""
    for mark in (texts[0][:20], texts[-1][-20:]):
        assert checked("fake 1.0", wrong(gpt2, re.compile(re.escape(mark)).search), gpt2, texts).encode is None


def test_an_id_too_few_or_too_many_is_refused(gpt2: Gpt2Tokenizer) -> None:
    assert checked("fake 1.0", lambda text: gpt2.encode(text)[1:], gpt2, [TEXT]).encode is None
    assert checked("fake 1.0", lambda text: np.append(gpt2.encode(text), 0), gpt2, [TEXT]).encode is None


def test_short_texts_and_other_tokenizers_have_no_use_for_it(gpt2: Gpt2Tokenizer) -> None:
    assert faster_gpt2(gpt2, [TEXT]) == (None, None)
    assert faster_gpt2(BytesTokenizer(), [LONG]) == (None, None)


@pytest.mark.skipif(util.find_spec("gigatoken") is not None, reason="gigatoken is installed")
def test_without_the_package_nothing_is_said(gpt2: Gpt2Tokenizer) -> None:
    assert faster_gpt2(gpt2, [LONG]) == (None, None)


WRONG_BY_ONE = """
from trainwell.data.tokenizer import Gpt2Tokenizer

class Tokenizer:
    @classmethod
    def from_tiktoken(cls, path, *, pretokenizer, special_tokens):
        assert pretokenizer == "gpt2" and not special_tokens
        assert path.read_bytes().startswith(b"IQ== 0\\nIg== 1\\n")
        assert len(path.read_bytes().splitlines()) == 50_256
        return cls()

    def __init__(self):
        self.right = Gpt2Tokenizer()

    def encode(self, text):
        ids = self.right.encode(text.decode())
        if len(ids) > 1000:
            ids[1000] ^= 1
        return ids
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('no such library')", "ImportError: no such library"),
        ("", "AttributeError: module 'gigatoken' has no attribute 'Tokenizer'"),
        (WRONG_BY_ONE, "its ids differ from gpt2's for "),
    ],
    ids=["cannot be imported", "works otherwise", "one wrong id"],
)
def test_a_package_that_fails_is_named_with_its_version(
    gpt2: Gpt2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    (tmp_path / "gigatoken.py").write_text(code)
    (tmp_path / "gigatoken-9.0.dist-info").mkdir()
    (tmp_path / "gigatoken-9.0.dist-info" / "METADATA").write_text("Name: gigatoken\nVersion: 9.0\n")
    monkeypatch.delitem(sys.modules, "gigatoken", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    faster = faster_gpt2(gpt2, [LONG])
    sys.modules.pop("gigatoken", None)  # not through monkeypatch, which would bring it back
    assert faster.encode is None
    assert faster.note is not None
    assert faster.note.startswith(f"gigatoken 9.0 is not used: {why}")


@installed
def test_the_package_is_used_for_a_long_text(gpt2: Gpt2Tokenizer) -> None:
    faster = faster_gpt2(gpt2, [LONG])
    assert faster.note is not None
    assert faster.note.startswith("tokenised by gigatoken ")
    assert faster.encode is not None
    assert np.array_equal(faster.encode(TEXT), gpt2.encode(TEXT))


@pytest.fixture(scope="module")
def encode(gpt2: Gpt2Tokenizer) -> Encode:
    """The package's way to the ids."""
    faster = faster_gpt2(gpt2, [LONG])
    assert faster.encode is not None
    return faster.encode


@installed
@given(text=st.lists(st.sampled_from([*NASTY, " ", "\n", "a", "'s", "\u0301", "12"])).map("".join))
def test_the_package_gives_the_ids_of_tiktoken(gpt2: Gpt2Tokenizer, encode: Encode, text: str) -> None:
    assert np.array_equal(encode(text), gpt2.encode(text))
