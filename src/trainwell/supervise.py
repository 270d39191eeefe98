"""Keeps a run going: starts its command, and starts it again after a stop or a crash, until it ends or gets nowhere.

Knows processes, exit codes and the folder of the run, no torch and nothing of how a run trains: whatever kills the
process that trains, a driver or the kernel's hunt for memory, does not kill this one.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from trainwell.checkpoint.layout import saved_steps
from trainwell.errors import (
    ConfigError,
    DataError,
    DivergedError,
    OutOfMemoryError,
    RunBusyError,
    StoppedError,
    StorageError,
)
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__
)
"""What asks a run to stop: a key, a system that shuts down, a scheduler that announces the end; Windows lacks one."""
SUPERVISED = "TRAINWELL_SUPERVISED"
"""The variable that tells a process that it is supervised."""
FINAL = {
    0,
    *(error.exit_code for error in (ConfigError, DataError, DivergedError, OutOfMemoryError, RunBusyError)),
}
"""Exit codes after which the same command would end in the same way."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
_FRUITLESS = 2
_GLANCE_S = 0.2
"""How often a wait looks whether a signal came."""

Handler = Callable[[int, object], None]


class Child(Protocol):
    """A process that trains."""

    def wait(self) -> int:
        """Its exit code, when it has ended; minus the signal that killed it."""

    def send_signal(self, sig: int, /) -> None:
        """Signal it."""


@contextmanager
def on_stop_signals(handler: Handler) -> Iterator[None]:
    """Handle every stop signal so while the block lasts, in the main thread; elsewhere Python knows no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def begin(command: Sequence[str]) -> Child:
    """Start `command` as a supervised process with our terminal and files."""
    return subprocess.Popen(list(command), env=os.environ | {SUPERVISED: "1"})


def newest_state(run: RunDir) -> int:
    """The newest state on record: saved, or reached by the last step in its metrics; 0 where there is none."""
    newest = max(saved_steps(run.checkpoints), default=0)
    with suppress(StorageError):  # a damaged file says nothing, and the next attempt will name it
        newest = max([newest, *(row["step"] + 1 for row in MetricsFile(run.metrics_jsonl).read().train[-1:])])
    return newest


def supervise(
    command: Sequence[str],
    run: RunDir,
    *,
    restarts: int,
    say: Callable[[str], object],
    start: Callable[[Sequence[str]], Child] = begin,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run `command`, which trains `run`, and again after a stop or a crash; return the exit code of its last process.

    It is started again up to `restarts` times, after 1, 2, 4, ... seconds, at most 300; an attempt that lasted longer
    than that begins anew with 1. It is not where the exit code says that nothing would change (`FINAL`), after two
    attempts in a row that brought no new step on record, and once this process was asked to stop: the signal is passed
    on, and the process that trains saves. A process killed by signal n counts as 128 + n, as in a shell.

    Args:
        command: the program and its arguments.
        run: the folder it trains in.
        restarts: how often it may be started again.
        say: hears a line for each restart, and why there is no further one.
        start: starts the command.
        sleep: waits, seconds.
        clock: seconds that only ever grow.
    """
    supervisor = _Supervisor(start, sleep)
    with on_stop_signals(supervisor.pass_on):
        best, fruitless, wait_s = newest_state(run), 0, 0.0
        for used in range(restarts + 1):
            began = clock()
            code = supervisor.attempt(command)
            if supervisor.asked is not None or code in FINAL:
                break
            newest = newest_state(run)
            fruitless = 0 if newest > best else fruitless + 1
            best = max(best, newest)
            refusal = _why_not_again(run, used, restarts, fruitless, best)
            if refusal is not None:
                say(f"{_in_words(code)}; {refusal}")
                break
            lasted_s = clock() - began
            wait_s = FIRST_WAIT_S if not wait_s or lasted_s > LONGEST_WAIT_S else min(2 * wait_s, LONGEST_WAIT_S)
            say(f"{_in_words(code)}; restart {used + 1} of {restarts} in {wait_s:g} s, {_from(run)}")
            supervisor.wait(wait_s)
            if supervisor.asked is not None:
                break
    return code if code >= 0 else 128 - code


class _Supervisor:
    """The process that trains, and whether this one was asked to stop."""

    def __init__(self, start: Callable[[Sequence[str]], Child], sleep: Callable[[float], object]) -> None:
        self.asked: int | None = None
        self._child: Child | None = None
        self._start = start
        self._sleep = sleep

    def pass_on(self, number: int, _frame: object) -> None:
        """Take a signal: it is the child's too."""
        self.asked = number
        if self._child is not None:
            _signal(self._child, number)

    def attempt(self, command: Sequence[str]) -> int:
        """Run the command to its end; a stop that it was too young to hear is a stop all the same."""
        self._child = self._start(command)
        if self.asked is not None:  # it came while the child was being started
            _signal(self._child, self.asked)
        code = self._child.wait()
        self._child = None
        return StoppedError.exit_code if self.asked is not None and code == -self.asked else code

    def wait(self, seconds: float) -> None:
        """Wait, but not once a stop is asked for."""
        while seconds > 0 and self.asked is None:
            self._sleep(min(seconds, _GLANCE_S))
            seconds -= _GLANCE_S


def _signal(child: Child, number: int) -> None:
    with suppress(OSError, ValueError):  # it has ended; or Windows, where the terminal's interrupt reaches it anyway
        child.send_signal(number)


def _why_not_again(run: RunDir, used: int, restarts: int, fruitless: int, best: int) -> str | None:
    """Why the command is not started again; None when it is."""
    by_hand = f"continue by hand: trainwell train {run.path}"
    if fruitless >= _FRUITLESS:
        return f"two attempts in a row came no further than step {best:,}, so it is not started again; {by_hand}"
    if used == restarts:
        return f"{'the only restart is' if restarts == 1 else f'all {restarts} restarts are'} used up; {by_hand}"
    return None


def _in_words(code: int) -> str:
    """How a process ended."""
    if code < 0:
        names = {int(number): number.name for number in signal.Signals}
        return f"killed by {names.get(-code, f'signal {-code}')}"
    return "stopped on a signal" if code == StoppedError.exit_code else f"ended with exit code {code}"


def _from(run: RunDir) -> str:
    saved = saved_steps(run.checkpoints)
    return f"from step {saved[-1]:,}" if saved else "from the beginning"
