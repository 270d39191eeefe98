"""Token files on disk as the data of a run, read in place: which are held out, and whether the ids fit the tokenizer.

Every byte of them is read once, to know them again; what was found is kept in the cache, by path, size and time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainwell.data.corpora import TEXT_SUFFIXES, cache_folder
from trainwell.data.manifest import MANIFEST, PARTS, PLAN, is_whole, read_index, read_json, write_json
from trainwell.data.prepare import DataSettings, OnProgress, StoreInfo, TokenStore, check_lengths
from trainwell.data.shards import Tokens, open_shard
from trainwell.data.stream import TokenStream
from trainwell.data.token_bytes import count_bytes
from trainwell.data.token_files import TokenFile, open_token_file, token_paths
from trainwell.data.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, DataError

_FORMAT = 1
"""Part of every fingerprint: raised when the same files would give other tokens."""
_BLOCK = 2**23


@dataclass(frozen=True)
class Contents:
    """What was found in a file of ids."""

    sha256: str
    """Of the ids as they are stored."""
    largest: int


@dataclass(frozen=True)
class Halves:
    """The files of a store, those to train on and those held out; of none the end of the others is."""

    train: tuple[TokenFile, ...]
    val: tuple[TokenFile, ...]


def is_store(path: str | None) -> bool:
    """Whether a path is a store of ours, a file of ids, or a folder of them without text, or with a train.bin."""
    if path is None:
        return False
    place = Path(path).expanduser()
    if is_whole(place) or (place / PLAN).is_file():
        return True
    found = token_paths(place)
    if not place.is_dir() or not found:
        return bool(found)
    named = any("train" in file.stem.lower() for file in found)
    return named or not any(file.suffix.lower() in TEXT_SUFFIXES for file in place.iterdir())


def open_files(path: Path, vocab_size: int | None) -> Halves:
    """Map the files of a store, its own manifest's where it has one; DataError where one is damaged."""
    if (path / PLAN).is_file():
        raise DataError(f"{path} is not finished. Run `trainwell data prepare` as before: it goes on where it was.")
    if is_whole(path):
        shards = read_json(path / MANIFEST)["shards"]
        by_part = {
            part: tuple(open_token_file(path / f"{shard['name']}.bin") for shard in shards if shard["part"] == part)
            for part in PARTS
        }
        return Halves(by_part["train"], by_part["val"])
    files = [open_token_file(file, vocab_size) for file in token_paths(path)]
    held_out = tuple(file for file in files if file.is_held_out)
    train = tuple(file for file in files if not file.is_held_out)
    if not train:
        raise DataError(f"{path} has files to validate on and none to train on. Name those train_*.bin.")
    return Halves(train, held_out)


def open_store(data: DataSettings, *, cache: Path | None = None, on_progress: OnProgress | None = None) -> TokenStore:
    """Open the token files at `data.path`; `on_progress` is told the ids that were looked at, and all.

    Raises DataError for files that are damaged or hold ids of another tokenizer, ConfigError for settings that ids
    cannot follow.
    """
    path, tokenizer = Path(str(data.path)).expanduser(), _tokenizer(data)
    manifest = read_json(path / MANIFEST) if is_whole(path) else None
    if manifest is not None and manifest["tokenizer"]["identity"] != tokenizer.identity:
        raise ConfigError(_other_tokenizer(path, manifest, tokenizer))
    halves = open_files(path, tokenizer.vocab_size)
    files = (*halves.train, *halves.val)
    found = look_into(files, cache=cache, on_progress=on_progress)
    for file, contents in zip(files, found, strict=True):
        _check_range(file, contents, tokenizer)
    train, val = _streams(halves, data)
    check_lengths(data, training=len(train), validation=len(val))
    held_out = "files" if halves.val else data.val_fraction
    deciding = [_FORMAT, [each.sha256 for each in found], len(halves.train), held_out, tokenizer.identity]
    info = StoreInfo(
        train_tokens=len(train),
        val_tokens=len(val),
        train_bytes=0 if manifest is None else manifest["train"]["bytes"],
        val_bytes=count_bytes(val, tokenizer),
        vocab_size=tokenizer.vocab_size,
        fingerprint=hashlib.sha256(json.dumps(deciding).encode()).hexdigest(),
        corpus=str(data.path),
        corpus_sha256=hashlib.sha256("\n".join(each.sha256 for each in found).encode()).hexdigest(),
        version=None,
        tokenizer=tokenizer.name,
        note=None,
        num_texts=1 if manifest is None else manifest["train"]["documents"] + manifest["val"]["documents"],
    )
    index = None if manifest is None else read_index(path, manifest, "train")
    return TokenStore(info, train, val, tokenizer, documents=index)


