"""Several arrays of ids as one: the shards of a store, each mapped into memory, never copied together.

Knows arrays, no files and no windows.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Ids = NDArray[np.unsignedinteger[Any]]


class TokenStream:
    """The ids of `parts`, each of shape (n,) and of one type, one after the other."""

    def __init__(self, parts: Sequence[Ids]) -> None:
        self.parts = tuple(part for part in parts if len(part))
        self.dtype = np.result_type(*(part.dtype for part in parts)) if parts else np.dtype(np.uint16)
        self._starts = np.cumsum([0, *map(len, self.parts)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Ids: ...
    def __getitem__(self, place: int | slice) -> int | Ids:
        """The id at a place, or those of a stretch: a view where one part holds it, else a copy."""
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self))
            return self._stretch(begin, max(begin, end))[::step]
        at = range(len(self))[place]
        part = self._part(at)
        return int(self.parts[part][at - self._starts[part]])

    def between(self, begin: int, end: int) -> "TokenStream":
        """The ids from `begin` up to `end` as a stream, of the same memory."""
        return TokenStream(
            [
                part[max(0, begin - start) : max(0, end - start)]
                for part, start in zip(self.parts, self._starts.tolist(), strict=False)
            ]
        )

    def rows(self, starts: NDArray[np.int64], span: int) -> Ids:
        """The `span` ids from each of `starts`, shape (len(starts), span); all must lie inside."""
        if len(self.parts) == 1 and len(starts):
            return sliding_window_view(self.parts[0], span)[starts]
        found = np.empty((len(starts), span), self.dtype)
        parts = np.searchsorted(self._starts, starts, side="right") - 1
        whole = starts + span <= self._starts[np.minimum(parts + 1, len(self.parts))]
        for part in np.unique(parts[whole]):
            mine = whole & (parts == part)
            found[mine] = sliding_window_view(self.parts[part], span)[starts[mine] - self._starts[part]]
        for row in np.flatnonzero(~whole):
            found[row] = self._stretch(int(starts[row]), int(starts[row]) + span)
        return found

    def _part(self, place: int) -> int:
        return int(np.searchsorted(self._starts, place, side="right")) - 1

    def _stretch(self, begin: int, end: int) -> Ids:
        if begin >= end:
            return np.empty(0, self.dtype)
        first, last = self._part(begin), self._part(end - 1)
        cuts = [
            self.parts[part][max(0, begin - self._starts[part]) : end - self._starts[part]]
            for part in range(first, last + 1)
        ]
        return cuts[0] if len(cuts) == 1 else np.concatenate(cuts)
