"""Token files on a terminal: what they hold, how long the documents are, how the text begins.

Returns what rich prints, and prints nothing itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwell.data.survey import Survey
from trainwell.data.token_files import TokenFile
from trainwell.data.tokenizer import Tokenizer
from trainwell.report.axes import FAINT
from trainwell.runs.console import safe, short_time

_LAYOUTS = {
    "trainwell": "trainwell's shards",
    "llm.c": "llm.c and modded-nanogpt",
    "llm.c llama": "llm.c for Llama 3",
    "npy": "NumPy arrays, as build-nanogpt writes them",
    "raw": "ids and nothing else, as nanoGPT and OLMo write them",
}
_BAR = 40


@dataclass(frozen=True)
class Part:
    """The files to train on, or those held out."""

    name: str
    files: Sequence[TokenFile]
    survey: Survey


@dataclass(frozen=True)
class Shown:
    """A store, read once."""

    path: str
    parts: Sequence[Part]
    tokenizer: Tokenizer | None
    why: str
    """Why it is taken for this tokenizer, or that none is known."""
    beginning: Sequence[str]
    """The first windows to train on, as text."""


def show_store(shown: Shown) -> RenderableType:
    """Everything about a store."""
    return Group(*_heading(shown), _counts(shown), *(line for part in shown.parts for line in _lengths(part)),
                 *_beginning(shown))  # fmt: skip


def _heading(shown: Shown) -> Iterable[RenderableType]:
    layouts = dict.fromkeys((file.layout, file.ids.dtype.itemsize) for part in shown.parts for file in part.files)
    said = "; ".join(f"{_LAYOUTS[layout]}, {8 * size} bits an id" for layout, size in layouts)
    yield Text(safe(shown.path), "bold")
    yield Text(said)
    if shown.tokenizer is None:
        yield Text(f"tokenizer: {shown.why}", "yellow")
        return
    yield Text(f"tokenizer: {safe(shown.tokenizer.name)}{f', {shown.why}' if shown.why else ''}")
    largest, vocab_size = max(part.survey.largest for part in shown.parts), shown.tokenizer.vocab_size
    if largest >= vocab_size:
        yield Text(f"not its ids: {largest:,} is there, and {vocab_size - 1:,} is its last", "bold red")


def _counts(shown: Shown) -> Table:
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("part")
    for column in ("files", "tokens", "ids", "different ones", "documents", "median length"):
        table.add_column(column, justify="right")
    for part in shown.parts:
        found = part.survey
        middle = f"{int(np.median(found.lengths)):,}" if len(found.lengths) else ""
        table.add_row(
            part.name,
            f"{len(part.files):,}",
            f"{found.num_tokens:,}",
            f"{found.smallest:,} to {found.largest:,}",
            f"{found.num_used:,}",
            f"{len(found.lengths):,}",
            middle,
        )
    return table


def _lengths(part: Part) -> Iterable[RenderableType]:
    """The histogram of a part that has several documents."""
    classes = part.survey.histogram()
    if len(part.survey.lengths) < 2:
        return
    most = max(count for _, _, count in classes)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    for low, high, count in classes:
        table.add_row(f"{low:,} to {high:,}", Text("#" * round(_BAR * count / most), "bright_blue"), f"{count:,}")
    yield Text(f"\n{part.name}: documents by their tokens", "bold")
    yield table


def _beginning(shown: Shown) -> Iterable[RenderableType]:
    if shown.beginning:
        yield Text("\nhow it begins", "bold")
    for text in shown.beginning:
        yield Text(safe(repr(text)), FAINT)


def show_made(path: str, manifest: Mapping[str, Any], seconds: float) -> RenderableType:
    """What a preparation came to, and what was wrong in the text."""
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("part")
    for column in ("shards", "documents", "tokens", "MB of text", "bytes a token"):
        table.add_column(column, justify="right")
    for part in ("train", "val"):
        found = manifest[part]
        shards = sum(shard["part"] == part for shard in manifest["shards"])
        per_token = f"{found['bytes'] / found['tokens']:.3f}" if found["tokens"] else ""
        counts = (shards, found["documents"], found["tokens"])
        table.add_row(part, *(f"{count:,}" for count in counts), f"{found['bytes'] / 1e6:,.1f}", per_token)
    size = sum(manifest[part]["bytes"] for part in ("train", "val")) / 1e6
    said = f"{path}: {len(manifest['sources']):,} files in {short_time(seconds)}, {size / max(1e-9, seconds):.1f} MB/s"
    problems = [
        Text(safe(f"{count:,} x {kind}: {'; '.join(places)}{'; ...' if count > len(places) else ''}"), "yellow")
        for kind, (count, places) in manifest["problems"].items()
    ]
    return Group(Text(safe(said)), table, *problems)
