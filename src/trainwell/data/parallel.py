"""Long texts tokenised by several threads: cut where no token can span, so that the ids are those of the whole.

Threads, not processes: tiktoken and tokenizers let go of the interpreter while they work, so threads are as fast, start
at once, and share the text. Knows texts and tokenizers, no files.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trainwell.data.shards import Tokens, token_dtype
from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer, FileTokenizer, Gpt2Tokenizer, Tokenizer
from trainwell.errors import DataError
from trainwell.runs import processors

PIECE = 2**18
"""Characters in a piece: enough to make its thread worth waking, few enough that an interrupt ends it soon."""

Encode = Callable[[str], Tokens]
NextCut = Callable[[str, int], int]
"""Of a text and a place in it, the first place from there on where it may be cut; its length where there is none."""
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_WORD_THEN_SPACE = re.compile(r"(?<=\S) ")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS_AT_SPACES = frozenset(_WORDS + digits + _REST for digits in (r"\p{N}{1,3}", r"\p{N}"))
"""The regular expressions of cl100k, as Llama 3 has it, and of Qwen2; a tokenizer.json quotes them to the letter."""


class _Piece(NamedTuple):
    text: str
    ends: bool
    """Whether a text ends here."""


def encode_texts(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    end: int | None = None,
    encode: Encode | None = None,
    threads: int | None = None,
    on_piece: Callable[[int], object] | None = None,
) -> Generator[Tokens]:
    """Give the ids of `texts` in order, each text followed by the id `end`, in arrays of any length.

    Joined, they are the ids that `tokenizer.encode` gives for each text as a whole, for any number of threads.

    Args:
        texts: whole texts.
        tokenizer: what decides the ids, and where a text may be cut.
        end: an id after each text; None for none.
        encode: another function that gives the tokenizer's ids, faster.
        threads: how many; by default one for each core that this process may use.
        on_piece: called with the characters of each piece that is done, in the thread that asks for the ids.

    Raises DataError as `tokenizer.encode` does for the whole text.
    """
    total = sum(map(len, texts))
    cut = next_cut(tokenizer) if total > PIECE else _nowhere
    dtype = token_dtype(tokenizer.vocab_size)
    encode_piece = tokenizer.encode if encode is None else encode
    ending = np.array([] if end is None else [end], dtype=dtype)

    def ids_of(job: Sequence[_Piece]) -> tuple[Tokens, int]:
        parts: list[Tokens] = []
        for piece in job:
            parts.append(encode_piece(piece.text))
            if piece.ends:
                parts.append(ending)
        return np.concatenate(parts).astype(dtype, copy=False), sum(len(piece.text) for piece in job)

    try:
        for ids, size in in_order(_jobs(texts, cut), ids_of, _threads(threads, total)):
            yield ids
            if on_piece is not None:
                on_piece(size)
    except DataError:
        for text in texts:
            tokenizer.encode(text)  # says where in the whole text it is, which a piece does not know
        raise


def next_cut(tokenizer: Tokenizer) -> NextCut:
    """Where texts may be cut for `tokenizer` without changing an id; nowhere for one of which too little is known.

    Bytes and characters may be cut anywhere. GPT-2's regular expression, and those of its kind, never put a space into
    a piece behind anything but space: before a space that follows another character a piece surely ends. What is left
    of it ends in no space, so looking ahead found the same; what is right of it is matched as if it were the beginning.
    """
    if isinstance(tokenizer, BytesTokenizer | CharsTokenizer):
        return _anywhere
    if isinstance(tokenizer, Gpt2Tokenizer):
        return _before_a_space
    if isinstance(tokenizer, FileTokenizer) and _splits_at_spaces(json.loads(tokenizer.content)):
        return _before_a_space
    return _nowhere


def cut_text(text: str, cut: NextCut, size: int = PIECE) -> Iterator[str]:
    """The pieces of `text`, each of `size` characters and as many more as it takes to get to the next cut."""
    start = 0
    while len(text) - start > size:
        stop = cut(text, start + size)
        if stop >= len(text):
            break
        yield text[start:stop]
        start = stop
    yield text[start:]


def _anywhere(_text: str, at: int) -> int:
    return at


def _before_a_space(text: str, at: int) -> int:
    found = _WORD_THEN_SPACE.search(text, at)
    return len(text) if found is None else found.start()


def _nowhere(text: str, _at: int) -> int:
    return len(text)


def _splits_at_spaces(document: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE behind a regular expression that is known here, and nothing else sees the space.

    NFC may come first: it joins nothing to a space before it. Added tokens that are not special are looked for in the
    text, so none may hold a space or look beyond its ends.
    """
    model, normalizer = document.get("model") or {}, document.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and normalizer in (None, {"type": "NFC"})
        and _known_split(document.get("pre_tokenizer") or {})
        and all(token.get("special") or _keeps_to_itself(token) for token in document.get("added_tokens") or ())
    )


def _known_split(pre_tokenizer: dict[str, Any]) -> bool:
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *before, level = steps if steps else [{}]
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space") is not False:
        return False
    if not before:
        return level.get("use_regex", True) is True
    return len(before) == 1 and all(
        step.get("type") == "Split"
        and step.get("behavior") == "Isolated"
        and step.get("invert") is False
        and (step.get("pattern") or {}).get("Regex") in _SPLITS_AT_SPACES
        for step in before
    )


def _keeps_to_itself(token: dict[str, Any]) -> bool:
    looks_around = any(token.get(name) for name in ("lstrip", "rstrip", "single_word"))
    return not looks_around and not any(character.isspace() for character in str(token.get("content")))


def _jobs(texts: Iterable[str], cut: NextCut) -> Iterator[list[_Piece]]:
    """What a thread does at a time: pieces of a long text, or many short texts together."""
    job: list[_Piece] = []
    size = 0
    for text in texts:
        for piece in cut_text(text, cut):
            if job and size + len(piece) > PIECE:
                yield job
                job, size = [], 0
            job.append(_Piece(piece, ends=False))
            size += len(piece)
        job[-1] = job[-1]._replace(ends=True)
    if job:
        yield job


def _threads(asked: int | None, characters: int) -> int:
    """How many threads pay: no more than cores that this process may use, nor than pieces."""
    if asked is None:
        asked = processors.usable()
    return min(asked, -(-characters // PIECE))


def in_order(jobs: Iterable[_Job], work: Callable[[_Job], _Result], threads: int) -> Generator[_Result]:
    """The results of `jobs` in their order, a few ahead of who takes them; closed early, it ends what is under way."""
    if threads <= 1:
        yield from map(work, jobs)
        return
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="trainwell-tokenise")
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the pieces under way, a fraction of a second
