"""Starts a command as several ranks on this machine, through torch's elastic agent, and says how they ended.

Knows processes, signals and exit codes, nothing of training. Torch is imported once processes are started.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainwell.errors import StoppedError, TrainwellError
from trainwell.runs import processors
from trainwell.runs.exits import Exit, read_exit

LAUNCHED = "TRAINWELL_LAUNCH"
"""The variable that tells a rank who started it: the folder in which it says which process it is."""
_GLANCE_S = 0.1
_ECHO_S = 1.0
"""A terminal, or a scheduler, signals several processes at once, and each passes its signal on."""


class Ended(NamedTuple):
    """A rank that did not end well."""

    rank: int
    code: int
    """Its exit code; minus the signal that killed it."""


class Verdict(NamedTuple):
    """How ranks ended together."""

    code: int
    message: str = ""
    """What no rank could say itself; else empty."""


class Ranks:
    """The ranks of one launch: their processes, and the signals they are passed.

    Args:
        folder: where ranks say which process they are.
        say: hears a line for the user.
        echoes: whether a second signal of the same kind within a second is the first one again.
    """

    def __init__(self, folder: Path, say: Callable[[str], object], *, echoes: bool) -> None:
        self._folder = folder
        self._say = say
        self._echoes = echoes
        self._heard = list[int]()
        self._heard_at_s = 0.0
        self._told = dict[int, int]()
        self._said = False

    @property
    def asked(self) -> bool:
        """Whether they were asked to stop."""
        return bool(self._heard)

    def hear(self, number: int, _frame: object = None) -> None:
        """Take a signal; it is passed on by `pass_on`, outside of the handler."""
        now = time.monotonic()
        again = self._echoes and bool(self._heard) and number == self._heard[-1] and now - self._heard_at_s < _ECHO_S
        if not again:
            self._heard.append(number)
            self._heard_at_s = now

    def pass_on(self) -> None:
        """Send each process that is known by now the signals it was not sent yet."""
        if self._heard and not self._said:
            self._said = True
            name = signal.Signals(self._heard[0]).name
            self._say(f"{name}: finishing this step and saving; once more to end at once")
        for process in self._processes():
            for number in self._heard[self._told.get(process, 0) :]:
                with suppress(OSError):  # it has ended
                    os.kill(process, number)
            self._told[process] = len(self._heard)

    def _processes(self) -> Iterator[int]:
        for file in self._folder.glob("rank-*"):
            with suppress(OSError, ValueError):
                yield int(file.read_text(encoding="ascii"))


def announce(environment: Mapping[str, str] = os.environ) -> None:
    """Of a rank that `launch` started: say which process it is, and stop it once who started it is gone.

    Does nothing elsewhere. Call it in a process that handles signals.
    """
    folder, rank = environment.get(LAUNCHED), environment.get("RANK")
    if folder is None or rank is None:
        return
    unfinished = Path(folder) / f".rank-{rank}"
    with suppress(OSError):  # who started it is gone already, which is found out below
        unfinished.write_text(str(os.getpid()), encoding="ascii")
        unfinished.replace(Path(folder) / f"rank-{rank}")
    threading.Thread(
        target=_stop_when_orphaned, args=(Path(folder), os.getppid()), name="trainwell-orphan", daemon=True
    ).start()


def _stop_when_orphaned(folder: Path, parent: int) -> None:
    while os.getppid() == parent and folder.is_dir():
        time.sleep(_GLANCE_S)
    os.kill(os.getpid(), signal.SIGTERM)


def launch(
    command: Sequence[str],
    processes: int,
    run: Path,
    *,
    say: Callable[[str], object],
    on_signals: Callable[[Callable[[int, object], None]], Any],
    echoes: bool = False,
) -> int:
    """Run `command` as so many ranks on this machine; return the exit code of all of them together.

    Each has torchrun's variables, its share of the cores (OMP_NUM_THREADS, unless that is set) and our terminal.
    A stop signal is passed on to all of them, and they take as long as they need. When one fails the others are
    asked to end, and killed after thirty seconds. Nothing is started again: that is `supervise`'s business.

    Args:
        command: a program and its arguments.
        processes: how many ranks.
        run: the folder of the run, in which ranks leave exit.json.
        say: hears a line for the user.
        on_signals: a context manager in which a handler hears stop signals.
        echoes: whether this process is signalled twice when a user or a system does it once.
    """
    failed, broken = dict[int, int](), list[BaseException]()
    with tempfile.TemporaryDirectory(prefix="trainwell-launch-") as folder:
        ranks = Ranks(Path(folder), say, echoes=echoes)
        threads = str(threads_each(processes))
        variables = {LAUNCHED: folder, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        agent = threading.Thread(
            target=_run_agent, args=(list(command), processes, failed, broken), name="trainwell-agent", daemon=True
        )
        with _environment(variables), on_signals(ranks.hear):
            agent.start()  # not in the main thread, where it would handle signals in its own way
            while agent.is_alive():
                ranks.pass_on()
                agent.join(_GLANCE_S)
    if broken:
        raise TrainwellError(f"the {processes} processes could not be started: {broken[0]}") from broken[0]
    if not failed:
        return 0
    found = verdict([Ended(*each) for each in failed.items()], read_exit(run), asked=ranks.asked)
    if found.message:
        say(found.message)
    return found.code


def verdict(failed: Sequence[Ended], end: Exit | None, *, asked: bool) -> Verdict:
    """How ranks ended together: the exit code of all, and what none of them could say.

    Args:
        failed: the ranks that did not end well, in the order in which that was noticed.
        end: what the first of them left in exit.json.
        asked: whether they were asked to stop; one that was too young to hear it has stopped all the same.
    """
    first = failed[0]
    if asked and end is None and all(each.code < 0 or each.code == StoppedError.exit_code for each in failed):
        return Verdict(StoppedError.exit_code)
    if first.code < 0 and not (asked and end is not None):  # killed: it could say nothing, and others only lost it
        return Verdict(128 - first.code, f"rank {first.rank} was killed by {_name(-first.code)}")
    if end is not None:
        return Verdict(end.code)
    if asked and any(each.code == StoppedError.exit_code for each in failed):
        return Verdict(StoppedError.exit_code)
    return Verdict(next((each.code for each in failed if each.code > 0), 128 - first.code))


def threads_each(processes: int) -> int:
    """Threads for each of so many processes on this machine: the cores, shared out."""
    return max(1, processors.usable() // processes)


def _name(number: int) -> str:
    return {int(each): each.name for each in signal.Signals}.get(number, f"signal {number}")


def _run_agent(command: list[str], processes: int, failed: dict[int, int], broken: list[BaseException]) -> None:
    """Let the elastic agent start the ranks and watch them; `failed` gets the exit codes of those that failed."""
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # ranks and `verdict` say what happened
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=_GLANCE_S,
    )
    program, *arguments = command
    try:
        elastic_launch(config, program)(*arguments)
    except ChildFailedError as error:
        failed.update({rank: failure.exitcode for rank, failure in error.failures.items()})
    except Exception as error:  # noqa: BLE001  whatever it was, the main thread says it
        broken.append(error)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these variables while the block lasts; the agent hands its own on to the ranks."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
