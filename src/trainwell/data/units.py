"""How raw text is shared out: files in units that are prepared alone, each by itself, with pieces for threads in them.

A unit and what becomes of it depend on the inputs and nothing else: any number of processes, started at any time, make
the same store.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.inputs import Source
from trainwell.data.parallel import PIECE, Encode, NextCut, cut_text, in_order
from trainwell.data.reading import Document
from trainwell.data.shards import Tokens

_BYTES_A_TOKEN = 4
"""About as many bytes of a text are a token: so that a unit of small files comes to about a shard."""


_AT_LEAST, _SMALLEST = 16, 2**25
"""So many units of small files, unless they were smaller than so many bytes."""


class Piece(NamedTuple):
    """What is tokenised at a time of a document: all of it, where it is not long."""

    source: int
    place: int
    text: str
    key: bytes | None
    """See `Document.key`; None where this is all of it."""
    ends: bool


class Part(NamedTuple):
    """What became of a piece: which side it is on, and how much it is."""

    source: int
    place: int
    key: bytes
    held_out: bool
    tokens: int
    """The id that ends its document included."""
    size: int
    """Bytes of its text."""
    ends: bool


class Encoded(NamedTuple):
    """What became of a few pieces."""

    train: Tokens
    val: Tokens
    parts: Sequence[Part]


def units_of(sources: Sequence[Source], shard_tokens: int) -> list[list[int]]:
    """The numbers of the sources in each unit: neighbours that come to about a shard, or a large one alone.

    Of what is no more than a few shards they are smaller, so that there is something for every process.
    """
    units: list[list[int]] = []
    total, size = sum(source.size for source in sources), 0
    most = min(_BYTES_A_TOKEN * shard_tokens, max(total // _AT_LEAST, _SMALLEST))
    for number, source in enumerate(sources):
        if not units or (size and size + source.size > most):
            units.append([])
            size = 0
        units[-1].append(number)
        size += source.size
    return units


def pieces_of(documents: Iterable[tuple[int, Document]], cut: NextCut) -> Iterator[Piece]:
    """Documents of sources, by their number, in pieces that give the ids of the whole."""
    held, searched = "", 0
    for source, document in documents:
        held += document.text
        key = document.key
        if document.goes_on:
            while len(held) > PIECE and (stop := cut(held, max(PIECE, searched))) < len(held):
                yield Piece(source, document.place, held[:stop], key, ends=False)
                held, searched = held[stop:], 0
            searched = len(held)  # a text without spaces is not searched from its beginning again and again
            continue
        if key is None and len(held) > PIECE:
            key = key_of(held)
        *first, last = cut_text(held, cut)
        for text in first:
            yield Piece(source, document.place, text, key, ends=False)
        yield Piece(source, document.place, last, key, ends=True)
        held, searched = "", 0


def jobs_of(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """What a thread does at a time: pieces of `most` characters together. One begins where the one before it ended."""
    job: list[Piece] = []
    size = 0
    for piece in pieces:
        if job and size + len(piece.text) > most:
            yield job
            job, size = [], 0
        job.append(piece)
        size += len(piece.text)
    if job:
        yield job


EncodeEnded = Callable[[Sequence[str]], Tokens]
"""The ids of texts, each followed by the id that ends it."""


def ended(encode: Encode, end: int) -> EncodeEnded:
    """The same one text at a time."""
    ending = np.array([end])

    def encode_ended(texts: Sequence[str]) -> Tokens:
        return np.concatenate([part for text in texts for part in (encode(text), ending)])

    return encode_ended


def encode_pieces(
    pieces: Iterable[Piece],
    encode: Encode,
    encode_ended: EncodeEnded,
    end: int,
    dtype: np.dtype[np.unsignedinteger[Any]],
    val_fraction: float,
    *,
    most: int,
    threads: int,
) -> Iterator[Encoded]:
    """The ids of pieces in their order, an end behind each document, on the side that the hash of a document says."""

    def ids_of(job: Sequence[Piece]) -> Encoded:
        whole, lengths = list[Tokens](), list[int]()
        for goes_on, run in groupby(job, key=lambda piece: not piece.ends):
            texts = [piece.text for piece in run]
            ids = [encode(text) for text in texts] if goes_on else [encode_ended(texts)]
            whole += ids
            lengths += map(len, ids) if goes_on else np.diff(np.flatnonzero(ids[0] == end), prepend=-1).tolist()
        together = np.concatenate(whole).astype(dtype, copy=False)
        parts = [_part(piece, length, val_fraction) for piece, length in zip(job, lengths, strict=True)]
        held_out = np.repeat([part.held_out for part in parts], lengths)
        return Encoded(together[~held_out], together[held_out], parts)

    yield from in_order(jobs_of(pieces, min(most, PIECE)), ids_of, threads)


def _part(piece: Piece, tokens: int, val_fraction: float) -> Part:
    key = piece.key or key_of(piece.text)
    size = len(piece.text) if piece.text.isascii() else len(piece.text.encode())
    return Part(piece.source, piece.place, key, is_held_out(key, val_fraction), tokens, size, piece.ends)
