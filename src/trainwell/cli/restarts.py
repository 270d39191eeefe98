"""`train --restarts N`: the same command as a process of its own, kept running by `supervise`."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainwell.cli import parts
from trainwell.errors import ConfigError
from trainwell.runs.rundir import RunDir
from trainwell.supervise import SUPERVISED, supervise


def keep_running(arguments: Sequence[str], run: RunDir, restarts: int) -> int:
    """Train into the folder of `run` with these arguments, in a child process; return its last exit code."""
    if SUPERVISED in os.environ:
        raise ConfigError(
            "--restarts: this process is supervised already. A script that is to be started again must leave the "
            "command line to trainwell.cli.main(): call it without tokens"
        )
    return supervise(
        [*program("--restarts"), "train", *arguments, "--run", run.shown], run, restarts=restarts, say=_say
    )


def written(
    target: str, *, config: Path | None, switches: Mapping[str, bool], values: Mapping[str, object]
) -> list[str]:
    """The arguments of `train` that say this: a name with `=`, so that no value is taken for a flag."""
    named = [f"--{name}={item}" for name, value in values.items() for item in _items(value)]
    return [
        target,
        *([] if config is None else [f"--config={config}"]),
        *(f"--{name}" for name, on in switches.items() if on),
        *named,
    ]


def _items(value: object) -> Sequence[object]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def program(flag: str) -> list[str]:
    """What starts trainwell as it was started here: a script that gives parts is run again, with its parts.

    Raises ConfigError where there is no script: a notebook, a prompt.
    """
    if not parts.current():
        return [sys.executable, "-m", "trainwell"]
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name.removesuffix(".__main__")]
    script = getattr(main, "__file__", None)
    if script is None or not Path(script).is_file():
        raise ConfigError(
            f"{flag} runs the script that gives the parts again, and these were given without a script; put them into "
            f"a file that calls trainwell.cli.main(...), or leave {flag} out"
        )
    return [sys.executable, script]


def _say(text: str) -> None:
    sys.stderr.write(f"trainwell: {text}\n")
    sys.stderr.flush()
