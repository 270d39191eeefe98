"""RUN/exit.json: how one of several processes ended for all of them. The first one stays; strict JSON, written whole.

Knows the file, not what the codes mean: `trainwell.errors` has them.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from trainwell.errors import StorageError

EXIT = "exit.json"


@dataclass(frozen=True)
class Exit:
    """The end of an attempt, in the words of the process that ended first."""

    code: int
    rank: int
    """Which process it is about: the one that failed, or that hangs."""
    message: str


def write_exit(run: Path, end: Exit) -> bool:
    """Write exit.json in the folder `run`, unless there is one; whether this one is the first.

    Raises StorageError where it cannot be written.
    """
    place = run / EXIT
    unfinished = run / f".{EXIT}.{end.rank}.{os.getpid()}.tmp"
    try:
        unfinished.write_text(json.dumps(asdict(end)) + "\n", encoding="utf-8", newline="\n")
        try:
            os.link(unfinished, place)  # whole at once, and fails where another is there: a rename would replace it
        except FileExistsError:
            return False
        except OSError:  # a file system without links: a moment in which two both write is the lesser evil
            if place.exists():
                return False
            unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {place}: {error.strerror}") from None
    return True


def read_exit(run: Path) -> Exit | None:
    """What exit.json in the folder `run` says; None where there is none, or it cannot be read."""
    try:
        facts = json.loads((run / EXIT).read_text(encoding="utf-8"))
        return Exit(int(facts["code"]), int(facts["rank"]), str(facts["message"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_exit(run: Path) -> None:
    """Remove exit.json from the folder `run`, if it is there; StorageError where that fails."""
    try:
        (run / EXIT).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {run / EXIT}: {error.strerror}") from None
