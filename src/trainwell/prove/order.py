"""The proof that each window comes once in an epoch: what the run's own batches deliver is counted, by its content.

No model is asked; rows are told apart by the ids they hold.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from trainwell.data.batches import Batch, Examples, stack
from trainwell.data.examples import IGNORED
from trainwell.given import Data
from trainwell.prove.twins import Twins
from trainwell.prove.verdict import Outcome, skip
from trainwell.run import Run

MOST_POSITIONS = 2**22
"""An epoch of at most so many tokens is seen through; of larger data, its beginning is taken as the data."""
_AT_ONCE = 256


class Beginning:
    """The first `count` of some examples."""

    def __init__(self, examples: Examples, count: int) -> None:
        self._examples = examples
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._examples[index]


def order(twins: Twins) -> Outcome:
    """Each window comes once in an epoch, over two of them, as the run's own batches deliver it."""
    if twins.streams:
        return skip("the loader given in Python has an order of its own")
    taken: list[Data] = []

    def cut_down(data: Data) -> Data:
        assert isinstance(data.train, Examples), "streams are not proved"
        most = max(1, MOST_POSITIONS // twins.plan.seq_len)
        taken.append(data if len(data.train) <= most else replace(data, train=Beginning(data.train, most)))
        return taken[0]

    with twins.run("order", {"data.skip": None, "batch_ramp.from_tokens": None}, cut_down=cut_down) as run:
        examples = taken[0].train
        assert isinstance(examples, Examples), "streams are not proved"
        steps = -(-2 * len(examples) // run.plan.batch.batch_size)
        problem = _first_problem(run, examples, steps)
    said = f"two epochs of {len(examples):,} {run.plan.rows} in {steps:,} steps, counted by content"
    said += ", the first of the data" if isinstance(examples, Beginning) else ""
    said += ", data.skip left out" if twins.config.data.skip else ""
    if problem is None:
        return Outcome(True, "exact count", said)
    return Outcome(False, "exact count", f"{problem[1]}; {said}", problem[0], "the windows of its batch")


def _first_problem(run: Run, examples: Examples, steps: int) -> tuple[int, str] | None:
    """The first step with a window too many, or after which an epoch has ended and one is missing; and what it is."""
    times, seen = Counter(_of_examples(examples)), Counter[bytes]()
    consumed, size = 0, run.plan.batch.batch_size
    for step in range(steps):
        rows = list(_of_batch(run.batches(step), size))
        if len(rows) != size:
            return step, f"its batch has {len(rows)} {run.plan.rows}, and {size} are planned"
        ended = (consumed + size) // len(examples)
        begun = -(-(consumed + size) // len(examples))
        seen.update(rows)
        for row in rows:
            if seen[row] > begun * times[row]:
                return step, "a window comes again in its epoch" if times[row] else "a window is none of the data's"
        if ended > consumed // len(examples):
            missing = sum(seen[row] < ended * count for row, count in times.items())
            if missing:
                return step, f"epoch {ended} ends with it, and {missing} {run.plan.rows} have not been there"
        consumed += size
    return None


def _of_batch(batch: Batch, size: int) -> Iterator[bytes]:
    """The rows of a batch, without the filler that makes micro-batches even."""
    for micro in batch.micro_batches:
        inputs, targets = micro.inputs.cpu(), micro.targets.cpu()
        for place in range(min(len(inputs), size - micro.index)):
            yield _content(inputs[place], targets[place])


def _of_examples(examples: Examples) -> Iterator[bytes]:
    for start in range(0, len(examples), _AT_ONCE):
        rows = stack(examples, np.arange(start, min(start + _AT_ONCE, len(examples))))
        for inputs, targets in zip(rows.inputs, rows.targets, strict=True):
            yield _content(inputs, targets)


def _content(inputs: Tensor, targets: Tensor) -> bytes:
    """A row up to its last target: what comes after is filler, whose length depends on its neighbours."""
    counted = (targets != IGNORED).nonzero()
    end = int(counted[-1]) + 1 if len(counted) else 0
    return inputs[:end].numpy().tobytes() + targets[:end].numpy().tobytes()
