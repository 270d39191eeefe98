"""PURE. What a stream of ids holds: which ids, and how long its documents are.

Knows ids, no files and no text.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainwell.data.prepare import OnProgress
from trainwell.data.stream import TokenStream

_BLOCK = 2**22


@dataclass(frozen=True)
class Survey:
    """What was found in a stream."""

    num_tokens: int
    smallest: int
    largest: int
    num_used: int
    """How many different ids there are."""
    lengths: NDArray[np.int64]
    """Of each document, in order, its ids without the one that parts it from the next; empty ones are left out."""

    def histogram(self) -> list[tuple[int, int, int]]:
        """Documents by length: from, up to, how many; each class twice as wide as the one before."""
        if not len(self.lengths):
            return []
        classes = np.floor(np.log2(self.lengths)).astype(np.int64)
        first, last = int(classes.min()), int(classes.max())
        return [(2**each, 2 ** (each + 1) - 1, int((classes == each).sum())) for each in range(first, last + 1)]


def survey(
    stream: TokenStream, end_of_text: int | None, on_progress: OnProgress | None = None, *, block: int = _BLOCK
) -> Survey:
    """Read a stream once, so many ids at a time; `end_of_text` parts its documents, before or behind each.

    It must hold at least one id.
    """
    seen, places = np.zeros(1, dtype=np.bool_), [np.array([-1], dtype=np.int64)]
    for start in range(0, len(stream), block):
        ids = stream[start : start + block]
        largest = int(ids.max())
        if largest >= len(seen):
            seen = np.concatenate([seen, np.zeros(largest + 1 - len(seen), dtype=np.bool_)])
        seen[ids] = True
        if end_of_text is not None:
            places.append(np.flatnonzero(ids == end_of_text) + start)
        if on_progress is not None:
            on_progress(start + len(ids), len(stream))
    used = np.flatnonzero(seen)
    lengths = np.diff(np.concatenate([*places, np.array([len(stream)])])) - 1
    return Survey(len(stream), int(used[0]), int(used[-1]), len(used), lengths[lengths > 0])
