"""Places where people already look, told each row beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio.

Each is an extra that is imported when it is named. None can stop a run: whatever goes wrong in one is said once, and
the run goes on without it. metrics.jsonl remains what resume and every report read.
"""

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from trainwell.runs.metrics import Row

_PROJECT = "trainwell"


class Sink(Protocol):
    """Somewhere that takes rows."""

    def write(self, row: Row) -> None:
        """Take a row: of a step, or of an evaluation."""

    def close(self) -> None:
        """Write what waits, and end."""


Maker = Callable[[Path, Mapping[str, Any], int], Sink]
"""Opens a sink for the run in a folder, of a configuration, from a step on."""


class TensorBoard:
    """Event files in RUN/tensorboard. Steps from `step` on are written anew, and those of an earlier attempt go."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run / "tensorboard"))
        began = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=step, wall_time=time.time(), session_log=began))

    def write(self, row: Row) -> None:
        """Take each number under its own name."""
        values = [self._summary.Value(tag=key, simple_value=number) for key, number in numbers_of(row).items()]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(step=row["step"], wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class Wandb:
    """Any module shaped like wandb: `init`, a run that takes `log(numbers, step=)`, `finish`.

    An evaluation of state n comes after step n - 1 and before step n; it is logged at n, as in metrics.jsonl.
    """

    def __init__(self, module: Any, **settings: Any) -> None:
        self._run = module.init(project=_PROJECT, **settings)

    def write(self, row: Row) -> None:
        """Take the numbers of a row."""
        self._run.log(numbers_of(row), step=row["step"])

    def close(self) -> None:
        """End the module's own run."""
        self._run.finish()


def wandb(run: Path, config: Mapping[str, Any], step: int) -> Sink:
    """Weights & Biases, offline unless WANDB_MODE says otherwise: RUN/wandb, for `wandb sync` later."""
    module = importlib.import_module("wandb")
    settings = module.Settings(silent=True, console="off", x_disable_stats=True, x_save_requirements=False)
    mode = os.environ.get("WANDB_MODE", "offline")
    return Wandb(module, name=run.resolve().name, dir=str(run), config=dict(config), mode=mode, settings=settings)


def trackio(run: Path, config: Mapping[str, Any], step: int) -> Sink:
    """Trackio's local store, where `trackio show` looks: TRACKIO_DIR, or its own default."""
    module = importlib.import_module("trackio")
    quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    return Wandb(module, name=run.resolve().name, config=dict(config), resume="allow", **quiet)


MAKERS: Mapping[str, Maker] = {"tensorboard": TensorBoard, "trackio": trackio, "wandb": wandb}


class Sinks:
    """The sinks of a run, opened with its first row; each that fails is said once and left out from then on."""

    def __init__(
        self,
        names: Sequence[str],
        run: Path,
        config: Mapping[str, Any],
        say: Callable[[str], None],
        makers: Mapping[str, Maker] = MAKERS,
    ) -> None:
        self._waiting = tuple(names)
        self._open: dict[str, Sink] = {}
        self._run, self._config, self._say, self._makers = run, config, say, makers

    def write(self, rows: Sequence[Row]) -> None:
        """Give the rows to every sink."""
        if not rows:
            return
        for name in self._waiting:
            self._tried(name, partial(self._start, name, rows[0]["step"]))
        self._waiting = ()
        for name, sink in [*self._open.items()]:
            self._tried(name, partial(_write_all, sink, rows))

    def close(self) -> None:
        """End every sink."""
        for name, sink in [*self._open.items()]:
            self._tried(name, sink.close)
        self._open = {}

    def _start(self, name: str, step: int) -> None:
        self._open[name] = self._makers[name](self._run, self._config, step)

    def _tried(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except ModuleNotFoundError as error:
            self._open.pop(name, None)
            self._say(f"log.sinks: {name} is not there ({error}); pip install 'trainwell[{name}]'. Training goes on")
        except Exception as error:  # noqa: BLE001  somebody else's code, which must not stop a run
            self._open.pop(name, None)
            self._say(f"log.sinks: {name} failed ({type(error).__name__}: {error}) and is left out; training goes on")


def _write_all(sink: Sink, rows: Sequence[Row]) -> None:
    for row in rows:
        sink.write(row)


def numbers_of(row: Row) -> dict[str, float]:
    """What a sink takes of a row: finite numbers, but for the step, which it gets beside them."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, bool | int | float) and isfinite(value)
    }
