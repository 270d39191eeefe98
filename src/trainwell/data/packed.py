"""Files as they are, or unpacked from gzip or Zstandard, as one stream of bytes.

Knows no format of what is in them.
"""

import gzip
import io
from typing import Any, BinaryIO

from trainwell.data.inputs import Source
from trainwell.errors import DataError

_BLOCK = 2**20
_BOMB_BYTES, _BOMB_RATIO = 2**30, 500


class _Counted(io.RawIOBase):
    """What a packed file holds, until it is more than any text packs to: then it was made to fill memory or disks."""

    def __init__(self, inner: Any, source: Source) -> None:
        self._inner, self._source, self._total = inner, source, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = int(self._inner.readinto(buffer))
        self._total += read
        if self._total > max(_BOMB_BYTES, _BOMB_RATIO * self._source.size):
            raise DataError(
                f"{self._source.name} has {self._source.size:,} bytes and unpacks to over {self._total:,}: that is no "
                "text. Leave it out; or unpack it, and give what it holds."
            )
        return read


def opened(source: Source) -> BinaryIO:
    """What a file holds, unpacked; DataError while it is read where it unpacks to more than text can."""
    if source.packed == ".gz":
        return io.BufferedReader(_Counted(gzip.open(source.path, "rb"), source), _BLOCK)
    if source.packed == ".zst":
        return io.BufferedReader(_Counted(arrow().input_stream(str(source.path), compression="zstd"), source), _BLOCK)
    return source.path.open("rb", buffering=_BLOCK)


def arrow() -> Any:
    """The package pyarrow, which takes a third of a second to import."""
    import pyarrow

    return pyarrow
