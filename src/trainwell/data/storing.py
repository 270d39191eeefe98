"""A token store made from raw text: in shards, each of which appears whole or not at all, and ends with a document.

So whoever is killed goes on behind the last one, and any number of processes may share the work. See `manifest` for
what is in a store.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trainwell.data.care import Care, OnError
from trainwell.data.gigatokens import Faster, faster_gpt2
from trainwell.data.inputs import find_sources
from trainwell.data.manifest import (
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    PARTS,
    PLAN,
    UNITS,
    is_whole,
    read_json,
    sha256_of,
    write_json,
    write_whole,
)
from trainwell.data.parallel import Encode, next_cut
from trainwell.data.readers import read_documents
from trainwell.data.reading import Document, Reading
from trainwell.data.shards import Tokens, token_dtype, write_shard
from trainwell.data.tokenizer import Gpt2Tokenizer, Tokenizer, load_tokenizer
from trainwell.data.units import Encoded, EncodeEnded, Part, encode_pieces, ended, pieces_of, units_of
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.runs import processors

_SAMPLE = 4_500_000


@dataclass(frozen=True)
class Options:
    """What decides the ids of a store, besides its inputs."""

    tokenizer: str = "gpt2"
    text_field: str = "text"
    val_fraction: float = 0.005
    shard_tokens: int = 100_000_000
    on_error: OnError = "refuse"


@dataclass(frozen=True)
class Progress:
    """How far a preparation has come."""

    bytes_read: int
    """Of the files of this process, as they lie on disk."""
    bytes_total: int
    text_bytes: int
    """UTF-8 bytes of text that were tokenised by this process."""


@dataclass
class _Side:
    """What waits to be written of one part of a unit."""

    arrays: list[Tokens] = field(default_factory=list)
    tokens: int = 0
    counted: int = 0
    size: int = 0
    documents: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, ids: Tokens) -> None:
        self.arrays.append(ids)
        self.tokens += len(ids)


@dataclass
class _Unit:
    """What a unit has come to: saved after each shard."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    taken: int = 0
    """Pieces that are in shards."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, Any] = field(default_factory=dict)
    done: bool = False


class Preparation:
    """The making of one store, or of a share of it."""

    def __init__(self, inputs: Sequence[str], out: Path, options: Options, share: tuple[int, int] = (0, 1)) -> None:
        """Look at the inputs and at what is in `out`; raise ConfigError or DataError for what cannot be."""
        self.out, self.options = out, options
        self._found = Care(options.on_error)
        self.sources = find_sources(inputs, self._found)
        self.units = units_of(self.sources, options.shard_tokens)
        self.own = range(share[0], len(self.units), share[1])
        self.tokenizer = _tokenizer(options.tokenizer)
        self._dtype = token_dtype(self.tokenizer.vocab_size)
        self._plan = {
            "format": FORMAT,
            "options": asdict(options),
            "tokenizer": self.tokenizer.identity,
            "sources": [[source.name, source.size] for source in self.sources],
        }
        self.notes: list[str] = []
        self._refuse_another()

    @property
    def is_done(self) -> bool:
        """Whether the store is whole."""
        return is_whole(self.out)

    def left(self) -> list[int]:
        """The units that are not done, by whomever."""
        if self.is_done:
            return []
        return [number for number in range(len(self.units)) if not self._unit(number).done]

    def progress(self) -> Progress:
        """How far the whole store is, by what is on disk."""
        read = text = 0
        for number, members in enumerate(self.units):
            size = sum(self.sources[source].size for source in members)
            try:
                unit = self._unit(number)
            except StorageError:  # the store is whole since, and this file is gone
                break
            inside = sum(each["bytes"] for each in unit.sources.values())
            read += size if unit.done else min(size, inside)
            text += inside
        return Progress(read, sum(source.size for source in self.sources), text)

    def _unit(self, number: int) -> _Unit:
        file = self.out / UNITS / f"{number:05}.json"
        return _Unit(**read_json(file)) if file.is_file() else _Unit()

    def run(self, on_progress: Callable[[Progress], object] | None = None, threads: int | None = None) -> bool:
        """Prepare the units of this process that are not done; return whether the whole store is.

        Raises DataError for text that is refused, StorageError where it cannot be written. What was finished stays.
        """
        if self.is_done:
            return True
        try:
            (self.out / UNITS).mkdir(parents=True, exist_ok=True)
            write_json(self.out / PLAN, self._plan)
            self.tokenizer.save(self.out)
            own = [number for number in self.left() if number in self.own]
            faster = self._faster() if own else Faster(None, None)
            encode = self._encoders(faster.encode)
            self.notes += [] if faster.note is None else [faster.note]
            meter = _Meter(self, on_progress)
            for number in self.own:
                self._prepare(number, encode, threads or processors.usable(), meter)
            return self._finish()
        except OSError as error:
            raise StorageError(
                f"{self.out} cannot be written: {error.strerror or error}. Free space there, and run the same command "
                "again: it goes on behind the last shard."
            ) from error

    def _refuse_another(self) -> None:
        # looked at before the plan, which is written before all else: another process may be beginning
        others = self.out.is_dir() and any(each.name != UNITS for each in self.out.iterdir())
        manifest, plan = self.out / MANIFEST, self.out / PLAN
        there = read_json(manifest).get("plan") if manifest.is_file() else read_json(plan) if plan.is_file() else None
        if there is not None and there != self._plan:
            raise ConfigError(
                f"--out {self.out}: {_first_difference(there, self._plan)} in the store that is there. Name another "
                "folder, or remove this one."
            )
        if there is None and others:
            raise ConfigError(f"--out {self.out}: there are other files in it. Name a new folder.")

    def _faster(self) -> Faster:
        """Another way to the same ids, where there is one and the text is long enough to be worth a check."""
        return faster_gpt2(self.tokenizer, self._sample())

    def _encoders(self, faster: Encode | None) -> tuple[Encode, EncodeEnded]:
        """How to tokenise a text, and several with their ends."""
        if faster is None and isinstance(self.tokenizer, Gpt2Tokenizer):
            return self.tokenizer.encode, self.tokenizer.encode_ended
        encode = faster or self.tokenizer.encode
        return encode, ended(encode, self.tokenizer.end_of_text or 0)

    def _sample(self) -> list[str]:
        """The first few million characters."""
        texts, size = list[str](), 0
        reading = Reading(self.options.text_field, Care("skip"))
        for source in self.sources:
            for document in read_documents(source, reading):
                texts.append(document.text)
                size += len(document.text)
                if size > _SAMPLE:
                    return texts
        return texts

    def _prepare(self, number: int, encode: tuple[Encode, EncodeEnded], threads: int, meter: "_Meter") -> None:
        """Make the shards of a unit that are not there yet."""
        file = self.out / UNITS / f"{number:05}.json"
        unit = self._unit(number)
        meter.begin(self.units[number], unit.done)
        if unit.done:
            return
        care = Care(self.options.on_error)
        pieces = islice(pieces_of(self._documents(number, care), next_cut(self.tokenizer)), unit.taken, None)
        sides = {part: _Side() for part in PARTS}
        end = self.tokenizer.end_of_text or 0
        most = self.options.shard_tokens
        for encoded in encode_pieces(
            pieces, *encode, end, self._dtype, self.options.val_fraction, most=most, threads=threads
        ):
            sides["train"].add(encoded.train)
            sides["val"].add(encoded.val)
            self._count(unit, sides, encoded)
            meter.read(encoded.parts)
            if sides["train"].tokens >= self.options.shard_tokens and encoded.parts[-1].ends:
                self._write(number, unit, sides)
                write_json(file, asdict(unit))
                sides = {part: _Side() for part in PARTS}
        self._write(number, unit, sides)
        unit.problems = {kind: [count, care.named[kind]] for kind, count in sorted(care.counts.items())}
        unit.done = True
        write_json(file, asdict(unit))

    def _documents(self, number: int, care: Care) -> Iterator[tuple[int, Document]]:
        """The documents of a unit; of a long one each part."""
        reading = Reading(self.options.text_field, care)
        for source in self.units[number]:
            for document in read_documents(self.sources[source], reading):
                yield source, document

    def _count(self, unit: _Unit, sides: Mapping[str, _Side], encoded: Encoded) -> None:
        """Enter the documents of a few pieces into the index and into what is known of their sources."""
        for part in encoded.parts:
            side = sides[PARTS[part.held_out]]
            side.counted += part.tokens
            known = unit.sources.setdefault(str(part.source), {"documents": 0, "bytes": 0, "digest": ""})
            known["bytes"] += part.size
            if part.ends:
                side.documents.append((side.counted, part.place, part.source))
                known["documents"] += 1
                known["digest"] = sha256(known["digest"].encode() + part.key).hexdigest()
            unit.taken += 1
            side.size += part.size

    def _write(self, number: int, unit: _Unit, sides: Mapping[str, _Side]) -> None:
        """Write what waits as the next shard of each part that has any."""
        shard = len({each["number"] for each in unit.shards})
        for part, side in sides.items():
            if not side.tokens:
                continue
            name = f"{part}-{number:05}-{shard:03}"
            write_shard(self.out / f"{name}.bin", side.arrays, self.tokenizer.vocab_size)
            documents = np.array(side.documents, dtype=DOCUMENTS)
            write_whole(self.out / f"{name}.docs", documents.tobytes())
            facts = {"tokens": side.tokens, "documents": len(documents), "bytes": side.size}
            hashes = {kind: sha256_of(self.out / f"{name}.{kind}") for kind in ("bin", "docs")}
            unit.shards.append({"name": name, "part": part, "number": shard, **facts, "sha256": hashes})

    def _finish(self) -> bool:
        """Write the manifest once every unit is done, whoever made it; whether that is so."""
        try:
            units = [self._unit(number) for number in range(len(self.units))]
        except StorageError:
            if self.is_done:  # another process was first, and has removed them
                return True
            raise
        if not all(unit.done for unit in units):
            return self.is_done
        shards = [shard for unit in units for shard in unit.shards]
        totals = {
            part: {
                what: sum(shard[what] for shard in shards if shard["part"] == part)
                for what in ("tokens", "documents", "bytes")
            }
            for part in PARTS
        }
        care = self._found
        for problems in (unit.problems for unit in units):
            counts = Counter({kind: count for kind, (count, _) in problems.items()})
            care.add(Care(counts=counts, named={kind: places for kind, (_, places) in problems.items()}))
        known = {number: facts for unit in units for number, facts in unit.sources.items()}
        nothing = {"documents": 0, "bytes": 0, "digest": ""}
        manifest = {
            "plan": self._plan,
            "tokenizer": {
                "name": self.tokenizer.name,
                "identity": self.tokenizer.identity,
                "vocab_size": self.tokenizer.vocab_size,
                "end_of_text": self.tokenizer.end_of_text,
            },
            **totals,
            "shards": shards,
            "sources": [
                {"name": source.name, "size": source.size, **known.get(str(number), nothing)}
                for number, source in enumerate(self.sources)
            ],
            "problems": {kind: [count, care.named[kind]] for kind, count in sorted(care.counts.items())},
        }
        if not totals["train"]["tokens"]:
            raise DataError(f"{self.out}: there is no text to train on in {len(self.sources)} files.")
        write_json(self.out / MANIFEST, manifest)
        shutil.rmtree(self.out / UNITS, ignore_errors=True)
        return True


class _Meter:
    """Says how far a preparation has come: by the files that are behind it, and the text of the one it is in."""

    def __init__(self, made: Preparation, say: Callable[[Progress], object] | None) -> None:
        self._sources, self._say = made.sources, say
        self._total = sum(made.sources[source].size for number in made.own for source in made.units[number])
        self._behind = self._text = 0
        self._here: list[int] = []
        self._in_source: Counter[int] = Counter()

    def begin(self, unit: Sequence[int], done: bool) -> None:
        """The next unit is begun, or was done before."""
        self._behind += sum(self._sources[source].size for source in self._here)
        self._here, self._in_source = list(unit), Counter()
        if done:
            self.say()

    def read(self, parts: Sequence[Part]) -> None:
        """A few pieces were tokenised."""
        for part in parts:
            self._in_source[part.source] += part.size
            self._text += part.size
        self.say()

    def say(self) -> None:
        """Tell who wants to know."""
        if self._say is None:
            return
        current = max(self._in_source, default=-1)
        inside = sum(
            self._sources[source].size if source < current else min(self._sources[source].size, self._in_source[source])
            for source in self._here
            if source <= current
        )
        self._say(Progress(self._behind + inside, self._total, self._text))


def _tokenizer(name: str) -> Tokenizer:
    if name == "chars":
        raise ConfigError(
            "--tokenizer chars takes its alphabet from all of the text, which is read here piece by piece. Take bytes, "
            "gpt2, or the path of a tokenizer.json."
        )
    tokenizer = load_tokenizer(name)
    if tokenizer.end_of_text is None:
        raise DataError(
            f"--tokenizer: {name} has no end-of-text token (such as <|endoftext|> or </s>), which must follow each "
            "document. Add one to it."
        )
    return tokenizer


def _first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What another preparation was asked otherwise."""
    for key in here["options"]:
        old, new = there.get("options", {}).get(key), here["options"][key]
        if old != new:
            return f"{key} is {new}, and was {old}"
    if there.get("sources") != here["sources"]:
        return "the inputs are not the same, or have changed since,"
    return "it is of another version, and was made otherwise"
