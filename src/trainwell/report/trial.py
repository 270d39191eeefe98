"""A run, or the log of another program, as something to compare: curves over steps, tokens, time or FLOPs.

Reads folders and files; compares nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainwell.config.tree import RunConfig
from trainwell.planning.target import FREE, flat
from trainwell.report.columns import Floats
from trainwell.report.foreign import read_log
from trainwell.report.load import RunData, joined, load_run
from trainwell.report.story import cost_per_token, said
from trainwell.runs.metrics import Row

Measure = Literal["tokens", "steps", "time", "flops"]
MEASURES: tuple[Measure, ...] = ("tokens", "steps", "time", "flops")
UNITS = {"tokens": "tokens", "steps": "steps", "time": "seconds of training", "flops": "FLOPs"}
_SILENT = ("name", *(key for key in FREE if not key.startswith("eval")), "custom")
"""Keys that tell no run from another: what is printed and kept. What is evaluated on is another matter."""


@dataclass(frozen=True)
class Data:
    """What a trial read and was judged by; empty text and None where it does not say."""

    train: str = ""
    tokenizer: str = ""
    validation: str = ""
    """The text and how much of it is evaluated."""
    val_targets: int | None = None
    """Tokens of an evaluation."""


@dataclass(frozen=True)
class Trial:
    """One training, by its rows."""

    name: str
    kind: str
    settings: Mapping[str, str]
    """Every key that may matter, as text; empty for a log of another program."""
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    data: Data
    device: str
    flops_per_token: float | None
    num_steps: int | None
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> str | None:
        """Its seed, where it says one."""
        return self.settings.get("seed")

    @property
    def has_bytes(self) -> bool:
        """Whether its evaluations say bits per byte, which do not depend on the tokenizer."""
        return any(row.get("val/bpb") is not None for row in self.val)

    @property
    def is_done(self) -> bool:
        """Whether it was evaluated after the last step that was planned for it."""
        return bool(self.val) and (self.num_steps is None or int(self.val[-1]["step"]) >= self.num_steps)

    def curve(self, by: Measure, key: str = "val/loss") -> tuple[Floats, Floats]:
        """Its evaluations: how far it was, ascending, and the loss; empty where it does not say how far."""
        points = [
            (at, float(row[key]))
            for row in self.val
            if row.get(key) is not None and isfinite(row[key]) and (at := self._far(row, by)) is not None
        ]
        table = np.array(sorted(points), dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def training(self, by: Measure) -> tuple[Floats, Floats]:
        """Its training losses in the same way; the loss of a step stands where the step began."""
        points = [
            (at, float(row["train/loss"]))
            for row in self.train
            if row.get("train/loss") is not None and (at := self._far(row, by)) is not None
        ]
        table = np.array(points, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _far(self, row: Row, by: Measure) -> float | None:
        if by == "steps":
            return float(row["step"])
        if by == "time":
            return None if row.get("time") is None else float(row["time"])
        tokens = row.get("tokens")
        if tokens is None or (by == "flops" and not self.flops_per_token):
            return None
        return float(tokens) * (self.flops_per_token or 1.0 if by == "flops" else 1.0)


def trial_of_run(path: Path, name: str | None = None) -> Trial:
    """A run of ours, a branch behind the rows of its parent."""
    run = load_run(path)
    rows = joined(run)
    unfinished = run.num_steps is not None and run.steps_done < run.num_steps
    notes = [f"{name or path}: {run.status.partition(';')[0]}"] if unfinished else []
    return Trial(
        name=name or str(path),
        kind="run",
        settings=comparable(run.config),
        train=rows.train,
        val=rows.val,
        data=_data_of(run),
        device=str(_dict(run.env.get("settings")).get("device_name", "")),
        flops_per_token=cost_per_token(run),
        num_steps=run.num_steps,
        notes=(*notes, *([rows.missing] if rows.missing else [])),
    )


def trial_of_log(path: Path, columns: Mapping[str, str], tokens_per_step: int | None) -> Trial:
    """A log of another program; what it does not say is not known."""
    log = read_log(path, columns, tokens_per_step)
    notes = tuple(f"{log.name}: {note}" for note in log.notes)
    return Trial(str(path), log.kind, {}, log.train, log.val, Data(), "", None, None, notes)


def comparable(config: RunConfig) -> dict[str, str]:
    """The keys of a configuration that may tell its run from another, as text; `extra` by its own keys."""
    found = {key: said(value) for key, value in flat(config).items() if not key.startswith(_SILENT) and key != "extra"}
    return found | {f"extra.{key}": said(value) for key, value in config.extra.items()}


def _data_of(run: RunData) -> Data:
    facts, counts, plan = _dict(run.env.get("data")), _dict(run.env.get("counts")), run.plan
    seen = str(facts.get("fingerprint", counts.get("fingerprint", "")))
    batches = run.config.eval.batches
    sequences = None
    if plan is not None and plan.num_val_windows:
        sequences = min(plan.num_val_windows, batches * plan.batch.batch_size or plan.num_val_windows)
    held_out = "" if plan is None else f" in windows of {plan.seq_len:,}, {sequences} of them evaluated"
    return Data(
        train=seen,
        tokenizer=str(facts.get("tokenizer", counts.get("tokenizer", ""))),
        validation=f"{seen}, {run.config.data.val_fraction:g} held out{held_out}" if seen else "",
        val_targets=None if sequences is None or plan is None else sequences * plan.seq_len,
    )


def _dict(value: object) -> dict[str, Any]:
    """A part of env.json, which may be anything."""
    return value if isinstance(value, dict) else {}
