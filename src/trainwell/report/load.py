"""Everything that is on record about a run, read from its folder, also while it trains.

Reads files; draws no conclusions and writes nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwell.checkpoint.layout import saved_steps
from trainwell.config.load import load_recorded
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError, StorageError
from trainwell.planning.resolve import Plan, resolve
from trainwell.planning.target import Parent, parent_of
from trainwell.runs.metrics import MetricsFile, Records, Row
from trainwell.runs.rundir import RunDir, is_run
from trainwell.runs.samples import Sample, SamplesFile

_DEEP = 2
"""Folders below the one that is looked through: a grid keeps its runs in a folder of its own."""


@dataclass(frozen=True)
class RunData:
    """A run as its files tell it; `plan` is None where the files do not say enough to lay it out."""

    dir: RunDir
    config: RunConfig
    env: dict[str, Any]
    plan: Plan | None
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    samples: tuple[Sample, ...]
    checkpoints: tuple[int, ...]
    """States that have a checkpoint with a manifest, ascending; not verified here."""
    owner: str | None
    """Who is training it now."""

    @property
    def num_steps(self) -> int | None:
        """Length of the run, if known."""
        return self.plan.num_steps if self.plan else None

    @property
    def steps_done(self) -> int:
        """Steps on record."""
        return int(self.train[-1]["step"]) + 1 if self.train else 0

    def planned(self) -> Plan:
        """The plan, or the ConfigError that says why there is none."""
        return self.plan or resolve(self.config)

    @property
    def loss_unit(self) -> str:
        """What a loss is counted in."""
        return "nats per example" if self.config.task == "classify" else "nats per token"

    @property
    def status(self) -> str:
        """Running, finished, stopped or not started, with the step."""
        of = f" of {self.num_steps}" if self.num_steps else ""
        if self.owner:
            return f"running, step {self.steps_done}{of} ({self.owner})"
        if self.num_steps and self.steps_done >= self.num_steps:
            return f"finished after {self.steps_done} steps"
        if not self.steps_done:
            return "not started"
        command = f"with: trainwell train {self.dir.shown}"
        how = "in the script that has its parts" if self.config.custom else command
        return f"stopped after step {self.steps_done - 1}{of}; continue it {how}"


def load_run(path: Path) -> RunData:
    """Read the run in `path`; raise ConfigError when there is none, StorageError for a damaged file."""
    if not is_run(path):
        raise ConfigError(
            f"{path} is not a run: it has no config.yaml; `trainwell show` takes a recipe or a run's folder"
        )
    folder = RunDir(path)
    config = load_recorded(folder.config_yaml)
    env = _read_json(folder.env_json)
    records = MetricsFile(folder.metrics_jsonl).read()
    return RunData(
        dir=folder,
        config=config,
        env=env,
        plan=_plan(config, env),
        train=records.train,
        val=records.val,
        samples=SamplesFile(folder.samples_txt).read(),
        checkpoints=tuple(saved_steps(folder.checkpoints)),
        owner=folder.owner(),
    )


def runs_below(folder: Path) -> list[Path]:
    """The runs in a folder and in folders inside it, in order of their names."""
    return sorted(_runs(folder, _DEEP))


def _runs(folder: Path, deep: int) -> Iterator[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_dir():
            continue
        if is_run(path):
            yield path
        elif deep > 1:
            yield from _runs(path, deep - 1)


@dataclass(frozen=True)
class Joined:
    """The rows of a run from step 0 on: of a branch, its parent's up to the step it begins at, and its own."""

    train: tuple[Row, ...]
    val: tuple[Row, ...]
    runs: tuple[tuple[str, int], ...]
    """Whose rows they are, oldest first: a run, and the first step of its own."""
    missing: str = ""
    """Why the rows before the first of `runs` are not there; empty when they are."""


def joined(run: RunData) -> Joined:
    """Put the rows of a run's parents before its own; a parent that is gone or damaged is said, and is no error."""
    train, val, runs, missing = run.train, run.val, [(str(run.dir.path), 0)], ""
    parent, seen = parent_of(run.dir), {run.dir.path.resolve()}
    while parent is not None and not missing:
        source, step = parent
        runs[0] = (runs[0][0], step)
        rows, before, missing = _of_parent(source, seen)
        if missing:
            missing = f"{runs[0][0]} begins at step {step:,} of {source.shown}, {missing}: its curve begins there too"
            break
        train = (*(row for row in rows.train if row["step"] < step), *train)
        own = {row["step"] for row in val}
        val = (*(row for row in rows.val if row["step"] <= step and row["step"] not in own), *val)
        runs.insert(0, (str(source.path), 0))
        seen.add(source.path.resolve())
        parent = before
    return Joined(train, val, tuple(runs), missing)


def _of_parent(source: RunDir, seen: set[Path]) -> tuple[Records, Parent | None, str]:
    """The rows of a parent and its own parent; and why there are none, if so."""
    nothing = Records((), ())
    if source.path.resolve() in seen:
        return nothing, None, "which is a branch of it"
    if not is_run(source.path):
        return nothing, None, "which is not there"
    try:
        return MetricsFile(source.metrics_jsonl).read(), parent_of(source), ""
    except StorageError as error:
        return nothing, None, f"which is damaged ({error})"


def _plan(config: RunConfig, env: dict[str, Any]) -> Plan | None:
    """The plan, from the counts of the data that the run wrote down; without them, what the config alone can say."""
    from trainwell.data.prepare import StoreInfo  # here, because it brings numpy, which `show` can often do without

    counts = env.get("counts")
    try:
        return resolve(config, StoreInfo(**counts) if isinstance(counts, dict) else None)
    except (ConfigError, TypeError):  # epochs without counts, or counts of another version
        return None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}; move it away to look at the rest of the run") from None
    return content if isinstance(content, dict) else {}
