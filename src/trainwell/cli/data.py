"""`trainwell data show`: what token files hold, of whichever program. Never imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from trainwell.cli.output import print_json, print_rich, progress
from trainwell.data.stores import Halves, look_into, open_files
from trainwell.data.stream import TokenStream
from trainwell.data.survey import survey
from trainwell.data.token_files import SUFFIXES, TokenFile, token_paths
from trainwell.data.tokenizer import Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, DataError
from trainwell.report.store_text import Part, Shown, show_store

_WINDOW = 64
_WINDOWS = 3


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
    if not token_paths(place):
        raise DataError(
            f"{path} is no file of token ids, nor a folder that has one ({', '.join(SUFFIXES)}). Text needs no "
            "preparation: train on it with --data.path."
        )
    if tokenizer == "chars":
        raise ConfigError("--tokenizer chars takes its alphabet from a text, and there is none here; leave it out")
    named = None if tokenizer is None else load_tokenizer(tokenizer)
    halves = open_files(place, None if named is None else named.vocab_size)
    known, why = (named, "") if named is not None else _guess(halves)
    end = None if known is None else known.end_of_text
    found = [_part(name, files, end) for name, files in (("train", halves.train), ("val", halves.val)) if files]
    shown = Shown(str(path), found, known, why, _beginning(halves, known))
    if json:
        print_json(_facts(shown))
    else:
        print_rich(show_store(shown))


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
