"""A disk that runs full while a run trains: files that may not grow (RLIMIT_FSIZE), and a small disk (tmpfs) filled up.

The run must go on without what it cannot write, lose no checkpoint that it has, and say what to free; where there is
room again, in the same process or in the next, the end is equal to the bit.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.soak.figures import Row, counted, measured
from benchmarks.soak.forks import Job, Launcher, Shortage, spread
from benchmarks.soak.kills import straight, work_folder
from benchmarks.soak.tiny import differences, on_record, outcome, settings, train, write_text

from trainwell.checkpoint.layout import read_manifest, saved_steps
from trainwell.errors import StorageError

_KEYS = {
    "duration": 28,
    "eval.every": 5,
    "sample.every": 6,
    "checkpoint.every": 4,
    "checkpoint.keep": 2,
    "checkpoint.best": False,
    "log.every": 1000,
}
_FULL, _ROOM = "after_update@14", "after_update@22"
_LIMITS = {"checkpoints": 20_000, "metrics": 6_000}
"""Bytes that are too few for a checkpoint; and for metrics of more than 20 steps too."""
_DISK = "size=2m"
_STAYS = "it trains on, keeps the checkpoints it has, ends with 74 and what to free; with room again equal to the bit"
_BACK = "there is room again eight steps later: the failed saves are reported, it ends with 0, equal to the bit"
_PROMISES = {
    f"files may not grow from a step on: {_STAYS}": ("checkpoints, stays", "metrics, stays"),
    f"files may not grow from a step on, {_BACK}": ("checkpoints, back", "metrics, back"),
    f"a disk is full from a step on: {_STAYS}": ("disk, stays",),
    f"a disk is full from a step on, {_BACK}": ("disk, back",),
    "no room for one checkpoint: it ends before its first step, with 74 and what to free": ("refused",),
}


def stays_full(
    launcher: Launcher, folder: Path, keys: Mapping[str, Any], expected: Any, shortage: Shortage
) -> list[str]:
    """No room from step 14 to the end: it trains on, ends with 74 and advice; then, with room, it ends the same."""
    job = Job(train("run", keys), str(folder))
    run = folder / "runs" / "run"
    launcher.run(Job(job.arguments, job.folder, fault=_FULL))
    before = _whole(run)
    short = launcher.run(Job(job.arguments, job.folder, shortage=shortage))
    problems = _complaints(short.said, short.code)
    if shortage.limit == _LIMITS["metrics"] and "metrics.jsonl" not in short.said:
        problems.append("its metrics were not short of room")
    after = _whole(run)
    if not before or len(after) < len(before) or max(after) < max(before):  # retention may have moved on, by whole ones
        problems.append(f"checkpoints of {sorted(before)} were there, {sorted(after)} are")
    if shortage.ballast is not None:
        Path(shortage.ballast).unlink(missing_ok=True)
    ended = launcher.run(job)
    if ended.code != 0:
        return [*problems, f"with room again, it ended with {ended.code}: {ended.said[-500:]}"]
    return [*problems, *differences(outcome(run, keys["duration"]), expected)]


def _complaints(said: str, code: int) -> list[str]:
    problems = [] if code == StorageError.exit_code else [f"it ended with {code}: {said[-500:]}"]
    if "free" not in said.rpartition("trainwell: ")[2]:
        problems.append(f"it did not say what to free: {said[-500:]}")
    if "training goes on" not in said:
        problems.append(f"a save that failed was not reported: {said[-1500:]}")
    return problems


def comes_back(
    launcher: Launcher, folder: Path, keys: Mapping[str, Any], expected: Any, shortage: Shortage
) -> list[str]:
    """No room from step 14 to 22: it reports the saves that fail, ends with 0, and everything is there."""
    ended = launcher.run(Job(train("run", keys), str(folder), shortage=shortage))
    problems = (
        [] if "training goes on" in ended.said else [f"a save that failed was not reported: {ended.said[-1500:]}"]
    )
    if ended.code != 0:
        return [*problems, f"it ended with {ended.code}: {ended.said[-500:]}"]
    return [*problems, *differences(outcome(folder / "runs" / "run", keys["duration"]), expected)]


def refused(launcher: Launcher, folder: Path, keys: Mapping[str, Any]) -> list[str]:
    """No room for a single checkpoint: it ends with 74 and advice before its first step."""
    shortage = Shortage("", limit=_LIMITS["checkpoints"])
    ended = launcher.run(Job(train("run", keys), str(folder), shortage=shortage))
    problems = [] if ended.code == StorageError.exit_code else [f"it ended with {ended.code}: {ended.said[-500:]}"]
    if "free" not in ended.said.rpartition("trainwell: ")[2]:
        problems.append(f"it did not say what to free: {ended.said[-500:]}")
    if on_record(folder / "runs" / "run"):
        problems.append("it took steps that it could not save")
    return problems


def _whole(run: Path) -> set[int]:
    found = set()
    for step in saved_steps(run / "checkpoints"):
        try:
            read_manifest(run / "checkpoints" / f"step-{step}")
        except StorageError:
            continue
        found.add(step)
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of two megabytes as `runs` in the folder; gives whether that was allowed."""
    disk = folder / "runs"
    disk.mkdir(parents=True)
    mount = shutil.which("mount")
    mounted = mount is not None and not subprocess.call(
        [mount, "-t", "tmpfs", "-o", _DISK, "tmpfs", str(disk)], stderr=subprocess.DEVNULL
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.check_call(["umount", str(disk)])


_TESTS = {"stays": stays_full, "back": comes_back}


def _trials(launcher: Launcher, folder: Path, number: int, *, background: bool) -> dict[str, list[str] | None]:
    keys = settings(number, **_KEYS, **{"checkpoint.asynchronous": background})
    _, expected = straight(launcher, folder, keys)
    found: dict[str, list[str] | None] = {}
    for (what, limit), (how, test) in product(_LIMITS.items(), _TESTS.items()):
        home = folder / f"{what}-{how}"
        write_text(home)
        shortage = Shortage(_FULL, limit=limit, until=_ROOM if how == "back" else "")
        found[f"{what}, {how}"] = test(launcher, home, keys, expected, shortage)
    for how, test in _TESTS.items():
        home = folder / f"disk-{how}"
        write_text(home)
        with small_disk(home) as mounted:
            shortage = Shortage(_FULL, ballast=str(home / "runs" / "ballast"), until=_ROOM if how == "back" else "")
            found[f"disk, {how}"] = test(launcher, home, keys, expected, shortage) if mounted else None
    write_text(folder / "refused")
    found["refused"] = refused(launcher, folder / "refused", keys)
    where = f"seed {number}, saving {'in the background' if background else 'at once'}"
    return {
        name: None if problems is None else [f"{where}, {name}: {problem}" for problem in problems]
        for name, problems in found.items()
    }


def run(count: int = 10, seed: int = 0, *, processes: int = 2) -> dict[str, Any]:
    """Let the disk run full in `count` runs, half of which save in the background, in every way there is."""
    with work_folder() as folder:

        def trials(launcher: Launcher, number: int) -> dict[str, list[str] | None]:
            return _trials(launcher, folder / str(number), number, background=bool(number % 2))

        found = spread(trials, range(seed, seed + count), processes)

    return {
        "rows": [
            _row(promise, [each[name] for each in found for name in names]) for promise, names in _PROMISES.items()
        ]
    }


def _row(promise: str, problems: list[list[str] | None]) -> Row:
    done = [each for each in problems if each is not None]
    if not done:
        return measured(promise, "not run: no small disk can be mounted here", held=True)
    return counted(promise, done)
