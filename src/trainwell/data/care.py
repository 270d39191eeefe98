"""What is wrong with raw text, and what becomes of it: refused, left out or repaired, always counted and named.

Knows text and bytes, no files.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from trainwell.errors import DataError

OnError = Literal["refuse", "skip", "repair"]
_MOST_NAMED = 5
_BOM = "\ufeff"


@dataclass
class Care:
    """A policy, and what it met so far."""

    on_error: OnError = "refuse"
    longest: int = 100_000_000
    """Bytes of a document at most."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each kind was met."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """Of each kind the first few places."""

    def met(self, kind: str, where: str) -> None:
        """Count something that loses nothing, such as a byte order mark."""
        self.counts[kind] += 1
        places = self.named.setdefault(kind, [])
        if len(places) < _MOST_NAMED:
            places.append(where)

    def bad(self, kind: str, where: str, *, mended: str = "left out") -> None:
        """Count something that is wrong, or raise DataError if that is the policy."""
        if self.on_error == "refuse":
            raise DataError(
                f"{where}: {kind}. Mend it, or choose with --on-error: skip leaves such documents out, repair mends "
                "what it can; both count them and name the first few."
            )
        self.met(f"{kind}: {mended if self.on_error == 'repair' else 'left out'}", where)

    def add(self, other: "Care") -> None:
        """Count what another met as well."""
        for kind, count in other.counts.items():
            self.counts[kind] += count
            self.named[kind] = (self.named.get(kind, []) + other.named.get(kind, []))[:_MOST_NAMED]

    def decoded(self, raw: bytes, where: str) -> str | None:
        """The text of UTF-8 bytes; None for what is left out."""
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            place = f"{where}, byte 0x{raw[error.start]:02x} at offset {error.start:,}"
            self.bad("not UTF-8", place, mended="replaced by U+FFFD")
            if self.on_error == "skip":
                return None
            text = raw.decode(errors="replace")
        return self.checked(text, where)

    def checked(self, text: str, where: str) -> str | None:
        """A text as it may be tokenised: whole characters, no NUL, not empty, not too long; None for what is not."""
        if text.startswith(_BOM):
            self.met("byte order mark: dropped", where)
            text = text[1:]
        if "\0" in text:
            self.bad("NUL characters", where, mended="dropped")
            if self.on_error == "skip":
                return None
            text = text.replace("\0", "")
        if not text.isascii() and _has_half_characters(text):
            self.bad("half a character", where, mended="replaced by U+FFFD")
            if self.on_error == "skip":
                return None
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not text:
            self.met("empty document: left out", where)
            return None
        if len(text) > self.longest // 4 and len(text.encode()) > self.longest:
            self.bad(self.too_long, where)
            return None
        return text

    def text_in(self, value: object, name: str, where: str) -> str | None:
        """The text in the field `name`; None for what is left out."""
        if not isinstance(value, str):
            self.bad(f"no text in the field {name!r}", where)
            return None
        return self.checked(value, where)

    @property
    def too_long(self) -> str:
        """The kind of what has more bytes than a document may have."""
        return f"over {self.longest:,} bytes in one document"


def _has_half_characters(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
