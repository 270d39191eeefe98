"""PURE. Which documents are held out: each by its own hash, so copies stay together, and adding some moves no other."""

from hashlib import blake2b


def key_of(text: str) -> bytes:
    """The eight bytes of a text's BLAKE2b hash, of its UTF-8, that decide it."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def is_held_out(key: bytes, share: float) -> bool:
    """Whether the document with this key is in the share that is held out."""
    return int.from_bytes(key, "little") / 2**64 < share
