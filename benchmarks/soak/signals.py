"""SIGTERM, SIGINT and SIGUSR1 at a random moment: seconds until the process is gone, and steps that are lost: none.

In forks of small runs, where the seconds are those of a save, and in processes that train the demo recipe, where they
are those of a step of it, of a save and of the interpreter's end.
"""

import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.soak.figures import Row, counted, measured, middle_and_tail
from benchmarks.soak.forks import Ended, Job, Launcher, Processes, Strike, spread
from benchmarks.soak.kills import straight, work_folder
from benchmarks.soak.tiny import differences, newest_good, on_record, outcome, settings, train, write_text

from trainwell.errors import StoppedError

_TRIES = 50
_NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
_DEMO = {"seed": 7, "log.every": 1}
_LONGEST_S = 10.0


@dataclass
class Stop:
    """One signal and what came of it."""

    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    lost: int = 0


def _looked_at(run: Path, ended: Ended, where: str) -> Stop:
    """Exit code 75, and on disk the state after the last step on record."""
    stop = Stop(ended.seconds_after)
    if ended.code != StoppedError.exit_code:
        stop.problems.append(f"{where}: it ended with {ended.code}: {ended.said[-500:]}")
        return stop
    good, recorded = newest_good(run), on_record(run)
    stop.lost = recorded - (good or 0)
    if good != recorded and recorded:
        stop.problems.append(f"{where}: {recorded} steps are on record, step {good} is saved")
    return stop


def of_a_small_run(launcher: Launcher, folder: Path, seed: int, number: int) -> Stop:
    """Signal a small run, once its folder is there, at a moment of the time that it takes; then let it end."""
    keys = settings(seed, duration=120)
    ended, expected = straight(launcher, folder, keys)
    dice, run = random.Random(seed), folder / "stopped" / "runs" / "run"
    for _ in range(_TRIES):
        shutil.rmtree(folder / "stopped", ignore_errors=True)
        write_text(folder / "stopped")
        job = Job(train("run", keys), str(folder / "stopped"))
        moment = Strike(number, dice.uniform(0, ended.seconds), str(run / "config.yaml"))
        stopped = launcher.run(replace(job, strike=moment))
        if stopped.code != 0:
            break
    stop = _looked_at(run, stopped, f"seed {seed}, {signal.Signals(number).name}")
    again = launcher.run(job)
    if again.code != 0:
        stop.problems.append(f"seed {seed}: started again, it ended with {again.code}: {again.said[-500:]}")
    else:
        stop.problems += differences(outcome(run, keys["duration"]), expected)
    return stop


def of_the_demo(folder: Path, count: int, seed: int) -> Iterator[Stop]:
    """Start the demo recipe again and again, each time from where a SIGTERM stopped it, as `python -m trainwell`."""
    dice, run = random.Random(seed), folder / "runs" / "demo"
    job = Job(train("demo", _DEMO), str(folder))
    write_text(folder)
    for number in range(count):
        marker = folder / "started"
        marker.unlink(missing_ok=True)
        yield _looked_at(run, _struck(job, run, dice.uniform(0, 3.0)), f"demo, stop {number}")


def _struck(job: Job, run: Path, after_s: float) -> Ended:
    """Signal a process so long after it has owned its folder, which its lock tells."""
    lock = run / ".lock"
    if lock.exists():
        lock.unlink()  # nobody holds it between two starts; the next one makes it anew
    return Processes().run(replace(job, strike=Strike(signal.SIGTERM, after_s, str(lock))))


def run(count: int = 50, seed: int = 0, *, processes: int = 2, real: int = 20) -> dict[str, Any]:
    """Stop `count` small runs, with each signal in turn, and the demo recipe `real` times."""
    with work_folder() as folder:

        def stop(launcher: Launcher, number: int) -> Stop:
            return of_a_small_run(launcher, folder / str(number), number, _NUMBERS[number % len(_NUMBERS)])

        small = spread(stop, range(seed, seed + count), processes)
        demo = list(of_the_demo(folder / "demo", real, seed))
    rows: list[Row] = []
    for name, stops in (("a small run", small), ("the demo recipe, `python -m trainwell`", demo)):
        seconds = [each.seconds for each in stops]
        rows += [
            counted(
                f"{name}: stopped at a random moment, exit code 75 and no step lost", [each.problems for each in stops]
            ),
            measured(f"{name}: from signal to exit", middle_and_tail(seconds), held=max(seconds) < _LONGEST_S),
            measured(
                f"{name}: steps lost", f"{sum(each.lost for each in stops)}", held=not any(each.lost for each in stops)
            ),
        ]
    return {"rows": rows}
