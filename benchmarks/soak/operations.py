"""Every change that a process makes to the files of a folder, counted, and the n-th of them its last.

Python tells an audit hook of each file that it opens, renames or removes, before it does so. What is written by other
than Python (the tensors of a checkpoint) is not seen: there the fault points are.
"""

import os
import sys
from pathlib import Path
from typing import Any

from trainwell import faults

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operations:
    """Counts changes below `folder`; dies before the one numbered `last`, or once its file is opened and empty."""

    def __init__(self, folder: Path, last: int | None = None, *, emptied: bool = False) -> None:
        self.folder = f"{folder.resolve()}{os.sep}"
        self.last = last
        self.emptied = emptied
        self.done: list[str] = []
        self._enabled = False

    def begin(self) -> None:
        """Count from now on; a hook stays for the life of the process."""
        self._enabled = True
        sys.addaudithook(self._hear)

    def end(self) -> None:
        """Count no more."""
        self._enabled = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._enabled or not (event in _CHANGES or (event == "open" and _for_writing(*arguments[1:3]))):
            return
        path = arguments[0]
        where = os.path.abspath(path) if isinstance(path, str | os.PathLike) else ""  # noqa: PTH100  resolve opens files
        if not where.startswith(self.folder):
            return
        if len(self.done) == self.last:
            self._enabled = False
            if (
                self.emptied and event == "open" and str(arguments[1])[:1] in {"w", "x"}
            ):  # what is added to stays as it is
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
            faults.die()
        what = f"open {str(arguments[1])[:1]}" if event == "open" else event
        self.done.append(f"{what} {where.removeprefix(self.folder)}")


def _for_writing(mode: str | None, flags: int | None) -> bool:
    return bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool((flags or 0) & _WRITING)
