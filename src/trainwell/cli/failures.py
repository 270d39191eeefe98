"""Any error as a message and an exit code, and which of several processes says it."""

import errno
import os

from cyclopts import CycloptsError, UnusedCliTokensError

from trainwell.errors import TrainwellError


def explained(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code; one that is nobody's fault but ours says so."""
    if isinstance(error, TrainwellError):
        return str(error), error.exit_code
    if isinstance(error, CycloptsError):
        return _in_our_words(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 75
    if is_too_long(error):
        return (
            f"{str(getattr(error, 'filename', ''))[:40]}... is longer than a name of a file may be; give a shorter one",
            2,
        )
    return (
        f"an unexpected error, which is trainwell's fault: {type(error).__name__}: {error}\n"
        "Run again with TRAINWELL_TRACEBACK=1 to see where, and report it"
    ), 3


def is_too_long(error: BaseException) -> bool:
    """Whether a name was given that no file can have."""
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def of_several() -> bool:
    """Whether this process was started as one of several, by torchrun, by --nproc or alike."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def speaks() -> str | None:
    """What a message begins with that a process says for itself: nothing, or its rank; None where another says it.

    Ranks on one machine fail alike as long as they have not joined, so one of each machine speaks.
    """
    if not of_several() or os.environ["RANK"] == "0":
        return ""
    return f"rank {os.environ['RANK']}: " if os.environ.get("LOCAL_RANK") == "0" else None


def _in_our_words(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        unused = ", ".join(map(repr, error.unused_tokens or ()))
        return (
            f"{unused} is more than was asked for: one TARGET, and one value after each flag; quote values with spaces"
        )
    text = " ".join(str(error).split())
    return f"{text[:1].lower()}{text[1:]} (see trainwell --help)"
