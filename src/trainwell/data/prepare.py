"""From a corpus to the tokens of a run: split, tokenised, stored once by content, and mapped into memory.

Knows no windows beyond their count, no order and no batches; takes the data settings by shape, not from `config`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from trainwell.data.corpora import Corpus, cache_folder, read_corpus
from trainwell.data.gigatokens import faster_gpt2
from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.manifest import DocumentIndex
from trainwell.data.parallel import encode_texts
from trainwell.data.shards import Tokens, open_shard, write_shard
from trainwell.data.stream import TokenStream
from trainwell.data.tokenizer import Tokenizer, load_tokenizer
from trainwell.errors import DataError, StorageError

_FORMAT = 1
"""Part of every fingerprint: raised when the same settings would give other tokens."""

OnProgress = Callable[[int, int], object]
"""Called with the characters that are tokenised, and with all."""


class SharedSettings(Protocol):
    """The part of the configuration that decides the data of every task; `DataConfig` has this shape."""

    @property
    def path(self) -> str | None:
        """The user's own text or file of records, or None."""

    @property
    def tokenizer(self) -> str:
        """The tokenizer's name or path."""

    @property
    def seq_len(self) -> int:
        """Tokens per sequence."""

    @property
    def val_fraction(self) -> float:
        """Share of the text or of the examples held out, in (0, 1)."""


class DataSettings(SharedSettings, Protocol):
    """The part of the configuration that decides the tokens; `DataConfig` has this shape."""

    @property
    def corpus(self) -> str | None:
        """A corpus by name, or None."""

    @property
    def split(self) -> Literal["auto", "tail", "documents"]:
        """How text is held out."""


@dataclass(frozen=True)
class StoreInfo:
    """What is known of prepared data without its tokens."""

    train_tokens: int
    """Tokens to train on, end-of-text ids included."""
    val_tokens: int
    """Tokens held out."""
    train_bytes: int
    """UTF-8 bytes of the training text; 0 where nobody counted them."""
    val_bytes: int
    """UTF-8 bytes of the validation text."""
    vocab_size: int
    """Ids of the tokenizer."""
    fingerprint: str
    """Hash of everything that decides the tokens: texts, their version, tokenizer and split."""
    corpus: str
    """The corpus' name, or the path it was read from."""
    corpus_sha256: str
    """Hash of the texts."""
    version: str | None
    """What else decides the text, such as the interpreter."""
    tokenizer: str
    """The tokenizer's name."""
    note: str | None
    """What a reader of results should know."""
    num_texts: int
    """Documents in the corpus."""


@dataclass(frozen=True)
class TokenStore:
    """Prepared data: two streams of ids, memory-mapped and read-only, with what is known of them."""

    info: StoreInfo
    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()
    """What was special about tokenising, where this call did it."""
    documents: DocumentIndex | None = None
    """Where the training text came from, of a store that was prepared with `data prepare`."""


def prepare(
    data: DataSettings,
    *,
    cache: Path | None = None,
    download: bool = False,
    on_progress: OnProgress | None = None,
) -> TokenStore:
    """Read, split and tokenise the text that `data` names, or open the result of an earlier call.

    The split comes before tokenising, so that no token spans it. Of several texts each is followed by an end-of-text
    id; a single text has none. While it tokenises, `on_progress` is told the characters done, and all.

    Raises DataError for text that cannot be used, ConfigError for names that do not exist, and StorageError if the
    cache cannot be written.
    """
    corpus = read_corpus(corpus=data.corpus, path=data.path, cache=cache, fetch=download)
    tokenizer = load_tokenizer(data.tokenizer, texts=corpus.texts)
    train_texts, val_texts = _split(corpus, data)
    fingerprint = _fingerprint(corpus, tokenizer, data)
    folder = cache_folder(cache) / "stores" / fingerprint[:32]
    notes = (
        () if folder.is_dir() else _tokenise(folder, corpus, tokenizer, on_progress, train=train_texts, val=val_texts)
    )
    train, val = (
        TokenStream([open_shard(folder / f"{part}.bin", vocab_size=tokenizer.vocab_size)]) for part in ("train", "val")
    )
    check_lengths(data, training=len(train), validation=len(val))
    info = StoreInfo(
        train_tokens=len(train),
        val_tokens=len(val),
        train_bytes=_bytes(train_texts),
        val_bytes=_bytes(val_texts),
        vocab_size=tokenizer.vocab_size,
        fingerprint=fingerprint,
        corpus=corpus.name,
        corpus_sha256=corpus.sha256,
        version=corpus.version,
        tokenizer=tokenizer.name,
        note=corpus.note,
        num_texts=len(corpus.texts),
    )
    return TokenStore(info, train, val, tokenizer, notes)


