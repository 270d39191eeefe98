"""Named places in the code where a fault can be made to happen, so that surviving it can be tested. Free when unset.

`TRAINWELL_FAULT=point@step[:rank]` kills the process, as SIGKILL would, the first time it reaches that point at that
step; several are separated by commas. `at` does the same, or something else, to a block of code.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainwell.errors import ConfigError

POINTS = {
    "after_backward": "the gradients of a step are there, nothing is updated",
    "after_update": "the update of a step is done, nothing is recorded",
    "log.before_line": "lines of metrics are about to be written",
    "log.mid_line": "half a line of metrics is on the disk",
    "log.after_line": "lines of metrics are written",
    "ckpt.tmp_open": "the temporary folder of a checkpoint is there, and empty",
    "ckpt.mid_write": "half of a checkpoint's tensors are on the disk",
    "ckpt.before_manifest": "a checkpoint's tensors are on the disk, its manifest is not",
    "ckpt.before_rename": "a checkpoint is whole, under its temporary name",
    "ckpt.after_rename": "a checkpoint has its name, and is not verified yet",
    "ckpt.mid_gc": "an old checkpoint is half removed",
    "eval.mid": "one batch of an evaluation is done",
    "sample.mid": "a sample is generated, and not yet on file",
    "resume.before_rewind": "a run is restored, and its metrics still go on past the restored step",
    "resume.mid_rewind": "the lines that are left behind are kept in attempts/, and still in the metrics",
}
"""Every point, and how things stand there. The step is the step being taken; of a checkpoint, the state it holds."""

Act = Callable[[], object]


def die() -> None:
    """End the process as a power cut would: nothing is flushed, nothing is cleaned up."""
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)


def armed(point: str, step: int, rank: int = 0) -> bool:
    """Whether something is to happen here: for places that must set the scene before they call `reach`."""
    return bool(_armed) and (point, step, rank) in _armed


def reach(point: str, step: int, rank: int = 0) -> None:
    """Say that the code is at `point` of `step`; does nothing unless a fault waits there."""
    if _armed and (act := _armed.get((point, step, rank))) is not None:
        act()


@contextmanager
def at(fault: str, act: Act = die) -> Iterator[None]:
    """Arm `point@step[:rank]` with `act` while the block lasts; ConfigError for a point that does not exist."""
    place = _parse(fault)
    _armed[place] = act
    try:
        yield
    finally:
        _armed.pop(place, None)


def _parse(fault: str) -> tuple[str, int, int]:
    point, _, when = fault.strip().partition("@")
    step, _, rank = when.partition(":")
    if point not in POINTS or not step.isdecimal() or not (rank or "0").isdecimal():
        raise ConfigError(
            f"TRAINWELL_FAULT: {fault!r} is no fault; write point@step or point@step:rank, with one of the points "
            f"{', '.join(POINTS)}"
        )
    return point, int(step), int(rank or 0)


def arm_from_environment() -> None:
    """Arm what TRAINWELL_FAULT names; ConfigError for a fault that cannot be read."""
    for fault in filter(None, os.environ.get("TRAINWELL_FAULT", "").split(",")):
        _armed[_parse(fault)] = die


_armed: dict[tuple[str, int, int], Act] = {}
