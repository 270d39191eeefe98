"""SIGKILL: at a random moment, five times in one run, at every fault point, before every change to a file.

Each time the same command is repeated until the run is done, and then everything it learned and recorded must equal,
to the bit, what a run that nobody killed has.
"""

import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.soak.figures import Row, counted, measured
from benchmarks.soak.forks import Ended, Job, Launcher, Processes, Strike, spread
from benchmarks.soak.tiny import differences, newest_good, on_record, outcome, settings, train, write_text

from trainwell.errors import TrainwellError
from trainwell.faults import POINTS

_TRIES = 50
_CHUNKS = 4
_FIRST_FAULTY_STEP = 7
_SMALL = {"duration": 12, "eval.every": 6, "sample.every": 5, "checkpoint.every": 4, "checkpoint.keep": 2}
_RESUMED = {"duration": 40, "checkpoint.every": 6, "checkpoint.keep": 2}


@dataclass
class Trial:
    """One run that was killed and started again until it was done."""

    keys: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    """What was not as promised; each with the run that shows it."""
    lost: list[int] = field(default_factory=list)
    """Steps that were on record at each kill and had to be taken again."""
    starts: int = 0
    """Starts from a checkpoint."""
    unreadable: int = 0
    """Starts that met a checkpoint which does not verify."""

    def say(self, where: str) -> None:
        """Put before each problem where it happened."""
        self.problems = [f"{where}: {problem}" for problem in self.problems]


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder with the text in it, removed in the end."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        write_text(Path(folder))
        yield Path(folder)


def straight(launcher: Launcher, folder: Path, keys: Mapping[str, Any]) -> tuple[Ended, dict[str, Any]]:
    """The run that nobody kills, in a folder of its own: how it ended, and what it came to."""
    write_text(folder / "straight")
    ended = launcher.run(Job(train("run", keys), str(folder / "straight")))
    if ended.code != 0:
        raise RuntimeError(f"a run that nobody killed ended with {ended.code}: {ended.said}")
    return ended, outcome(folder / "straight" / "runs" / "run", keys["duration"])


def killed(
    launcher: Launcher, folder: Path, keys: Mapping[str, Any], hits: Sequence[Callable[[Job], Job]], expected: Any
) -> Trial | None:
    """Start the run once for each of `hits`, which kill it, then to its end; None when it was done before the last."""
    shutil.rmtree(folder / "killed", ignore_errors=True)
    write_text(folder / "killed")
    run = folder / "killed" / "runs" / "run"
    trial, job, good = Trial(keys), Job(train("run", keys), str(folder / "killed")), None
    for hit in hits:
        ended = launcher.run(hit(job))
        _look_at_start(trial, ended, good)
        if ended.code == 0:
            return None
        if ended.code != -signal.SIGKILL:
            trial.problems.append(f"it ended with {ended.code} instead of being killed: {ended.said[-500:]}")
        good = _look_at_rest(trial, run, good)
    ended = launcher.run(job)
    _look_at_start(trial, ended, good)
    if ended.code != 0:
        trial.problems.append(f"started again, it ended with {ended.code}: {ended.said[-500:]}")
    else:
        trial.problems += differences(outcome(run, keys["duration"]), expected)
    return trial


def _look_at_start(trial: Trial, ended: Ended, good: int | None) -> None:
    """A start goes on from the newest checkpoint that verifies, and finds none that does not."""
    trial.starts += good is not None
    if "passed over" in ended.said:
        trial.unreadable += 1
        trial.problems.append(f"a checkpoint was passed over: {ended.said[-500:]}")
    if (
        good is not None
        and ended.code == 0
        and not any(f"{place}{good:,} of" in ended.said for place in ("from step ", "is finished: "))
    ):
        trial.problems.append(f"it did not go on from step {good}: {ended.said[:1500]}")


def _look_at_rest(trial: Trial, run: Path, before: int | None) -> int | None:
    """After a kill no more is lost than was taken since the last save was due, and no checkpoint that there was."""
    try:
        good, recorded = newest_good(run), on_record(run)
    except TrainwellError as error:
        trial.problems.append(f"what the kill left cannot be read: {error}")
        return before
    if before is not None and (good is None or good < before):
        trial.problems.append(f"the checkpoint of step {before} was there and is gone; {good} is the newest now")
    trial.lost.append(recorded - (good or 0))
    return good


_SOONER = 0.9


def at_random_moments(launcher: Launcher, folder: Path, seed: int, kills: int, once: str | None = None) -> Trial:
    """Kill a run so often, each time at a moment drawn evenly from what its length leaves."""
    keys = settings(seed) if kills == 1 else settings(seed, duration=250)
    ended, expected = straight(launcher, folder, keys)
    dice = random.Random(seed)
    longest = 1.0 if once is not None else ended.seconds if kills == 1 else ended.seconds / 2

    def hit(job: Job) -> Job:
        marker = None if once is None else str(Path(job.folder) / once)
        return replace(job, strike=Strike(signal.SIGKILL, dice.uniform(0, longest), marker))

    for _ in range(_TRIES):
        trial = killed(launcher, folder, keys, [hit] * kills, expected)
        if trial is not None:
            trial.say(f"seed {seed}")
            return trial
        longest *= _SOONER  # it was done before: the machine has become quicker than when its length was taken
    return Trial(keys, [f"seed {seed}: done before it was killed, {_TRIES} times"])


