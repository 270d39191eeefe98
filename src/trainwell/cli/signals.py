"""What a signal asks of `train`: to end where nothing is lost, to finish the step and save, or to end at once.

Knows signals and the run's flag; how a run stops is its own business.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from trainwell.cli.failures import of_several
from trainwell.distributed.launch import LAUNCHED
from trainwell.errors import StoppedError
from trainwell.supervise import SUPERVISED, on_stop_signals

if TYPE_CHECKING:
    from trainwell.run import Run

_ECHO_S = 1.0
"""A system that shuts down signals the supervisor and the supervised, and the supervisor passes its signal on; so does
who starts several ranks."""


class _NothingToSave(KeyboardInterrupt):
    """Raised by the handler before there is a run; an interrupt, so that no `except Exception` takes it for its own."""


class Stopping:
    """The signals that one `train` has heard."""

    def __init__(self) -> None:
        self._heard: signal.Signals | None = None
        self._heard_at_s = 0.0
        self._ending = False
        self._run: Run | None = None

    @property
    def name(self) -> str:
        """The first signal; empty when there was none."""
        return "" if self._heard is None else self._heard.name

    def spare(self, run: "Run") -> None:
        """From now on a first signal lets `run` finish its step and save; one that came before ends here."""
        if self._heard is not None:
            raise _NothingToSave
        self._run = run

    def hear(self, number: int, _frame: object) -> None:
        """Handle a signal: set the run's flag, or raise where there is no run yet, or at a second signal.

        It writes past Python's buffers: a print could meet the print that it interrupted.
        """
        if self._heard is not None:
            if not self._is_echo(number):
                self._end(KeyboardInterrupt())
            return
        self._heard, self._heard_at_s = signal.Signals(number), time.monotonic()
        if self._run is None:
            self._end(_NothingToSave())
            return
        self._run.stop()
        if not _is_said_elsewhere():
            _write(f"{self.name}: finishing this step and saving; once more to end at once\n")

    def _is_echo(self, number: int) -> bool:
        soon = time.monotonic() - self._heard_at_s < _ECHO_S
        return soon and number == self._heard and (SUPERVISED in os.environ or of_several())

    def _end(self, interrupt: KeyboardInterrupt) -> None:
        """Unwind, which gives the screen and the folder back; where that is under way already, leave at once."""
        if self._ending:
            _write("trainwell: interrupted\n")
            os._exit(StoppedError.exit_code)
        self._ending = True
        if self._run is not None:
            self._run.abandon()
        raise interrupt


@contextmanager
def stopping_on_signals() -> Iterator[Stopping]:
    """Hear SIGINT, SIGTERM and SIGUSR1 while the block lasts; StoppedError for one that came before there was a run."""
    stopping = Stopping()
    with on_stop_signals(stopping.hear):
        try:
            yield stopping
        except _NothingToSave:
            raise StoppedError(
                f"{stopping.name}: stopped before the first step; nothing is lost, the same command starts it again"
            ) from None


def _is_said_elsewhere() -> bool:
    """Whether another process says that the signal was heard: who started the ranks, or the first of them."""
    return LAUNCHED in os.environ or (of_several() and os.environ["RANK"] != "0")


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # a screen that is gone must not keep the run from being saved
        os.write(sys.stderr.fileno(), text.encode())
