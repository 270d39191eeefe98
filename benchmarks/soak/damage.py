"""Damage: flipped bits, cut and swapped files, and what is left to go on from.

Nothing damaged may ever be loaded: it is passed over with a reason, or the run refuses; and what is removed for want of
room is never the last that is whole.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.soak.figures import counted
from benchmarks.soak.forks import Job, Launcher, spread
from benchmarks.soak.kills import straight, work_folder
from benchmarks.soak.tiny import differences, outcome, settings, train

from trainwell.checkpoint.layout import MANIFEST, TENSORS, read_manifest
from trainwell.checkpoint.store import CheckpointStore
from trainwell.errors import StorageError

_KEYS = {
    "duration": 20,
    "eval.every": 5,
    "sample.every": 6,
    "checkpoint.every": 4,
    "checkpoint.keep": 3,
    "checkpoint.best": False,
    "checkpoint.asynchronous": False,
}
_KILLED = "after_update@14"
_NEWEST, _BEFORE = 12, 8
_FOREIGN = ("step-4-mine", "notes", "step-3.tmp-mine", "step-")

Damage = Callable[[Path, random.Random], str]
"""Does damage to the newest checkpoint in a folder of them, and says what."""


def flip(directory: Path, dice: random.Random) -> str:
    """Turn one bit of one file of a checkpoint."""
    path = dice.choice(sorted(directory.iterdir()))
    content = bytearray(path.read_bytes())
    place, bit = dice.randrange(len(content)), dice.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{directory.name}/{path.name}: bit {bit} of byte {place}"


def truncate(directory: Path, dice: random.Random) -> str:
    """Cut one file of a checkpoint short, perhaps to nothing."""
    path = dice.choice(sorted(directory.iterdir()))
    size = dice.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    return f"{directory.name}/{path.name}: cut to {size} bytes"


def append(directory: Path, dice: random.Random) -> str:
    """Add bytes to one file of a checkpoint."""
    path = dice.choice(sorted(directory.iterdir()))
    with path.open("ab") as file:
        file.write(dice.choice([b"\n", b" ", bytes(8), dice.randbytes(64)]))
    return f"{directory.name}/{path.name}: bytes added"


def _empty(name: str, directory: Path, _dice: random.Random) -> str:
    (directory / name).write_bytes(b"")
    return f"{directory.name}/{name}: emptied"


def _remove(name: str, directory: Path, _dice: random.Random) -> str:
    (directory / name).unlink()
    return f"{directory.name}/{name}: removed"


def _swap(one: Path, other: Path) -> str:
    beside = one.with_name("beside")
    one.rename(beside)
    other.rename(one)
    beside.rename(other)
    return f"{one.parent.name}/{one.name} and {other.parent.name}/{other.name}: swapped"


def _swap_between(name: str, directory: Path, _dice: random.Random) -> str:
    return _swap(directory / name, directory.with_name(f"step-{_BEFORE}") / name)


def _swap_within(directory: Path, _dice: random.Random) -> str:
    return _swap(directory / MANIFEST, directory / TENSORS)


def _swap_whole(directory: Path, _dice: random.Random) -> str:
    return _swap(directory, directory.with_name(f"step-{_BEFORE}"))


OTHERS: dict[str, Damage] = {
    "bytes added": append,
    "tensors emptied": partial(_empty, TENSORS),
    "manifest emptied": partial(_empty, MANIFEST),
    "tensors missing": partial(_remove, TENSORS),
    "manifest missing": partial(_remove, MANIFEST),
}
SWAPS: dict[str, Damage] = {
    "tensors of two checkpoints": partial(_swap_between, TENSORS),
    "manifests of two checkpoints": partial(_swap_between, MANIFEST),
    "two files of one checkpoint": _swap_within,
    "two whole checkpoints": _swap_whole,
}


def detected(checkpoints: Path, damage: Damage, dice: random.Random) -> list[str]:
    """Damage the newest of some checkpoints, or one before it, and put all back; what was not noticed about it."""
    target = dice.choice([directory for directory in checkpoints.iterdir() if directory.is_dir()])
    if damage in SWAPS.values():
        target = checkpoints / f"step-{_NEWEST}"
    with _copy_of(checkpoints) as copy:
        what = damage(copy / target.name, dice)
        store, step, said = CheckpointStore(copy), int(target.name.removeprefix("step-")), list[str]()
        problems = [
            f"{what}: {name} did not notice"
            for name, look in (("verify", store.verify), ("load", store.load))
            if not _refuses(look, step)
        ]
        newest = store.newest(said.append)
        if newest is None or _refuses(store.verify, newest):
            problems.append(f"{what}: newest gave {newest}")
        if step == _NEWEST and not said:
            problems.append(f"{what}: passed over without a word")
    return problems


@contextmanager
def _copy_of(folder: Path) -> Iterator[Path]:
    copy = folder.with_name("damaged")
    shutil.copytree(folder, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def _refuses(look: Callable[[int], object], step: int) -> bool:
    try:
        look(step)
    except StorageError:
        return True
    return False


def each_byte_of_a_manifest(checkpoints: Path, dice: random.Random, every: int) -> list[list[str]]:
    """Turn one bit of each byte, or of every n-th, of a manifest; what was not noticed, byte by byte."""
    directory = checkpoints / f"step-{_NEWEST}"
    path = directory / MANIFEST
    whole = path.read_bytes()
    found = []
    for place in range(0, len(whole), every):
        bit = dice.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        noticed = _refuses(lambda _: read_manifest(directory, verify_files=False), _NEWEST)
        found.append([] if noticed else [f"manifest of {len(whole)} bytes: bit {bit} of byte {place} was not noticed"])
    path.write_bytes(whole)
    return found


def gone_on_from(launcher: Launcher, folder: Path, seed: int, damages: Mapping[str, Damage]) -> list[list[str]]:
    """Kill a run, damage its newest checkpoint, start it again: it says so, takes the one before, ends the same."""
    keys = settings(seed, **_KEYS)
    _, expected = straight(launcher, folder, keys)
    half = killed_half_way(launcher, folder, keys)
    found = []
    for name, damage in damages.items():
        damaged = folder / "damaged"
        shutil.copytree(half, damaged)
        dice = random.Random(f"{seed} {name}")
        run = damaged / "runs" / "run"
        what = damage(run / "checkpoints" / f"step-{_NEWEST}", dice)
        start = _whole(CheckpointStore(run / "checkpoints"))
        ended = launcher.run(Job(train("run", keys), str(damaged)))
        problems = [] if f"from step {start} of" in ended.said else [f"it did not go on from step {start}"]
        if "passed over" not in ended.said:
            problems.append("nothing was said of it")
        if ended.code != 0:
            problems.append(f"it ended with {ended.code}: {ended.said[-500:]}")
        else:
            problems += differences(outcome(run, keys["duration"]), expected)
        found.append([f"seed {seed}, {what}: {problem}" for problem in problems])
        shutil.rmtree(damaged)
    return found


def _whole(store: CheckpointStore) -> int:
    """The newest step of the three that verifies."""
    return max(step for step in (4, _BEFORE, _NEWEST) if not _refuses(store.verify, step))


def killed_half_way(launcher: Launcher, folder: Path, keys: Mapping[str, Any]) -> Path:
    """A folder with a run that was killed after step 14 of 20, with checkpoints of steps 4, 8 and 12."""
    half = folder / "half"
    shutil.copytree(folder / "straight", half, ignore=shutil.ignore_patterns("runs"))
    launcher.run(Job(train("run", keys), str(half), fault=_KILLED))
    return half


def refused(launcher: Launcher, folder: Path, seed: int) -> list[str]:
    """Damage every checkpoint of a run: starting it again must end with 74 and a reason, and remove nothing."""
    keys = settings(seed, **_KEYS)
    straight(launcher, folder, keys)
    run = killed_half_way(launcher, folder, keys) / "runs" / "run"
    dice = random.Random(seed)
    what = [flip(directory, dice) for directory in sorted((run / "checkpoints").iterdir())]
    before = _contents(run)
    ended = launcher.run(Job(train("run", keys), str(folder / "half")))
    problems = [] if ended.code == StorageError.exit_code else [f"it ended with {ended.code}: {ended.said[-500:]}"]
    if any(_contents(run).get(name) != content for name, content in before.items()):
        problems.append("files of the run were changed or removed")
    return [f"seed {seed}, {'; '.join(what)}: {problem}" for problem in problems]


def _contents(run: Path) -> dict[str, bytes]:
    names = [*(run / "checkpoints").rglob("*"), run / "metrics.jsonl"]
    return {str(path): path.read_bytes() for path in names if path.is_file()}


def kept(folder: Path, seed: int) -> list[str]:
    """Save a dozen states with damage in between: the new one and the best of the old must stay, foreign names too."""
    dice = random.Random(seed)
    store = CheckpointStore(folder, keep=dice.choice([1, 2, 3, 4]))
    for name in _FOREIGN:
        (folder / name).mkdir(parents=True)
    good: list[int] = []
    for step in range(1, 13):
        damaged = ""
        if good and dice.random() < 0.7:
            damaged = dice.choice([flip, truncate, *OTHERS.values()])(folder / f"step-{dice.choice(good)}", dice)
        good = [number for number in good if not _refuses(store.verify, number)]
        store.save(step, {"weight": torch.full((8,), float(step)), "name": "é 1e-05"}, {"data": {}})
        must = {step, *good[-1:]}
        good = [number for number in (*good, step) if not _refuses(store.verify, number)]
        if not must <= set(good):
            return [f"seed {seed}, {damaged}, then step {step} was saved: {sorted(must - set(good))} is gone"]
    missing = [name for name in _FOREIGN if not (folder / name).is_dir()]
    return [f"seed {seed}: {', '.join(missing)} was not its own to remove"] if missing else []


def run(
    count: int = 500, seed: int = 0, *, processes: int = 2, cut: int = 200, runs: int = 6, every: int = 1
) -> dict[str, Any]:
    """Flip `count` bits, cut `cut` files, swap and remove; go on from damage in `runs` runs; save amid damage.

    `every`: of a manifest each n-th byte is damaged.
    """
    with work_folder() as folder:

        def start_again(launcher: Launcher, number: int) -> list[list[str]]:
            kinds = {"flip": flip, "cut": truncate} | (OTHERS | SWAPS if number % 2 == 0 else {})
            return gone_on_from(launcher, folder / f"again-{number}", number, kinds)

        def refuse(launcher: Launcher, number: int) -> list[str]:
            return refused(launcher, folder / f"refused-{number}", number)

        def sample(launcher: Launcher, number: int) -> Path:
            keys = settings(number, **_KEYS)
            straight(launcher, folder / "sample", keys)
            return killed_half_way(launcher, folder / "sample", keys) / "runs" / "run" / "checkpoints"

        (checkpoints,) = spread(sample, [seed], 1)
        dice = random.Random(seed)

        def look(damages: Sequence[Damage]) -> list[list[str]]:
            return [detected(checkpoints, damage, dice) for damage in damages]

        again = spread(start_again, range(seed, seed + runs), processes)
        rows = [
            counted("a flipped bit, anywhere in any file of a checkpoint, is detected", look([flip] * count)),
            counted("a flipped bit in each byte of a manifest", each_byte_of_a_manifest(checkpoints, dice, every)),
            counted("a file cut short is detected", look([truncate] * cut)),
            counted("swapped files, between checkpoints and within one, are detected", look([*SWAPS.values()])),
            counted("bytes added, a file emptied or missing", look([*OTHERS.values()] * max(cut // 20, 1))),
            counted(
                "started again after damage: passed over with a reason, and the end equal to the bit",
                [problems for found in again for problems in found],
            ),
            counted(
                "every checkpoint damaged: the run refuses to start with 74 and removes nothing",
                spread(refuse, range(seed, seed + max(runs // 2, 1)), processes),
            ),
            counted(
                "saves with damage in between: the newest two that are whole are left, and what is not ours",
                [kept(folder / f"kept-{number}", number) for number in range(seed, seed + max(cut // 2, 5))],
            ),
        ]
    return {"rows": rows}
