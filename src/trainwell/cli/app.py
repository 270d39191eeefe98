"""The command `trainwell`: its verbs, and the one place where an error becomes a message and an exit code."""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError

from trainwell.cli import parts
from trainwell.cli.failures import explained, is_too_long, speaks
from trainwell.errors import TrainwellError
from trainwell.runs.console import safe
from trainwell.version import version_of

VERBS = {
    "train": "Start a recipe, continue a run, or branch from a step of one.",
    "show": "What a recipe, a run or a step is: configuration, curves, samples, verdict.",
    "check": "What is wrong with a plan or damaged in a run; --prove puts promises to the test.",
    "compare": "Which run did better, and whether that is noise; how two schedules differ.",
    "sample": "Text, answers or labels from a run or a step of it.",
    "export": "A run or a step of it as a Hugging Face folder, or its weights alone.",
}
_PREPARE = (
    "Tokenise text of any size into a store: .txt, .md, .jsonl, .json, .csv, .tsv, also packed as .gz or .zst; "
    ".parquet, .arrow; folders of these. Stopped or killed, the same command goes on behind the last shard."
)
_DATA = "Token stores: made from raw text; and what is in those of any program."
_THREADS = ("trainwell-save", "trainwell-data")
"""Threads of a run, which end with it, unless a second signal ended that."""
_SPEAKER_FIRST_S = 1.0
"""So long a rank that says nothing stays, since whoever started it ends all others when it goes."""
_EPILOGUE = (
    "TARGET is a recipe (demo), a config file (my.yaml), a run (runs/demo) or a step of one "
    "(runs/demo@1200, @best, @last). Exit codes: 0 done, 1 a check that was asked for did not hold, "
    "2 bad usage or configuration, 65 bad data, 70 diverged, 71 out of memory, 73 run folder busy, 74 storage, "
    "75 stopped on a signal and resumable, 3 an error of trainwell's own."
)


def app() -> App:
    """The application; the module of a verb is imported when the verb is called."""
    made = App(
        name="trainwell",
        help="The training loop for GPT-style language models in which every step has an address.",
        help_epilogue=_EPILOGUE,
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # it is ours to name
    )
    for verb, help_line in VERBS.items():
        made.command(f"trainwell.cli.{verb}:{verb}", name=verb, help=help_line)
    data = App(name="data", help=_DATA, result_action="return_value", suppress_keyboard_interrupt=False)
    data.command("trainwell.cli.data:prepare", name="prepare", help=_PREPARE)
    data.command("trainwell.cli.data:tokenizer", name="tokenizer", help="Learn a tokenizer from text.")
    data.command("trainwell.cli.data:show", name="show", help="What token files hold, of whichever program.")
    made.command(data)
    return made


def _version() -> str:
    return f"trainwell {version_of()}"


def main(tokens: Sequence[str] | None = None, given: Mapping[str, Any] | None = None) -> None:
    """Run one command line with the parts given and exit; see `trainwell.cli.main`."""
    with parts.given(given or {}):
        code = run(tokens)
        if any(thread.name.startswith(_THREADS) for thread in threading.enumerate()):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # a second signal waits for nothing
        sys.exit(code)


def run(tokens: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; messages go to stderr."""
    say_how_threads_wait()
    try:
        code = app()(sys.argv[1:] if tokens is None else tokens, exit_on_error=False, print_error=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        ours = isinstance(error, (TrainwellError, CycloptsError, KeyboardInterrupt))
        if not ours and os.environ.get("TRAINWELL_TRACEBACK") and not is_too_long(error):
            raise
        return _fail(*explained(error))
    return code if isinstance(code, int) else 0


def say_how_threads_wait(loads: Path = Path("/proc/loadavg")) -> None:
    """Let threads of operations spin a little between them on an idle machine, and sleep on a busy one.

    Between the short operations of a small model, falling asleep takes as long as the work; but where another process
    wants the same cores, spinning makes a step ten times slower. It must be said before torch is imported.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    try:
        others = int(loads.read_text(encoding="ascii").split()[3].split("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        others = 0
    if others > 0:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _fail(message: str, code: int) -> int:
    beginning = speaks()
    if beginning is None:
        time.sleep(_SPEAKER_FIRST_S)
    else:
        sys.stderr.write(f"trainwell: {beginning}{safe(message)}\n")  # it repeats what was typed, or lies in files
    return code
