"""Many runs, each a process of its own, a few at a time; one that fails or diverges stops no other.

Knows commands, exit codes and log files, no torch and nothing of how a run trains.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainwell.errors import DivergedError, StorageError
from trainwell.runs import processors
from trainwell.runs.gridfolder import Cell
from trainwell.supervise import on_stop_signals

RESULTS = (0, DivergedError.exit_code)
"""Exit codes that are results: a rate at which training diverges is what a grid is there to find."""
_GLANCE_S = 0.1
_SHOWN_LINES = 5


@dataclass
class _Running:
    """A cell whose process is at work."""

    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: Path
    began: float


def run_cells(
    cells: Sequence[Cell],
    command: Callable[[Cell], Sequence[str]],
    logs: Path,
    jobs: int,
    ended: Callable[[Cell, int, float, str], None],
    began: Callable[[Cell], None],
) -> bool:
    """Run the command of each cell, at most `jobs` at once; whether all had their turn.

    A stop signal goes to all that are at work, and no other starts. `began` and `ended` hear of each; the latter its
    exit code, its seconds, and of one that failed the last lines that it printed.
    """
    waiting, running = list(cells), list[_Running]()
    asked: list[int] = []

    def hear(number: int, _frame: object) -> None:
        asked.append(number)
        for each in running:
            each.process.send_signal(number)

    environment = _environment(jobs)
    with on_stop_signals(hear):
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                cell = waiting.pop(0)
                began(cell)
                running.append(_start(cell, command(cell), logs / f"{cell.name}.log", environment))
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                code = each.process.returncode
                code = code if code >= 0 else 128 - code
                ended(each.cell, code, time.monotonic() - each.began, "" if code in RESULTS else _tail(each.log))
            time.sleep(_GLANCE_S)
    return not asked


def _start(cell: Cell, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> _Running:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # a session of its own: the terminal's interrupt reaches it through us, once
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
    except OSError as error:
        raise StorageError(f"cannot start {cell.name} with its output in {log}: {error.strerror}") from None
    return _Running(cell, process, log, time.monotonic())


def _environment(jobs: int) -> dict[str, str]:
    """Each job has its share of the cores, unless it was said how many."""
    shared = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, processors.usable() // jobs))}
    return {**shared, **os.environ}


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_SHOWN_LINES:])
