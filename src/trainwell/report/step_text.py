"""The text of one step: which windows of the training text its batch holds, what they say and where they come from.

Asks the same pure functions as training does, so what is shown is what is learned from. Reads the prepared tokens, and
never torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.data.corpora import read_corpus
from trainwell.data.examples import IGNORED, ExampleStore
from trainwell.data.order import windows_at
from trainwell.data.prepare import TokenStore
from trainwell.data.tasks import Store, open_data
from trainwell.errors import ConfigError, DataError
from trainwell.planning.resolve import Plan

_MOST_DECODED = 1_000_000
"""Tokens that are decoded to say where in its text a window lies; past that the place is left out."""


@dataclass(frozen=True)
class Window:
    """One sequence of a batch."""

    example: int
    """Its place in the order in which the run takes them, from 0; what is skipped counts."""
    index: int
    """Its number among the windows of the training text."""
    epoch: int
    """The pass over the data it belongs to, from 0."""
    first_token: int | None
    """Place of its first token in the training part, of `seq_len` in all; None for a row of examples."""
    sources: tuple[str, ...]
    """The texts it reads, in order: a file, or the corpus."""
    place: int | None
    """Where it begins in the first of them, in `unit`; None where that is too far in to be counted."""
    unit: str
    """byte, or character."""
    text: str
    """Its inputs, decoded."""


@dataclass(frozen=True)
class StepText:
    """What a step reads: the number of every window of its batch, in order, and the first few of them in full."""

    indices: tuple[int, ...]
    windows: tuple[Window, ...]


def window_indices(plan: Plan, step: int) -> list[int]:
    """The windows of a step's global batch, in the order in which training takes them; the plan must know its data."""
    config, first = plan.config, plan.batch.first_example(step)
    found = windows_at(first, plan.batch.size(step), plan.num_windows, config.seed, config.data.order)
    return [int(index) for index in found]