def at_fault_points(
    launcher: Launcher, folder: Path, seed: int, points: Sequence[str], *, background: bool
) -> list[Trial]:
    """Kill a run where it first reaches a point once the first checkpoint is there; of a resume, in a second start."""
    keys = settings(seed, **_RESUMED, **{"checkpoint.asynchronous": background})
    _, expected = straight(launcher, folder, keys)
    trials = []
    for point in points:
        everywhere = ",".join(f"{point}@{step}" for step in range(_FIRST_FAULTY_STEP, _RESUMED["duration"] + 1))
        faulty = ["log.after_line@22", everywhere] if point.startswith("resume.") else [everywhere]
        trial = killed(launcher, folder, keys, [partial(replace, fault=fault) for fault in faulty], expected)
        if trial is None:
            trial = Trial(keys, ["it was never reached"])
        trial.say(f"{point}, saving {'in the background' if background else 'at once'}")
        trials.append(trial)
    return trials


def at_operations(launcher: Launcher, folder: Path, seed: int, places: slice, *, background: bool) -> list[Trial]:
    """Kill a small run before its file operations `places`, one in each trial, and with each new file still empty."""
    keys = settings(seed, **_SMALL, **{"checkpoint.asynchronous": background})
    ended, expected = straight(launcher, folder, keys)
    trials = []
    for number in range(len(ended.operations))[places]:
        what = ended.operations[number]
        for emptied in (False, True) if what.startswith(("open w", "open x")) else (False,):
            hit = partial(replace, operation=number, emptied=emptied)
            trial = killed(launcher, folder, keys, [hit], expected)
            if trial is not None:  # with a thread that writes, the last operations may not come in the same order
                trial.say(f"operation {number}, {what}{', the file still empty' if emptied else ''}")
                trials.append(trial)
    return trials


def run(
    count: int = 100,
    seed: int = 0,
    *,
    processes: int = 2,
    five: int = 30,
    real: int = 5,
    every: int = 1,
    ways: Sequence[bool] = (False, True),
) -> dict[str, Any]:
    """Kill `count` runs once, `five` five times, `real` as real processes; at fault points, at file operations.

    `every`: which file operations, each n-th. `ways`: of saving, in the background or not, at fault points and
    operations; what else is killed draws its own.
    """
    chunks = list(product(range(_CHUNKS), ways))
    with work_folder() as folder:

        def once(launcher: Launcher, number: int) -> Trial:
            return at_random_moments(launcher, folder / f"once-{number}", number, 1)

        def often(launcher: Launcher, number: int) -> Trial:
            return at_random_moments(launcher, folder / f"five-{number}", number, 5)

        def faults(launcher: Launcher, number: int) -> list[Trial]:
            chunk, background = chunks[number]
            home, points = folder / f"fault-{number}", list(POINTS)[chunk::_CHUNKS]
            return at_fault_points(launcher, home, seed + number, points, background=background)

        def operations(launcher: Launcher, number: int) -> list[Trial]:
            chunk, background = chunks[number]
            places = slice(chunk * every, None, _CHUNKS * every)
            return at_operations(launcher, folder / f"operation-{number}", seed, places, background=background)

        def all_of(task: Callable[[Launcher, int], list[Trial]]) -> list[Trial]:
            return [trial for found in spread(task, range(len(chunks)), processes) for trial in found]

        trials = {
            "killed at a random moment": spread(once, range(seed, seed + count), processes),
            "killed five times": spread(often, range(seed + 1000, seed + 1000 + five), processes),
            "killed at each fault point, saving at once or in the background": all_of(faults),
            "killed before a change to a file, or when it is open and empty": all_of(operations),
            "`trainwell train` as a process of its own, killed at a random moment": [
                at_random_moments(Processes(), folder / f"real-{number}", number, 1, "runs/run/config.yaml")
                for number in range(seed + 2000, seed + 2000 + real)
            ],
        }
    return {"rows": _rows(trials)}


def _rows(trials: Mapping[str, Sequence[Trial]]) -> list[Row]:
    rows = [
        counted(f"{name}: equal to the bit", [trial.problems for trial in found])
        for name, found in trials.items()
        if found
    ]
    every = [trial for found in trials.values() for trial in found]
    starts = sum(trial.starts for trial in every)
    good = starts - sum(trial.unreadable for trial in every)
    rows.append(
        measured("starts from a checkpoint that met none unreadable", f"{good} of {starts}", held=good == starts)
    )
    return [*rows, _lost(every, background=False), _lost(every, background=True)]


def _lost(trials: Sequence[Trial], *, background: bool) -> Row:
    """What kills cost, as shares of the save interval.

    A state that is being written in the background is not safe yet, and the loop waits for it before it saves the next:
    two intervals at the most.
    """
    how, bound, most = "at once", "the save interval", 1.0
    if background:
        how, bound, most = "in the background", "the save interval and the steps taken while one save is written", 2.0
    shares = {
        f"seed {trial.keys['seed']}: {lost} steps lost, saved every {trial.keys['checkpoint.every']}": lost
        / trial.keys["checkpoint.every"]
        for trial in trials
        for lost in trial.lost
        if trial.keys["checkpoint.asynchronous"] is background
    }
    return measured(
        f"steps lost in a kill, saving {how}: no more than {bound}",
        f"at most {max(shares.values(), default=0.0):.2f} intervals",
        held=max(shares.values(), default=0.0) <= most,
        problems=[text for text, share in shares.items() if share > most],
    )
