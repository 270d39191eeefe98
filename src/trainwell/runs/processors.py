"""The processors of this machine: how many there are for this process, whether one is idle, and standing back."""

import os
from contextlib import suppress

_LAST = 19


def usable() -> int:
    """Count the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # neither macOS nor Windows says which a process may use


def one_is_idle() -> bool:
    """Whether there is one for another thread, by the load of the last minute; no where the system does not say."""
    return hasattr(os, "getloadavg") and has_room(os.getloadavg()[0], usable())


def has_room(load: float, count: int) -> bool:
    """Whether `count` processors have one for another thread under this load."""
    return load + 1 <= count


def step_back() -> None:
    """Let every other process go first: for this thread, and those that it starts from now on."""
    with suppress(OSError, AttributeError):  # Windows has no such thing
        os.nice(_LAST)
