"""What a run prints while it trains: a bar on a terminal, plain lines elsewhere; how text and numbers are written.

Knows numbers that are already read from the device, no tensor.
"""

import sys
import time
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

_REFRESH_S = 0.2
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe(text: str) -> str:
    """The text with everything that steers a terminal written as an escape; newlines and tabs stay."""
    return "".join(char if _is_plain(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_plain(char: str) -> bool:
    return char in "\n\t" or (unicodedata.category(char) not in {"Cc", "Cs"} and char not in _BIDIRECTIONAL)


def short_count(count: float) -> str:
    """A count with three digits and a suffix: 950, 1.5M, 375M, 12.3k."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{float(f'{count / size:.3g}'):g}{suffix}"
    return f"{count:.3g}" if count < 1000 and count != int(count) else str(int(count))


def scientific(count: float) -> str:
    """A large number with up to three digits and its power of ten: 1.23e15."""
    digits, exponent = f"{count:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def short_time(seconds: float) -> str:
    """A duration in its two largest units: 42 s, 3 min 20 s, 1 h 5 min, 2 d 4 h."""
    whole = round(seconds)
    for name, size, next_name, next_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {name} {rest} {next_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s" if seconds >= 10 or whole == seconds else f"{seconds:.1f} s"


def format_step(step: int, loss: float, lr: float, norm: float, dt_s: float, tok_per_s: float) -> str:
    """One line in the format that readers of Karpathy's GPT-2 lecture know; dt in seconds, printed in milliseconds."""
    return (
        f"step {step:4d} | loss: {loss:.6f} | lr {lr:.4e} | norm: {norm:.4f} | "
        f"dt: {dt_s * 1000:.2f}ms | tok/sec: {tok_per_s:.2f}"
    )


def share(value: float) -> str:
    """A share of something, 91.2%; of nothing it is not a number, and said so."""
    return "of none" if value != value else f"{value:.1%}"


def parts_line(parts: Mapping[str, float]) -> str:
    """What else an evaluation measured, for the end of its line: " | accuracy: 91.2% (ham 95.0%, spam 87.5%)"."""
    shares = {name: value for name, value in parts.items() if name.partition("/")[0] in {"accuracy", "hellaswag"}}
    found = ""
    for name in [name for name in shares if "/" not in name]:
        inside = ", ".join(
            f"{other.partition('/')[2]} {share(value)}"
            for other, value in shares.items()
            if other.startswith(f"{name}/")
        )
        found += f" | {name}: {shares[name]:.1%}" + (f" ({inside})" if inside else "")
    return found


class Console:
    """The screen of one training run of `num_steps` steps, of which every `log_every`-th gets a line.

    On a terminal the bar appears with the first step, so the time left is judged by steps alone.
    """

    def __init__(self, num_steps: int, log_every: int, stream: TextIO | None = None) -> None:
        self.num_steps = num_steps
        self.log_every = log_every
        self._stream = stream if stream is not None else sys.stdout
        self._bar: Progress | None = None
        self._refreshed = time.monotonic()

    def step_line(self, step: int, loss: float, lr: float, norm: float, dt_s: float, tok_per_s: float) -> None:
        """Move the bar past this step, and print its line if it is a multiple of `log_every` or the last step."""
        if step % self.log_every == 0 or step == self.num_steps - 1:
            self._print(format_step(step, loss, lr, norm, dt_s, tok_per_s))
        self.advance(step)

    def advance(self, step: int) -> None:
        """Move the bar past this step, without a line."""
        if not self._stream.isatty():
            return
        if self._bar is None:
            self._bar = _progress(self._stream, self.num_steps, step)
        self._bar.update(self._bar.task_ids[0], completed=step + 1)
        if time.monotonic() - self._refreshed > _REFRESH_S:
            self._bar.refresh()
            self._refreshed = time.monotonic()

    def message(self, text: str) -> None:
        """Print text, of any origin, above the bar."""
        self._print(safe(text))

    def close(self) -> None:
        """Take the bar away; lines stay."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        if self._bar is None:
            self._stream.write(text + "\n")
            self._stream.flush()
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Silent(Console):
    """The screen of a rank that is not the first: it shows nothing, since all ranks would say the same."""

    def step_line(self, step: int, loss: float, lr: float, norm: float, dt_s: float, tok_per_s: float) -> None:
        """Show nothing."""

    def advance(self, step: int) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""


def _progress(stream: TextIO, num_steps: int, done: int) -> "Progress":
    """A bar without a thread of its own: it is drawn when the run reports, and never between."""
    from rich.console import Console as Screen
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("training"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Screen(file=stream),
        auto_refresh=False,
        transient=True,
    )
    bar.add_task("training", total=num_steps, completed=done)
    bar.start()
    bar.refresh()
    return bar
