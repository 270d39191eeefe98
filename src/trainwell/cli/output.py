"""How verbs that look at plans and runs print: strict JSON, text that any terminal can write. Never imports torch."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwell.runs.console import safe, short_time

if TYPE_CHECKING:
    from trainwell.data.storing import Progress

_LONG_S = 2.0
_MINUTE_S = 60.0
_LINE_END = re.compile(r"\n\s+")
_FLAT_LIST = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")


def print_json(facts: dict[str, Any]) -> None:
    """Print `facts` as JSON that every reader takes: no NaN, and a list of plain values on one line."""
    text = json.dumps(_strict(facts), indent=2, allow_nan=False)
    print(_FLAT_LIST.sub(lambda match: f"[{_LINE_END.sub(' ', match[1])}]", text))


def print_rich(what: Any) -> None:
    """Print what rich can draw; a character that the terminal's encoding lacks is written as an escape."""
    from rich.console import Console

    encoding = sys.stdout.encoding or "utf-8"
    if encoding.lower().startswith("utf"):
        Console(highlight=False).print(what, markup=False)
        return
    console = Console(highlight=False, file=_Limited(encoding), force_terminal=sys.stdout.isatty())
    with console.capture() as drawn:
        console.print(what, markup=False)
    print(drawn.get().encode(encoding, "backslashreplace").decode(encoding), end="")


def wrote(*files: Path | None) -> None:
    """Name the files that were written."""
    for file in files:
        if file is not None:
            print(f"wrote {safe(str(file))}")


def progress() -> Callable[[int, int], None] | None:
    """Show on a terminal how far long data is prepared; short data is ready before there is anything to say."""
    if not sys.stderr.isatty():
        return None
    begin = time.monotonic()

    def show(done: int, total: int) -> None:
        if time.monotonic() - begin > _LONG_S:
            sys.stderr.write(f"\rpreparing the data: {done / total:.0%}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return show


@contextmanager
def following(began: float) -> Iterator[Callable[["Progress"], None]]:
    """Show how far a preparation is, how fast, and how long it will take: a bar on a terminal, else a line a minute."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines_of(began)
        return
    with Bar(BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
             console=console) as bar:  # fmt: skip
        task = bar.add_task("", total=None)

        def show(now: "Progress") -> None:
            bar.update(task, total=now.bytes_total, completed=now.bytes_read, description=_speed(now, began))

        yield show


def _lines_of(began: float) -> Callable[["Progress"], None]:
    last = began

    def show(now: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last < _MINUTE_S:
            return
        last = time.monotonic()
        left = (last - began) * (now.bytes_total / max(1, now.bytes_read) - 1)
        print(
            f"{now.bytes_read / max(1, now.bytes_total):.0%}, {_speed(now, began)}, {short_time(left)} to go",
            file=sys.stderr,
        )

    return show


def _speed(now: "Progress", began: float) -> str:
    return f"{now.text_bytes / 1e6 / max(1e-9, time.monotonic() - began):.1f} MB/s"


class _Limited(StringIO):
    """A stream that says which characters it can hold, by which rich chooses its own."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._name = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the terminal this stands for."""
        return self._name


def _strict(value: Any) -> Any:
    """The same with null for every number that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
