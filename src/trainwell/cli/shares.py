"""`data prepare` in several processes: each takes a share of the units, as --shard does, while this one looks on."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO

from trainwell.data.storing import Preparation, Progress
from trainwell.errors import StoppedError, StorageError, TrainwellError
from trainwell.runs import processors

_PARENT = "TRAINWELL_PREPARED_FOR"
_MOST = 16
"""Processes at the same time: each holds the shard that it is about to write."""
_GLANCE_S = 0.1
Child = subprocess.Popen[bytes]


def is_share() -> bool:
    """Whether this process was started for a share of the work; if so it ends with the one that started it."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return False
    threading.Thread(target=_end_when_orphaned, args=(int(parent),), name="trainwell-orphan", daemon=True).start()
    return True


def how_many(made: Preparation) -> int:
    """Processes that pay: no more than processors, nor than units that are left."""
    return min(processors.usable(), len(made.left()), _MOST)


def in_processes(made: Preparation, words: Sequence[str], count: int, say: Callable[[Progress], None]) -> list[str]:
    """Prepare every unit in `count` processes that are started with `words`; return what the first one noted.

    Raises the error of whichever fails first, when the others are ended.
    """
    before = made.progress().text_bytes
    with ExitStack() as open_files:
        outputs = [
            (open_files.enter_context(TemporaryFile()), open_files.enter_context(TemporaryFile())) for _ in range(count)
        ]
        children = [_started([*words, "--shard", f"{share}/{count}"], *files) for share, files in enumerate(outputs)]
        try:
            while any(child.poll() is None for child in children) and not any(child.returncode for child in children):
                now = made.progress()
                say(Progress(now.bytes_read, now.bytes_total, now.text_bytes - before))
                time.sleep(_GLANCE_S)
        finally:
            for child in children:
                child.terminate()
                child.wait()
        for child, (_, errors) in zip(children, outputs, strict=True):
            if child.returncode > 0:
                raise _error(child.returncode, _read(errors))
        if any(child.returncode for child in children):
            raise StoppedError(
                "a process of the preparation was killed; the same command again goes on behind the last shard"
            )
        return _read(outputs[0][0]).splitlines()[:-1]


def _started(words: Sequence[str], out: IO[bytes], errors: IO[bytes]) -> Child:
    """A process in a session of its own: Ctrl-C is for the one that looks on."""
    environment = {**os.environ, _PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "trainwell", *words]
    return subprocess.Popen(command, stdout=out, stderr=errors, env=environment, start_new_session=True)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _error(code: int, said: str) -> TrainwellError:
    """The error that a process ended with, as one of this process."""
    kind = next((each for each in TrainwellError.__subclasses__() if each.exit_code == code), StorageError)
    return kind(
        said.strip().rpartition("trainwell: ")[2] or f"a process of the preparation ended with exit code {code}"
    )


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_GLANCE_S)
    os._exit(StoppedError.exit_code)
