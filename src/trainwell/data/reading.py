"""What a reader of raw files is asked, and what it gives."""

from dataclasses import dataclass
from typing import NamedTuple

from trainwell.data.care import Care


class Document(NamedTuple):
    """A text, or a part of a long one, and where it stands in its file."""

    place: int
    """Its line, from 1; in an array or a table of columns its number, from 0; 0 for a file that is one document."""
    text: str
    key: bytes | None = None
    """Eight bytes of the BLAKE2b hash of its UTF-8 bytes, where the reader knows it: of parts, that of the whole."""
    goes_on: bool = False
    """Whether the next is the same document."""


@dataclass(frozen=True)
class Reading:
    """How documents are read."""

    text_field: str
    care: Care