def _split(corpus: Corpus, data: DataSettings) -> tuple[list[str], list[str]]:
    """Divide the texts into those to train on and those held out; neither side is empty."""
    train, val = (_split_documents if _by_documents(corpus, data) else _split_tail)(corpus.texts, data.val_fraction)
    for name, texts in (("training", train), ("validation", val)):
        if not texts:
            raise DataError(
                f"the {name} set of {corpus.name} is empty: with data.val_fraction {data.val_fraction:g}, none of its "
                f"{len(corpus.texts)} texts and {sum(map(len, corpus.texts)):,} characters falls into it. "
                "Change data.val_fraction, give more text, or hold out the tail with data.split tail."
            )
    return train, val


def _by_documents(corpus: Corpus, data: DataSettings) -> bool:
    return data.split == "documents" or (data.split == "auto" and len(corpus.texts) > 1)


def _split_tail(texts: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Hold out the tail: of n characters over all texts, those from int((1 - val_fraction) n) on."""
    cut = int((1 - val_fraction) * sum(map(len, texts)))
    train: list[str] = []
    val: list[str] = []
    for text in texts:
        train.append(text[:cut])
        val.append(text[cut:])
        cut = max(0, cut - len(text))
    return [text for text in train if text], [text for text in val if text]


def _split_documents(texts: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Hold out each text by its own hash: copies stay together, and adding texts moves no other."""
    train: list[str] = []
    val: list[str] = []
    for text in texts:
        (val if is_held_out(key_of(text), val_fraction) else train).append(text)
    return train, val


def _fingerprint(corpus: Corpus, tokenizer: Tokenizer, data: DataSettings) -> str:
    split = "documents" if _by_documents(corpus, data) else "tail"
    deciding = [_FORMAT, corpus.sha256, corpus.version, tokenizer.identity, split, data.val_fraction]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()


def _end_of_text(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text is None:
        raise DataError(
            f"data.tokenizer: {tokenizer.name} has no end-of-text token (such as <|endoftext|> or </s>), which must "
            "follow each of several texts. Add one to it, or put the texts into one file."
        )
    return tokenizer.end_of_text


def _tokenise(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, on_progress: OnProgress | None, **parts: Sequence[str]
) -> tuple[str, ...]:
    """Write the store of the named groups of texts; return what is to be said of how it was done."""
    end = _end_of_text(tokenizer) if len(corpus.texts) > 1 else None
    faster = faster_gpt2(tokenizer, corpus.texts)
    done, total = 0, sum(map(len, corpus.texts))

    def count(characters: int) -> None:
        nonlocal done
        done += characters
        if on_progress is not None:
            on_progress(done, total)

    def encode(texts: Sequence[str]) -> Generator[Tokens]:
        return encode_texts(texts, tokenizer, end=end, encode=faster.encode, on_piece=count)

    _write_store(folder, tokenizer.vocab_size, {name: encode(texts) for name, texts in parts.items()})
    return () if faster.note is None else (faster.note,)


def _write_store(folder: Path, vocab_size: int, parts: Mapping[str, Generator[Tokens]]) -> None:
    """Write the ids of each named part into a shard; the folder appears whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for part, ids in parts.items():
            with closing(ids):  # ends its threads when writing fails
                write_shard(unfinished / f"{part}.bin", ids, vocab_size)
        _publish(unfinished, folder)
    except OSError as error:
        raise StorageError(
            f"the prepared tokens cannot be written to {folder}: {error.strerror}. "
            "Set TRAINWELL_CACHE_DIR to a folder with space that you may write to."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, folder: Path) -> None:
    """Give a finished store its name, unless another process was faster: its store is the same."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def check_lengths(data: DataSettings, **lengths: int) -> None:
    """Raise DataError where a set is shorter than one window."""
    needed = data.seq_len + 1
    short = [f"the {name} set has {length:,}" for name, length in lengths.items() if length < needed]
    if short:
        raise DataError(
            f"{' and '.join(short)} tokens, fewer than one window: data.seq_len {data.seq_len:,} inputs and a last "
            f"target are {needed:,}. Lower data.seq_len, change data.val_fraction, or give more text."
        )
