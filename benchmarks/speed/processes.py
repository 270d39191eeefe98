"""Processes started one after the other, each measured from outside: seconds, memory, and its last line of JSON."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import ROOT

_OURS = {"GOMP_SPINCOUNT": "10000"}
"""What the command `trainwell` sets on an idle machine, unless either of these is set."""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SHOWN_OF_AN_ERROR = 3


@dataclass(frozen=True)
class Ended:
    """How a process ended; `said` is what it printed, `why` the end of what it complained of."""

    code: int
    seconds: float
    peak_bytes: int
    said: str
    why: str

    @property
    def answer(self) -> dict[str, Any]:
        """Its last line as JSON; what went wrong, under `left_out`, where there is none."""
        lines = self.said.strip().splitlines()
        try:
            return json.loads(lines[-1])  # type: ignore[no-any-return]
        except (IndexError, ValueError):
            return {"left_out": f"failed with exit code {self.code}: {self.why}"}


def environment(*, ours: bool) -> dict[str, str]:
    """The environment as it is, with the checkout importable; with our settings in it where they are wanted."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = ours and not any(name in os.environ for name in _WAITING)
    return (_OURS if ours else {}) | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def prepare(case: str, folder: Path) -> str:
    """Have the tokens and weights of a case written; say what the tokens are. RuntimeError where that failed."""
    answer = start("benchmarks.speed.cases", ["--case", case, "--folder", str(folder)], ours=False).answer
    if "tokens" not in answer:
        raise RuntimeError(f"{case} could not be prepared: {answer['left_out']}")
    return str(answer["tokens"])


def start(module: str, arguments: Sequence[str], *, ours: bool, folder: Path | None = None, **more: str) -> Ended:
    """Run `python -m MODULE ARGUMENTS` to its end; `more` goes into its environment."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        begin = time.perf_counter()
        made = subprocess.Popen(
            command, stdout=out, stderr=error, cwd=folder or ROOT, env=environment(ours=ours) | more
        )
        try:
            _, status, usage = os.wait4(made.pid, 0)
        except BaseException:
            made.kill()
            raise
        taken = time.perf_counter() - begin
        made.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        error.seek(0)
        why = " / ".join(error.read().strip().splitlines()[-_SHOWN_OF_AN_ERROR:])
        return Ended(made.returncode, taken, usage.ru_maxrss * 1024, out.read(), why)