def _other_tokenizer(path: Path, manifest: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    name = manifest["tokenizer"]["name"]
    known = name if name in TOKENIZERS else f"{path}/tokenizer.json"
    return f"data.tokenizer: {path} was prepared with {name}, not {tokenizer.name}; give --data.tokenizer {known}"


def _tokenizer(data: DataSettings) -> Tokenizer:
    if data.tokenizer == "chars":
        raise ConfigError(
            f"data.tokenizer: chars takes its alphabet from a text, and {data.path} holds ids. Name the tokenizer that "
            "made them: bytes, gpt2, or the path of its tokenizer.json."
        )
    return load_tokenizer(data.tokenizer)


def _check_range(file: TokenFile, contents: Contents, tokenizer: Tokenizer) -> None:
    if contents.largest >= tokenizer.vocab_size:
        raise DataError(
            f"{file.path} holds the id {contents.largest:,}, and {tokenizer.name} has ids up to "
            f"{tokenizer.vocab_size - 1:,}. Name the tokenizer that made the file with data.tokenizer: gpt2, or the "
            "path of its tokenizer.json."
        )


def _streams(halves: Halves, data: DataSettings) -> tuple[TokenStream, TokenStream]:
    """What to train on, and what is held out: the files that are named so, or the end of all others."""
    train = TokenStream([file.ids for file in halves.train])
    if halves.val:
        return train, TokenStream([file.ids for file in halves.val])
    if data.split == "documents":
        raise ConfigError(
            f"data.split: documents cannot be told apart in {data.path}. Hold out the tail with data.split tail, or "
            "give files of their own, named val_*.bin."
        )
    cut = int((1 - data.val_fraction) * len(train))
    return train.between(0, cut), train.between(cut, len(train))


def look_into(
    files: Sequence[TokenFile], *, cache: Path | None = None, on_progress: OnProgress | None = None
) -> list[Contents]:
    """Read every id of `files`, but of a file that was looked into before and has not changed since."""
    total, done, found = sum(len(file.ids) for file in files), 0, []
    for file in files:
        note = _note(file.path, cache)
        known = _noted(note)
        if known is None:
            if file.layout == "trainwell":
                open_shard(file.path)  # every byte against its own hash
            known = _looked(file.ids, on_progress, done, total)
            _keep(note, known)
        found.append(known)
        done += len(file.ids)
    return found


def _looked(ids: Tokens, on_progress: OnProgress | None, done: int, total: int) -> Contents:
    digest, largest = hashlib.sha256(), 0
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        digest.update(np.ascontiguousarray(block).data)
        largest = max(largest, int(block.max()))
        if on_progress is not None:
            on_progress(done + start + len(block), total)
    return Contents(digest.hexdigest(), largest)


def _note(file: Path, cache: Path | None) -> Path:
    status = file.stat()
    known_by = json.dumps([str(file.resolve()), status.st_size, status.st_mtime_ns])
    return cache_folder(cache) / "token-files" / f"{hashlib.sha256(known_by.encode()).hexdigest()[:32]}.json"


def _noted(note: Path) -> Contents | None:
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        return Contents(str(said["sha256"]), int(said["largest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(note: Path, contents: Contents) -> None:
    """Keep what was found, where that can be written: without it the file is read again next time."""
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, asdict(contents))
