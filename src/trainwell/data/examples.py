"""Examples of a task in rows of one length: inputs, targets and, where several share a row, their documents.

Knows ids and which of them are learned; no text, no template and no class.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trainwell.data.prepare import SharedSettings, StoreInfo
from trainwell.data.records import Record, RecordFile
from trainwell.data.shards import token_dtype
from trainwell.data.templates import Template
from trainwell.data.tokenizer import Tokenizer
from trainwell.errors import ConfigError, DataError

IGNORED = -100
"""The target of a position that is not learned, as torch's cross-entropy has it."""

_FORMAT = 1
"""Part of every fingerprint: raised when the same settings would give other rows."""
_LONGEST_TOKEN = 256
_PLACES_NAMED = 5


class ExampleSettings(SharedSettings, Protocol):
    """The part of the configuration that decides the rows of any task; `DataConfig` has this shape."""

    @property
    def rows(self) -> Literal["buckets", "packed", "padded"]:
        """Whether examples share rows."""


@dataclass(frozen=True)
class Example:
    """One example: inputs and targets (T,), at least one of which is learned."""

    inputs: NDArray[np.integer[Any]]
    targets: NDArray[np.int32]
    held_out: bool


class ExampleRows:
    """Rows of `seq_len` tokens, filled up with `pad` and IGNORED; map-style data that can be gathered.

    Only what is not filler is stored: the rows lie end to end, and a row is put together when it is asked for.
    """

    def __init__(
        self, examples: Sequence[Example], *, seq_len: int, pad: int, vocab_size: int, packed: bool = False
    ) -> None:
        """Lay out `examples`, none longer than `seq_len`: each in a row of its own, or `packed` tightly."""
        lengths = [len(example.inputs) for example in examples]
        groups = pack(lengths, seq_len) if packed else [[index] for index in range(len(examples))]
        order = [index for group in groups for index in group]
        self._inputs = np.concatenate([examples[index].inputs for index in order]).astype(token_dtype(vocab_size))
        self._targets = np.concatenate([examples[index].targets for index in order])
        self._documents = _documents(groups, lengths) if packed else None
        self.lengths: NDArray[np.int64] = np.array([sum(lengths[i] for i in group) for group in groups], dtype=np.int64)
        """Tokens of each row that are not filler."""
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._span = np.arange(seq_len)
        self._pad = pad

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        inputs, targets, _ = self.gather(np.array([index]))
        return inputs[0], targets[0]

    def gather(
        self, indices: NDArray[np.int64], /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
        """Inputs, targets and documents (None unless packed) of several rows, each (len(indices), seq_len).

        The filler of a row belongs to its last document, behind everything that is learned of it.
        """
        real = self._span < self.lengths[indices, None]
        last = self._starts[indices, None] + self.lengths[indices, None] - 1
        places = np.minimum(self._starts[indices, None] + self._span, last)
        inputs = np.where(real, self._inputs[places], self._pad).astype(np.int64)
        targets = np.where(real, self._targets[places], IGNORED).astype(np.int64)
        return inputs, targets, None if self._documents is None else self._documents[places].astype(np.int64)


@dataclass(frozen=True)
class ExampleStore:
    """Prepared examples, with what is known of them."""

    info: StoreInfo
    train: ExampleRows
    val: ExampleRows
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()
    """What became of single examples: how many were cut or left out, and where they stand."""
    template: Template | None = None
    """Of instructions: how a question becomes text."""
    labels: tuple[str, ...] = ()
    """Of labelled texts: the names of the classes, in the order of their numbers."""


def pack(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Divide examples into rows of at most `seq_len` tokens: longest first, each into the fullest row it fits in.

    Returns the indices of each row's examples, all in the order of `lengths`; the same for the same lengths. Best-fit
    decreasing takes at most 11/9 of the fewest rows, and four more (Johnson, 1973).
    """
    rows: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(seq_len + 1)]  # rows by the tokens that are free in them
    spaces = 0  # bit n: there is a row with n tokens free
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = with_space[space].pop()
            spaces ^= 0 if with_space[space] else 1 << space
        else:
            space, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(index)
        with_space[space - length].append(row)
        spaces |= 1 << (space - length)
    return sorted(sorted(row) for row in rows)


def _documents(groups: Sequence[Sequence[int]], lengths: Sequence[int]) -> NDArray[np.int32]:
    numbers = [number for group in groups for number in range(len(group))]
    return np.repeat(np.array(numbers, dtype=np.int32), [lengths[index] for group in groups for index in group])


def path_of(data: ExampleSettings, task: str) -> str:
    """Give the file of a task; ConfigError without one."""
    if data.path is None:
        raise ConfigError(
            f"data.path is null, and task {task} is read from a file of yours: a .json, .jsonl or .csv. "
            "Give it with data.path."
        )
    return data.path


def longest_text(seq_len: int) -> int:
    """Characters of a text that are tokenised at most: more than a row holds, if no token has over 256 of them.

    So a text of megabytes costs no more than a row; what is cut off with it would be cut off as tokens anyway.
    """
    return _LONGEST_TOKEN * (seq_len + 2)


def at(record: Record, error: DataError) -> DataError:
    """Say in which line it went wrong."""
    return DataError(f"{record.where}: {error}")


def places(found: Sequence[Record]) -> str:
    """Name where the first few records are."""
    named = ", ".join(record.place for record in found[:_PLACES_NAMED])
    return f"{named} and {len(found) - _PLACES_NAMED:,} more" if len(found) > _PLACES_NAMED else named


def divided(
    examples: Sequence[Example], data: ExampleSettings, file: RecordFile
) -> tuple[list[Example], list[Example]]:
    """Part what is trained on from what is held out; DataError if one of them is empty."""
    train = [example for example in examples if not example.held_out]
    val = [example for example in examples if example.held_out]
    for name, side in (("training", train), ("validation", val)):
        if not side:
            raise DataError(
                f"the {name} set of {file.path} is empty: with data.val_fraction {data.val_fraction:g}, none of its "
                f"{len(examples):,} examples falls into it. Change data.val_fraction, or give more examples."
            )
    return train, val


def store(
    train: Sequence[Example],
    val: Sequence[Example],
    data: ExampleSettings,
    *,
    file: RecordFile,
    tokenizer: Tokenizer,
    deciding: Sequence[object],
    note: str | None = None,
    notes: Sequence[str] = (),
    template: Template | None = None,
    labels: Sequence[str] = (),
) -> ExampleStore:
    """Put examples into rows; `deciding` is what decides them besides file, tokenizer and `data`."""
    packed, pad = data.rows == "packed", tokenizer.end_of_text or 0
    rows, val_rows = (
        ExampleRows(side, seq_len=data.seq_len, pad=pad, vocab_size=tokenizer.vocab_size, packed=packed)
        for side in (train, val)
    )
    decided = [_FORMAT, file.sha256, tokenizer.identity, data.seq_len, data.val_fraction, packed, *deciding]
    info = StoreInfo(
        train_tokens=len(rows) * data.seq_len + 1,  # as many windows as there are rows
        val_tokens=len(val_rows) * data.seq_len + 1,
        train_bytes=0,
        val_bytes=0,
        vocab_size=tokenizer.vocab_size,
        fingerprint=hashlib.sha256(json.dumps(decided).encode()).hexdigest(),
        corpus=file.path,
        corpus_sha256=file.sha256,
        version=None,
        tokenizer=tokenizer.name,
        note=note,
        num_texts=len(train) + len(val),
    )
    return ExampleStore(info, rows, val_rows, tokenizer, tuple(notes), template, tuple(labels))