def text_of_step(plan: Plan, step: int, *, most: int = 3) -> StepText:
    """Read the first `most` windows of a step.

    Raises DataError, in words that follow "the text cannot be shown: ", where there is no text, or not the one planned
    with.
    """
    store = _open(plan)
    indices = window_indices(plan, step)
    first = plan.batch.first_example(step)
    window = partial(_row, store) if isinstance(store, ExampleStore) else _Places(plan.config, store).window
    shown = [
        window(first + number, index, (first + number) // plan.num_windows, plan)
        for number, index in enumerate(indices[:most])
    ]
    return StepText(tuple(indices), tuple(shown))


def _row(store: ExampleStore, example: int, index: int, epoch: int, plan: Plan) -> Window:
    """Describe a row of examples: what is read up to its last target, and of it what is learned."""
    inputs, targets = store.train[index]
    return Window(
        example=example,
        index=index,
        epoch=epoch,
        first_token=None,
        sources=(store.info.corpus,),
        place=None,
        unit="",
        text=_labelled(store, inputs, targets) if store.labels else _marked(store, inputs, targets),
    )


def _labelled(store: ExampleStore, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> str:
    last = int(np.flatnonzero(targets != IGNORED)[-1])
    return f"[{store.labels[int(targets[last])]}] {store.tokenizer.decode(inputs[: last + 1].tolist())}"


def _marked(store: ExampleStore, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> str:
    """The text of a row with » and « around what is learned: that is what stands one place later as a target."""
    learned = np.concatenate([[False], targets != IGNORED])
    ids = np.concatenate([inputs, targets[-1:]])[: int(np.flatnonzero(learned)[-1]) + 1]
    borders = [0, *(np.flatnonzero(np.diff(learned[: len(ids)])) + 1).tolist(), len(ids)]
    last = targets[len(ids) - 2]
    ids[-1] = last  # of the last target nothing is read
    pieces = [store.tokenizer.decode(ids[begin:end].tolist()) for begin, end in pairwise(borders)]
    return "".join(f"»{piece}«" if learned[begin] else piece for piece, begin in zip(pieces, borders, strict=False))


def _open(plan: Plan) -> Store:
    """The prepared text of a plan, or why it cannot be had."""
    given = plan.config.custom.get("data")
    if given is not None:
        raise DataError(f"the data was given in Python, by {given}")
    if checks.training_problems(plan.config):
        raise DataError("the recipe has none of its own; give yours with --data.path TEXT")
    try:
        store = open_data(plan.config.task, plan.config.data)
    except (ConfigError, DataError) as error:
        raise DataError(str(error)) from None
    if plan.info is None:
        raise DataError("the run did not record which text it read")
    if store.info.fingerprint != plan.info.fingerprint:
        now, then = store.info, plan.info
        raise DataError(
            f"{now.corpus} is not what the run read: it has {now.train_tokens:,} training tokens and the fingerprint "
            f"{now.fingerprint[:12]} now, {then.train_tokens:,} and {then.fingerprint[:12]} then"
        )
    return store


class _Places:
    """Where windows lie in the texts of a store. Of several texts each ends with an id that stands nowhere else."""

    def __init__(self, config: RunConfig, store: TokenStore) -> None:
        self._data = config.data
        self._stride = config.data.stride or config.data.seq_len
        self._store = store
        self._starts = np.concatenate([[0], self._ends()])
        several = store.documents is None and store.info.num_texts > 1
        self._texts = dict(self._read()) if several else {}

    def _ends(self) -> NDArray[np.int64]:
        """Places behind the ends of documents; of a single text there are none."""
        store = self._store
        if store.documents is not None:
            return store.documents.ends
        if store.info.num_texts > 1:
            return np.flatnonzero(store.train[:] == store.tokenizer.end_of_text) + 1
        return np.array([], dtype=np.int64)

    def window(self, example: int, index: int, epoch: int, plan: Plan) -> Window:
        """Describe the window `index`, which the run reads as `example`."""
        first, last = index * self._stride, index * self._stride + plan.seq_len - 1
        documents = np.searchsorted(self._starts, [first, last], side="right") - 1
        begin = int(self._starts[documents[0]])
        place, unit = self._place(begin, first)
        return Window(
            example=example,
            index=index,
            epoch=epoch,
            first_token=first,
            sources=tuple(self._source(number) for number in range(int(documents[0]), int(documents[1]) + 1)),
            place=place,
            unit=unit,
            text=self._decode(first, last + 1),
        )

    def _read(self) -> Iterator[tuple[str, str]]:
        """Every text and its file; of copies the first."""
        corpus = read_corpus(corpus=self._data.corpus, path=self._data.path)
        yield from reversed(list(zip(corpus.texts, corpus.sources, strict=True)))

    def _source(self, document: int) -> str:
        """The file of a document of the training part, found by what it says: only its last may be cut off."""
        if self._store.documents is not None:
            return self._store.documents.source(document)
        if not self._texts:
            return self._store.info.corpus
        begin = int(self._starts[document])
        ends = self._starts[document + 1 :]
        said = self._decode(begin, int(ends[0]) - 1 if len(ends) else len(self._store.train))
        whole = self._texts.get(said)
        if whole is not None:
            return whole
        cut = [source for text, source in self._texts.items() if said and text.startswith(said)]
        return cut[-1] if cut else f"text {document} of the training part"

    def _place(self, begin: int, at: int) -> tuple[int | None, str]:
        """How far into its text a window begins, and in which unit."""
        name = self._store.tokenizer.name
        if name in {"bytes", "chars"}:
            return at - begin, "byte" if name == "bytes" else "character"
        return (len(self._decode(begin, at)) if at - begin <= _MOST_DECODED else None), "character"

    def _decode(self, first: int, end: int) -> str:
        ids: Sequence[int] = self._store.train[first:end].tolist()
        return self._store.tokenizer.decode(ids)
