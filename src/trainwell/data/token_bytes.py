"""How much text ids stand for: the UTF-8 bytes of a stream of tokens, for bits per byte, without decoding it.

Knows tokenizers and ids, no files.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trainwell.data.stream import Ids, TokenStream
from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer, FileTokenizer, Gpt2Tokenizer, Tokenizer

_BLOCK = 2**22
_DECODED = 2**16


def count_bytes(stream: TokenStream, tokenizer: Tokenizer) -> int:
    """Count the bytes of the text, ends of texts left out.

    Exact where each id stands for bytes of its own, as in every byte-level tokenizer. Of others the text is decoded in
    pieces of 65,536 ids, and a character that is cut there counts as its replacement.
    """
    lengths = byte_lengths(tokenizer)
    if lengths is None:
        return sum(_decoded(stream[start : start + _DECODED], tokenizer) for start in range(0, len(stream), _DECODED))
    return sum(
        int(np.bincount(stream[start : start + _BLOCK], minlength=len(lengths)) @ lengths)
        for start in range(0, len(stream), _BLOCK)
    )


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """The bytes that each id stands for, shape (vocab_size,), 0 for the end of a text; None where that depends."""
    size_of = _measure(tokenizer)
    if size_of is None:
        return None
    ids = range(tokenizer.vocab_size)
    return np.array([0 if index == tokenizer.end_of_text else size_of(index) for index in ids], dtype=np.int64)


def _measure(tokenizer: Tokenizer) -> Callable[[int], int] | None:
    if isinstance(tokenizer, BytesTokenizer):
        return lambda _index: 1
    if isinstance(tokenizer, CharsTokenizer):
        return lambda index: len(tokenizer.decode([index]).encode())
    if isinstance(tokenizer, Gpt2Tokenizer):
        return lambda index: len(tokenizer.encoding.decode_single_token_bytes(index))
    return tokenizer.size_of if isinstance(tokenizer, FileTokenizer) and tokenizer.is_byte_level else None


def _decoded(ids: Ids, tokenizer: Tokenizer) -> int:
    return len(tokenizer.decode(ids[ids != tokenizer.end_of_text].tolist()).encode())
