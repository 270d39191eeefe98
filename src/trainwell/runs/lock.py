"""Locks that the kernel holds, and drops when their owner dies. Knows files, not what they are for."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trainwell.errors import RunBusyError, StorageError

_LOOK_S = 0.05

if sys.platform == "win32":
    import msvcrt

    def take(file: BinaryIO) -> bool:
        """Lock one byte far past the text, so that others can still read the owner's name."""
        file.seek(2**30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def take(file: BinaryIO) -> bool:
        """Lock the file if nobody holds it; closing it, or dying, gives it back."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def held(path: Path, *, wait_s: float = 600.0) -> Iterator[None]:
    """Hold the lock file at `path` while the block lasts, after waiting for whoever holds it.

    Raises RunBusyError after `wait_s` seconds, StorageError where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None
    with file:
        begin = time.monotonic()
        while not take(file):
            if time.monotonic() - begin > wait_s:
                raise RunBusyError(f"another process has been busy with {path.parent} for {wait_s:.0f} s; stop it")
            time.sleep(_LOOK_S)
        yield
