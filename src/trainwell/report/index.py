"""The runs of a folder side by side: how each stands, how it went so far, when it will be done."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log
from pathlib import Path
from statistics import fmean, median
from time import time
from typing import Literal
from urllib.parse import quote

from trainwell.errors import TrainwellError
from trainwell.report import story
from trainwell.report.html import Drawn, page, write
from trainwell.report.load import RunData, joined, load_run, runs_below
from trainwell.report.verdict import judge_joined
from trainwell.runs.console import short_time
from trainwell.runs.exits import read_exit

State = Literal["running", "finished", "stopped", "diverged", "stalled", "not started", "damaged"]
INDEX = "index.html"
_SPARKS = 60
_QUIET_S, _QUIET_STEPS = 120.0, 20.0
"""A run that somebody owns has stalled when it said nothing for so long, in seconds and in steps of its own."""
_DIVERGED = 70
_TONES = {"finished": "good", "running": "good", "diverged": "bad", "stalled": "bad", "damaged": "bad"}
_SIGNS = {"running": "▶", "finished": "✓", "stopped": "■", "diverged": "✕", "stalled": "!", "damaged": "?"}


@dataclass(frozen=True)
class Entry:
    """One run of the index."""

    name: str
    """Its path below the folder."""
    state: State
    steps: int
    num_steps: int | None
    best_loss: float | None
    said: str
    """The verdict, or why it cannot be read."""
    seconds_left: float | None
    spark: tuple[float, ...]
    """The smoothed training loss, on a logarithmic scale from 0 (lowest) to 1."""

    @property
    def sign(self) -> str:
        """The state as a sign, for whoever sees no colours."""
        return _SIGNS.get(self.state, "·")

    @property
    def tone(self) -> str:
        """Whether the state is good or bad news."""
        return _TONES.get(self.state, "")

    @property
    def left(self) -> str:
        """The time that is left."""
        return "" if self.seconds_left is None else short_time(self.seconds_left)


def entries(folder: Path) -> list[Entry]:
    """One entry for each run; one that cannot be read says why."""
    return [_entry(path, path.relative_to(folder).as_posix()) for path in runs_below(folder)]


def write_index(folder: Path, found: Sequence[Entry]) -> Path:
    """Write index.html into the folder, with a link to each report that is there."""
    rows = [(entry, _link(folder, entry), _points(entry.spark)) for entry in found]
    counts = {
        state: sum(entry.state == state for entry in found) for state in dict.fromkeys(each.state for each in found)
    }
    context = {
        "title": folder.resolve().name,
        "rows": rows,
        "counts": ", ".join(f"{count} {state}" for state, count in counts.items()),
    }
    return write(page("index.html", context, Drawn()), folder / INDEX)


def state_of(run: RunData, kind: str) -> State:
    """How a run stands; `kind` is that of its verdict."""
    ended = read_exit(run.dir.path)
    if run.owner is not None:
        return "stalled" if _quiet_s(run) > 0 else "running"
    if kind == "diverged" or (ended is not None and ended.code == _DIVERGED):
        return "diverged"
    if run.num_steps and run.steps_done >= run.num_steps:
        return "finished"
    return "stopped" if run.steps_done else "not started"


def _quiet_s(run: RunData) -> float:
    """Seconds that a run has been silent beyond what is usual for it; negative while it is not."""
    try:
        spoke = run.dir.metrics_jsonl.stat().st_mtime
    except OSError:
        return -1.0
    steps = [row["train/step_ms"] for row in run.train[-200:] if row.get("train/step_ms")]
    usual = max(_QUIET_S, _QUIET_STEPS * median(steps) / 1000) if steps else 5 * _QUIET_S
    return time() - spoke - usual


def _entry(path: Path, name: str) -> Entry:
    try:
        run = load_run(path)
        rows = joined(run)
        judged = judge_joined(run, rows)
    except TrainwellError as error:
        return Entry(name, "damaged", 0, None, None, str(error), None, ())
    losses = [row["train/loss"] for row in rows.train if isfinite(row.get("train/loss", float("nan")))]
    return Entry(
        name=name,
        state=state_of(run, judged.kind),
        steps=run.steps_done,
        num_steps=run.num_steps,
        best_loss=judged.best_loss,
        said=judged.text if rows.train else "",
        seconds_left=story.time_left(run, rows) if run.owner else None,
        spark=_spark(losses),
    )


def _spark(losses: Sequence[float]) -> tuple[float, ...]:
    """A curve of few points between 0 and 1."""
    size = max(1, -(-len(losses) // _SPARKS))
    means = [fmean(losses[start : start + size]) for start in range(0, len(losses), size)]
    if len(means) < 2:
        return ()
    heights = [log(max(mean, 1e-12)) for mean in means]
    low, high = min(heights), max(heights)
    return tuple((height - low) / (high - low) if high > low else 0.5 for height in heights)


def _points(spark: Sequence[float]) -> str:
    """The curve as points of an SVG of 100 x 24."""
    return " ".join(f"{100 * at / (len(spark) - 1):.1f},{22 - 20 * height:.1f}" for at, height in enumerate(spark))


def _link(folder: Path, entry: Entry) -> str | None:
    return quote(f"{entry.name}/report.html") if (folder / entry.name / "report.html").is_file() else None
