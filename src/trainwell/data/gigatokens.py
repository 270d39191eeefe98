"""GPT-2's ids from the package gigatoken, where it is installed, and where it gives the ids that tiktoken gives.

Knows GPT-2's tokenizer and texts, no files. The package is optional (`pip install 'trainwell[fast]'`); ids never depend
on it.
"""

import base64
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainwell.data.parallel import Encode
from trainwell.data.shards import Tokens
from trainwell.data.tokenizer import END_OF_TEXT, Gpt2Tokenizer, Tokenizer

_PACKAGE = "gigatoken"
_WORTH = 4_000_000
"""Characters from which loading and checking the package takes less time than it saves."""
_SLICES, _SLICE = 16, 2**14
NASTY = (
    "",
    " ",
    "a  b   c",
    "a \n\n b\n \n\n  c",
    "x\r\n\r\ny \r\n z",
    "\t\ta \t b\x0b\x0c",
    "ends in spaces   ",
    "ends in lines \n\n",
    "it's we'll I've you're he'd I'm don't IT'S WE'LL ''s 'S '",
    f"{END_OF_TEXT} {END_OF_TEXT}{END_OF_TEXT}\n<|endoftext",
    "e\u0301\u0301 \u0301a \u0e01\u0e33 \u0915\u093f",
    "\u00a0\u00a0a\u00a0 b\u3000\u3000 c\u2028\u2028 d\x85 \x85e",
    "\x00\x1c\x1d\x1f a\x7f\x80\ufeff\ufffd",
    "1234567 12 \u00bd \u2167 \u0661\u0662\u0663 \U0001d7d8\U0001d7d9 \uff11\uff12\uff13 3.14e-10",
    "\u01c5 \u02b0 \ufb01 \u00df \u017f \u0130 \u0131 \u212a \u212b \u00aa \u00ba",
    "🙂👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 \U0010ffff\ue000",
    "中文字符 日本語の文 한국어 עברית العربية",
    '!!! ??? ... --- ___ <<<>>> #$%&*()[]{}@^~`|\\/"',
    "https://example.org/a?b=c&d=%20 snake_case camelCase x=-1;\n\tif (a&&b) {\n\t\treturn 0;\n\t}",
    "a" * 300 + " " * 300 + "\n" * 300 + "!" * 300 + "7" * 300,
)
"""Texts in which implementations of GPT-2's regular expression and merges are known to part."""


class Faster(NamedTuple):
    """What becomes of the package: a way to the same ids or None, and the line that says so, where there is a word."""

    encode: Encode | None
    note: str | None


def faster_gpt2(tokenizer: Tokenizer, texts: Sequence[str]) -> Faster:
    """Gigatoken's way to the ids of `texts`, if the tokenizer is GPT-2's, the package is here, and it passes the check.

    Short texts are left to tiktoken without a look at the package.
    """
    if not isinstance(tokenizer, Gpt2Tokenizer) or sum(map(len, texts)) < _WORTH:
        return Faster(None, None)
    try:
        name = f"{_PACKAGE} {metadata.version(_PACKAGE)}"
    except metadata.PackageNotFoundError:
        return Faster(None, None)
    try:
        return checked(name, _load(tokenizer), tokenizer, texts)
    except (AttributeError, ImportError, OSError, TypeError, ValueError, RuntimeError) as error:
        return Faster(None, f"{name} is not used: {type(error).__name__}: {error}; tiktoken tokenised instead")


def checked(name: str, encode: Encode, tokenizer: Tokenizer, texts: Sequence[str]) -> Faster:
    """Compare `encode` with the tokenizer on nasty texts and on slices of `texts`; one difference is enough."""
    for text in (*NASTY, *_slices(texts)):
        if not np.array_equal(encode(text), tokenizer.encode(text)):
            why = f"its ids differ from {tokenizer.name}'s for {_start_of(text)}"
            return Faster(None, f"{name} is not used: {why}; tiktoken tokenised instead")
    return Faster(encode, f"tokenised by {name}, whose ids were those of tiktoken on a sample of this text")


def _load(tokenizer: Gpt2Tokenizer) -> Encode:
    """GPT-2 in the package, from the merge ranks that tiktoken has; it reads them from a file only."""
    package = import_module(_PACKAGE)
    token = tokenizer.encoding.decode_single_token_bytes
    ranks = b"".join(
        base64.b64encode(token(rank)) + b" %d\n" % rank
        for rank in range(tokenizer.vocab_size)
        if rank != tokenizer.end_of_text
    )
    with tempfile.TemporaryDirectory(prefix="trainwell-ranks-") as folder:
        file = Path(folder) / "gpt2.tiktoken"
        file.write_bytes(ranks)
        loaded = package.Tokenizer.from_tiktoken(file, pretokenizer="gpt2", special_tokens={})
    encode: Callable[[bytes], Tokens] = loaded.encode
    return lambda text: encode(text.encode())


def _slices(texts: Sequence[str]) -> list[str]:
    """Slices from all over `texts`, laid end to end, the first and the last included."""
    total = sum(map(len, texts))
    places = sorted({max(0, total - _SLICE) * number // (_SLICES - 1) for number in range(_SLICES)})
    found: list[str] = []
    start = 0
    for text in texts:
        while places and places[0] < start + len(text):
            at = places.pop(0) - start
            found.append(text[at : at + _SLICE])
        start += len(text)
    return found


def _start_of(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")
