"""`trainwell data`: raw text made into a token store; what token files hold, of whichever program. Never torch."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from trainwell.cli.output import following, print_json, print_rich, progress
from trainwell.cli.shares import how_many, in_processes, is_share
from trainwell.data.bpe import learn
from trainwell.data.care import Care, OnError
from trainwell.data.manifest import MANIFEST, is_whole, read_json
from trainwell.data.reading import Reading
from trainwell.data.stores import Halves, is_store, look_into, open_files
from trainwell.data.storing import Options, Preparation
from trainwell.data.stream import TokenStream
from trainwell.data.survey import survey
from trainwell.data.token_files import SUFFIXES, TokenFile
from trainwell.data.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer, open_tokenizer
from trainwell.errors import ConfigError, DataError, StoppedError
from trainwell.report.store_text import Part, Shown, show_made, show_store
from trainwell.runs.console import safe, short_time

_WINDOW = 64
_WINDOWS = 3


def prepare(
    *inputs: str,
    out: Annotated[Path, Parameter(help="Folder to write, a new one; or one that this command was writing.")],
    tokenizer: Annotated[str, Parameter(help="bytes, gpt2, or the path of a tokenizer.json.")] = "gpt2",
    text_field: Annotated[str, Parameter(help="Field or column with the text, in JSON and tables.")] = "text",
    val: Annotated[
        float, Parameter(help="Share of the documents to hold out, each by its hash.", validator=Number(gte=0, lt=1))
    ] = 0.005,
    shard: Annotated[
        str | None, Parameter(help="Prepare share I of N alone, as 0/8: for job arrays. The last to end finishes.")
    ] = None,
    shard_tokens: Annotated[
        int, Parameter(help="Tokens after which a shard ends with its document.", validator=Number(gte=1))
    ] = 100_000_000,
    on_error: Annotated[
        OnError, Parameter(help="What becomes of text that is wrong: each kind is counted, and the first few named.")
    ] = "refuse",
) -> None:
    """Tokenise text of any size into shards: .txt, .md, .jsonl, .json, .csv, .tsv (also .gz, .zst), .parquet, .arrow.

    Every document ends with an end-of-text id, and is trained on or held out by its own hash. Killed and started again
    it goes on behind the last shard, and ends with the same bytes.
    """
    if not inputs:
        raise ConfigError("name files or folders to read, as in: trainwell data prepare my-texts/ --out my-store")
    made = Preparation(inputs, out, Options(tokenizer, text_field, val, shard_tokens, on_error), _share(shard))
    if made.is_done:
        print(safe(f"{out} is whole already; nothing was done"))
        return
    began, own = time.monotonic(), is_share()
    try:
        with following(began) as follow:
            if shard is None and (count := how_many(made)) > 1:
                words = _words(out=out, tokenizer=tokenizer, text_field=text_field, val=val, shard_tokens=shard_tokens,
                               on_error=on_error)  # fmt: skip
                made.notes += in_processes(made, ["data", "prepare", *inputs, *words], count, follow)
            whole = made.run(follow, threads=1 if own else None)
    except KeyboardInterrupt:
        raise StoppedError("stopped; the same command again goes on behind the last shard") from None
    for note in made.notes:
        print(safe(note))
    if not whole:
        print(safe(f"share {shard} of {out} is done; the store is whole when the others are"))
        return
    print_rich(show_made(str(out), read_json(out / MANIFEST), time.monotonic() - began))
    print(safe(f"next: trainwell train --data.path {out} --data.tokenizer {_named(tokenizer, out)}"))


def tokenizer(
    *inputs: str,
    vocab_size: Annotated[int, Parameter(help="How many tokens, the end of a text included.")] = 8192,
    out: Annotated[Path, Parameter(help="File to write.")] = Path("tokenizer.json"),
    text_field: Annotated[str, Parameter(help="Field or column with the text, in JSON and tables.")] = "text",
    on_error: Annotated[OnError, Parameter(help="What becomes of text that is wrong.")] = "refuse",
) -> None:
    """Learn a byte-level BPE tokenizer from text, in any format that `data prepare` reads, and write tokenizer.json.

    A part of the text is kept aside, and says how many bytes a token stands for, beside gpt2's.
    """
    if not inputs:
        raise ConfigError("name files or folders to learn from, as in: trainwell data tokenizer my-texts/")
    care, began = Care(on_error), time.monotonic()
    learned = learn(inputs, out, vocab_size, Reading(text_field, care), show_progress=sys.stderr.isatty())
    ours, theirs = load_tokenizer(str(out)), load_tokenizer("gpt2")
    took = short_time(time.monotonic() - began)
    print(safe(f"{out}: {ours.vocab_size:,} tokens, from {learned.size / 1e6:,.1f} MB of text in {took}"))
    if ours.vocab_size < vocab_size:
        print(f"fewer than the {vocab_size:,} asked for: no other pair is there twice; give more text")
    if learned.held_out:
        print(
            f"on text kept aside {learned.bytes_a_token(ours):.3f} bytes a token; gpt2, with {theirs.vocab_size:,} "
            f"tokens, {learned.bytes_a_token(theirs):.3f}"
        )
    for kind, count in sorted(care.counts.items()):
        print(safe(f"{count:,} x {kind}: {'; '.join(care.named[kind])}"))
    print(safe(f"next: trainwell data prepare {' '.join(inputs)} --tokenizer {out} --out STORE"))


def _words(**options: object) -> list[str]:
    """Options as they would be typed."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _named(tokenizer: str, out: Path) -> str:
    """A tokenizer as it will be found again: of a file the store has its own copy."""
    return tokenizer if tokenizer in TOKENIZERS else f"{out}/tokenizer.json"


