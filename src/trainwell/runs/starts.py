"""RUN/starts.jsonl: each time that training began or went on, a line: at which state, when, where and how.

Knows lines. What is on record here is for readers; no number of a run depends on it.
"""

import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Beginning:
    """One start of a run, or of a part of it."""

    step: int
    """The state that it began from; 0 for a fresh run."""
    at: float
    """Seconds since 1970."""
    host: str
    processes: int
    command: tuple[str, ...]


def this_start(step: int, processes: int) -> Beginning:
    """The start that is being made by this process."""
    return Beginning(step, round(time.time(), 3), socket.gethostname(), processes, tuple(sys.argv))


def note_start(file: Path, start: Beginning) -> None:
    """Append a start; OSError when that fails."""
    with file.open("ab", buffering=0) as lines:
        lines.write(json.dumps(asdict(start)).encode() + b"\n")
        os.fsync(lines.fileno())


def read_starts(file: Path) -> tuple[Beginning, ...]:
    """All starts in their order; a line that is none, torn or foreign, is passed over, since nothing depends on it."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(start for line in lines if (start := _parsed(line)) is not None)


def _parsed(line: str) -> Beginning | None:
    try:
        said: dict[str, Any] = json.loads(line)
        return Beginning(
            int(said["step"]),
            float(said["at"]),
            str(said["host"]),
            int(said["processes"]),
            tuple(str(word) for word in said["command"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
