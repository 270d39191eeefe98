"""Where text comes from: corpora by name, and the user's own files.

Knows no tokens. Text is exactly what the files hold, line ends included; only a byte order mark is dropped.
"""

import difflib
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainwell.errors import ConfigError, DataError
from trainwell.runs import mirror

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TEXT_SUFFIXES = {".txt", ".md"}
_EMBEDDED = "python-docs"


@dataclass(frozen=True)
class Corpus:
    """Texts and their origin."""

    name: str
    """The corpus' name, or the path it was read from."""
    texts: tuple[str, ...]
    """The documents, in the order of `sources`."""
    sources: tuple[str, ...]
    """Where each text is from: a file, or a name."""
    version: str | None = None
    """What else decides the text: the interpreter, for python-docs."""
    note: str | None = None
    """What a reader of results should know."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the content: of the text, as sha256sum gives it for its file; of the texts' hashes if several."""
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in self.texts]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class _PublishedFile:
    """A text on the web, pinned by its hash."""

    filename: str
    url: str
    sha256: str


_PUBLISHED = {
    "tiny-shakespeare": _PublishedFile(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "verdict": _PublishedFile(
        "the-verdict.txt",
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
    ),
}
CORPORA = (_EMBEDDED, *_PUBLISHED)


def read_corpus(
    *, corpus: str | None = None, path: str | None = None, cache: Path | None = None, fetch: bool = False
) -> Corpus:
    """Read a corpus by name, or the text file or folder at `path`: exactly one of the two.

    A published text is looked for in TRAINWELL_DATA_DIR, then in the cache; it is downloaded if `fetch`, or
    TRAINWELL_DOWNLOAD=1, allows it. Raises DataError for text that is missing, empty, changed or not UTF-8, ConfigError
    for an unknown name.
    """
    if path is not None and corpus is None:
        return _read_path(path)
    if corpus is None or path is not None:
        raise ConfigError(
            f"data.corpus is {corpus or 'null'} and data.path is {path or 'null'}: give exactly one of them. "
            f"Corpora: {', '.join(CORPORA)}."
        )
    if corpus == _EMBEDDED:
        return _python_docs()
    file = _locate(corpus, cache, fetch=fetch)
    return Corpus(corpus, (_read_text(file),), (str(file),))


def file_name(corpus: str) -> str | None:
    """The file in TRAINWELL_DATA_DIR that holds a published corpus; None for one that needs no file."""
    return _PUBLISHED[corpus].filename if corpus in _PUBLISHED else None


def cache_folder(cache: Path | None = None) -> Path:
    """Name the folder of downloads and prepared tokens: `cache`, else TRAINWELL_CACHE_DIR, else the user's own."""
    return mirror.cache_folder() if cache is None else cache


def download(name: str, *, cache: Path | None = None) -> Path:
    """Fetch a published corpus into the cache, check its SHA-256 and return the file.

    Raises DataError when the text cannot be fetched or is not the one expected, ConfigError for an unknown name.
    """
    import pooch

    published = _published(name)
    folder = cache_folder(cache) / "corpora"
    try:
        fetched = pooch.retrieve(published.url, f"sha256:{published.sha256}", fname=published.filename, path=folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.corpus: {name} could not be downloaded from {published.url}: {error}. "
            f"Without a connection, copy the text to {folder / published.filename}."
        ) from error
    return Path(fetched)


def _published(name: str) -> _PublishedFile:
    if name in _PUBLISHED:
        return _PUBLISHED[name]
    near = difflib.get_close_matches(name, CORPORA, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"data.corpus: there is no corpus {name!r}.{hint} Corpora: {', '.join(CORPORA)}; data.path reads your own text."
    )


def _locate(name: str, cache: Path | None, *, fetch: bool) -> Path:
    """Find the file of a published corpus, checked against its hash."""
    published = _published(name)
    folders = [cache_folder(cache) / "corpora"]
    if data_dir := os.environ.get("TRAINWELL_DATA_DIR"):
        folders.insert(0, Path(data_dir).expanduser())
    for folder in folders:
        file = folder / published.filename
        if file.is_file():
            _check_hash(file, published.sha256)
            return file
    if fetch or os.environ.get("TRAINWELL_DOWNLOAD") == "1":
        return download(name, cache=cache)
    looked = " and ".join(str(folder) for folder in folders)
    raise DataError(
        f"data.corpus: {name} is not on this machine (looked for {published.filename} in {looked}). "
        "Allow the download with TRAINWELL_DOWNLOAD=1 (train takes --download too), or set TRAINWELL_DATA_DIR to the "
        "folder that holds the file."
    )


def _check_hash(file: Path, expected: str) -> None:
    found = hashlib.sha256(_read_bytes(file)).hexdigest()
    if found != expected:
        raise DataError(
            f"{file} is not the text expected: its SHA-256 is {found} instead of {expected}. "
            "Remove it to look elsewhere, or read it as your own text with data.path."
        )


def _python_docs() -> Corpus:
    """Read the language reference that the interpreter carries for help()."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "data.corpus: this Python came without pydoc_data.topics, the text of python-docs. "
            "Use data.path with your own text, or another corpus."
        ) from error
    return Corpus(
        name=_EMBEDDED,
        texts=("\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n",),
        sources=("pydoc_data.topics",),
        version=f"{platform.python_implementation()} {platform.python_version()}",
        note="its topics quote each other: validation on it is for looking, not for claims",
    )


def _read_path(path: str) -> Corpus:
    root = Path(path).expanduser()
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = sorted(_text_files(root), key=lambda file: file.relative_to(root).as_posix())
    else:
        raise DataError(
            f"data.path: {path} does not exist (looked in {Path.cwd()}). Give a text file or a folder of them."
        )
    texts = {str(file): text for file in files if (text := _read_text(file))}
    if not texts:
        what = "is empty" if root.is_file() else f"holds no text in its {len(files)} .txt and .md files"
        raise DataError(f"data.path: {path} {what}. Give UTF-8 text: a file, or a folder of .txt and .md files.")
    return Corpus(path, tuple(texts.values()), tuple(texts))


def _text_files(root: Path) -> Iterator[Path]:
    """Find the text files under `root`, leaving out what is hidden, such as .git and .venv."""
    for file in root.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.suffix.lower() in TEXT_SUFFIXES and not hidden and file.is_file():
            yield file


def _read_text(file: Path) -> str:
    raw = _read_bytes(file)
    start = len(_BYTE_ORDER_MARK) if raw.startswith(_BYTE_ORDER_MARK) else 0
    try:
        return raw[start:].decode()
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise DataError(
            f"{file} is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset:,}, {error.reason}. "
            "Convert it first, for example with: iconv -f latin1 -t utf-8"
        ) from error


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