def _share(text: str | None) -> tuple[int, int]:
    """`0/8` as numbers."""
    if text is None:
        return 0, 1
    number, sign, count = text.partition("/")
    if not (sign and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard {text!r}: write I/N with I from 0 to N - 1, such as 0/8")
    return int(number), int(count)


def show(
    path: Path,
    /,
    *,
    tokenizer: Annotated[
        str | None, Parameter(help="What made the ids: bytes, gpt2, or the path of a tokenizer.json.")
    ] = None,
    json: Annotated[bool, Parameter(help="Print what a program may read.", negative=())] = False,
) -> None:
    """Say what a file of token ids holds, or a folder of them: layout, counts, ids, documents, the first text.

    Read are trainwell's shards, .bin of nanoGPT, llm.c, modded-nanogpt and OLMo, .npy of build-nanogpt and OLMo.
    """
    place = path.expanduser()
    if not is_store(str(place)):
        raise DataError(
            f"{path} is no file of token ids, nor a folder that has one ({', '.join(SUFFIXES)}). Text needs no "
            "preparation: train on it with --data.path."
        )
    if tokenizer == "chars":
        raise ConfigError("--tokenizer chars takes its alphabet from a text, and there is none here; leave it out")
    named = None if tokenizer is None else load_tokenizer(tokenizer)
    halves = open_files(place, None if named is None else named.vocab_size)
    known, why = (named, "") if named is not None else _own(place) or _guess(halves)
    end = None if known is None else known.end_of_text
    found = [_part(name, files, end) for name, files in (("train", halves.train), ("val", halves.val)) if files]
    shown = Shown(str(path), found, known, why, _beginning(halves, known))
    if json:
        print_json(_facts(shown))
    else:
        print_rich(show_store(shown))


def _own(place: Path) -> tuple[Tokenizer, str] | None:
    """The tokenizer that lies in a store of ours."""
    if not is_whole(place):
        return None
    return open_tokenizer(place), "as its manifest says"


def _guess(halves: Halves) -> tuple[Tokenizer | None, str]:
    """The tokenizer that ids look like, and why it is taken for theirs."""
    largest = max(each.largest for each in look_into((*halves.train, *halves.val), on_progress=progress()))
    for name in ("bytes", "gpt2"):
        tokenizer = load_tokenizer(name)
        if largest < tokenizer.vocab_size:
            return tokenizer, f"since no id is above {tokenizer.vocab_size - 1:,}; --tokenizer names another"
    return None, f"unknown: the largest id is {largest:,}; name it with --tokenizer PATH/tokenizer.json"


def _part(name: str, files: Sequence[TokenFile], end: int | None) -> Part:
    stream = TokenStream([file.ids for file in files])
    return Part(name, files, survey(stream, end, progress()))


def _beginning(halves: Halves, tokenizer: Tokenizer | None) -> list[str]:
    """The first windows to train on, as text; ids that the tokenizer lacks are no text, and are left out."""
    if tokenizer is None:
        return []
    stream = TokenStream([file.ids for file in halves.train])
    windows = [stream[at * _WINDOW : (at + 1) * _WINDOW] for at in range(_WINDOWS)]
    return [tokenizer.decode(ids[ids < tokenizer.vocab_size].tolist()) for ids in windows if len(ids)]


def _facts(shown: Shown) -> dict[str, Any]:
    return {
        "path": shown.path,
        "tokenizer": None if shown.tokenizer is None else shown.tokenizer.name,
        "vocab_size": None if shown.tokenizer is None else shown.tokenizer.vocab_size,
        "parts": [
            {
                "name": part.name,
                "tokens": part.survey.num_tokens,
                "smallest": part.survey.smallest,
                "largest": part.survey.largest,
                "ids_used": part.survey.num_used,
                "documents": len(part.survey.lengths),
                "lengths": [list(each) for each in part.survey.histogram()],
                "files": [
                    {"path": str(file.path), "layout": file.layout, "tokens": len(file.ids)} for file in part.files
                ],
            }
            for part in shown.parts
        ],
        "beginning": shown.beginning,
    }
