"""What a rank says of itself in RUN/.heartbeat, again and again, and what can be seen of its process from beside it.

Knows files, processes and the places in the code where ranks wait for each other; not what follows from that.
"""

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Literal, Self

HEARTBEATS = ".heartbeat"

State = Literal["runs", "stopped", "gone", "unknown"]


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself, again and again."""

    rank: int
    process: int
    host: str
    place: str
    """Machine and process namespace: only there is the number of a process worth something."""
    born: str
    """When the process began, in the kernel's words: another may get its number."""
    beat: int = 0
    moves: int = 0
    """How often its loop said that it gets on."""
    step: int | None = None
    """The last step it finished; None before there was one."""
    busy: str = ""
    """What it does that is no step; empty during steps."""
    at: str = ""
    """Where its loop is in the code."""
    waits: bool = False
    """Whether it waits there for other ranks."""
    left: str | None = None
    """How it left the loop: empty for an end without an error, else the error; None while it is inside."""
    stacks: bool = False
    """Whether it has written its stacks, after an alarm."""

    @classmethod
    def of(cls, rank: int) -> Self:
        """The first sign of this process."""
        return cls(rank, os.getpid(), socket.gethostname(), place(), facts_of(os.getpid())[1])

    @classmethod
    def read(cls, content: bytes) -> Self | None:
        """A sign as it stands in a file; None where it is no whole one."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def write(self, folder: Path) -> bool:
        """Put it into its file, which others read; whether that worked."""
        return write(folder / f"rank-{self.rank}", json.dumps(asdict(self)), self.rank)

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


def whereabouts(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread is, and whether it waits there for other ranks: inside of torch, in a collective or a backward.

    A backward ends once the gradients of all are there. Only its innermost calls count: with fsdp the whole forward is
    called from within torch.distributed.
    """
    if frame is None:
        return "an unknown place", False
    path = Path(frame.f_code.co_filename)
    files: list[str] = []
    at = f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}"
    while frame is not None and len(files) < 3:
        files.append(frame.f_code.co_filename.replace(os.sep, "/"))
        frame = frame.f_back
    waits = any("/torch/distributed/" in file or "/torch/autograd/" in file for file in files)
    return at, waits and "/torch/" in files[0]


def state_of(sign: Sign) -> State:
    """How the process of a sign of life fares, where it runs beside this one."""
    if sign.place != place() or sys.platform == "win32":  # there, signal 0 is one that kills
        return "unknown"
    try:
        os.kill(sign.process, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        return "unknown"
    letter, born = facts_of(sign.process)
    if not letter:
        return "unknown"
    if letter in "ZX" or born != sign.born:
        return "gone"
    return "stopped" if letter == "T" else "runs"


def facts_of(process: int) -> tuple[str, str]:
    """The state and the start of a process as Linux tells them (proc_pid_stat(5)); empty where nobody tells."""
    content = read(Path(f"/proc/{process}/stat"))
    fields = [] if content is None else content.rpartition(b")")[2].decode("ascii", "replace").split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


@cache
def place() -> str:
    """This machine and process namespace; the name of the machine where the kernel tells no more."""
    boot = read(Path("/proc/sys/kernel/random/boot_id"))
    try:
        return f"{(boot or b'').decode().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def read(path: Path) -> bytes | None:
    """What a file holds; None where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def write(path: Path, text: str, rank: int) -> bool:
    """Write a file whole or not at all, as `rank`; whether that worked."""
    unfinished = path.with_name(f"{path.name}.{rank}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        return False
    return True
