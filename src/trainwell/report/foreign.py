"""Logs of other programs as rows of ours: Hugging Face's trainer_state.json, printed lines, and any CSV or JSONL.

Reads files and draws no conclusion, but says what it knows to be wrong in them. A line it does not know is passed over.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from trainwell.errors import ConfigError
from trainwell.runs.console import safe
from trainwell.runs.metrics import Row

STATE = "trainer_state.json"
_NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
_NAMES = {
    "step": ("step", "iter", "iteration", "global_step", "_step", "steps"),
    "tokens": ("tokens", "tokens_seen", "num_tokens", "num_input_tokens_seen", "consumed_tokens"),
    "time": ("time", "_runtime", "elapsed", "wall_time", "seconds"),
    "train/loss": ("train/loss", "train_loss", "loss", "training_loss"),
    "val/loss": ("val/loss", "val_loss", "eval_loss", "eval/loss", "validation_loss", "valid_loss"),
    "train/lr": ("train/lr", "lr", "learning_rate"),
    "train/grad_norm": ("train/grad_norm", "grad_norm", "norm"),
}
"""Our keys, and what others call them, the likeliest first."""
_FORMATS = (
    f"{STATE} of Hugging Face's Trainer; lines as build-nanogpt, nanoGPT, the book or trainwell print them; CSV or "
    "JSONL with named columns"
)


@dataclass(frozen=True)
class Log:
    """What a log says, in our keys; `notes` are what is wrong or missing in it."""

    name: str
    kind: str
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def read_log(path: Path, columns: Mapping[str, str] | None = None, tokens_per_step: int | None = None) -> Log:
    """Read a log; `columns` names those of a CSV or JSONL by our keys. ConfigError for what is none.

    With `tokens_per_step` every step has its tokens, where the log does not say them itself.
    """
    if path.is_dir():
        path = path / STATE
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; read are {_FORMATS}") from None
    kind, rows, notes = _rows(path, text, columns or {})
    train = _merged(row for row in rows if "val/loss" not in row)
    val = _merged(row for row in rows if "val/loss" in row)
    if not train and not val:
        raise ConfigError(f"{path} has no line that is known; read are {_FORMATS}")
    train, found = _with_right_times(train, tokens_per_step)
    if tokens_per_step is not None:
        train = tuple({"tokens": (row["step"] + 1) * tokens_per_step, **row} for row in train)
        val = tuple({"tokens": row["step"] * tokens_per_step, **row} for row in val)
    return Log(path.name, kind, train, _timed(train, val), (*notes, *found))


def _rows(path: Path, text: str, columns: Mapping[str, str]) -> tuple[str, list[Row], list[str]]:
    """The kind of a log, its rows, an evaluation in a row of its own, and notes."""
    if path.suffix.lower() == ".csv" or (columns and path.suffix.lower() not in {".jsonl", ".json"}):
        lines = [line for line in text.splitlines() if line.strip()]
        return "CSV", *_table(path, list(csv.DictReader(lines)), columns)
    if path.suffix.lower() == ".jsonl":
        return "JSONL", *_table(
            path, [each for line in text.splitlines() if isinstance(each := _parsed(line), dict)], columns
        )
    state = _parsed(text) if text.lstrip().startswith("{") else None
    if isinstance(state, dict) and isinstance(state.get("log_history"), list):
        return "Hugging Face trainer_state.json", *_hugging_face(state["log_history"])
    return _printed(text)


def _hugging_face(history: Sequence[Any]) -> tuple[list[Row], list[str]]:
    """Its step counts updates that are done: the row of update n is our step n - 1, an evaluation there our state n."""
    rows = list[Row]()
    for entry in history:
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int) or "train_runtime" in entry:
            continue
        own = {"epoch": entry.get("epoch"), "tokens": entry.get("num_input_tokens_seen")}
        known = {key: value for key, value in own.items() if isinstance(value, int | float)}
        if isinstance(entry.get("loss"), int | float):
            said = {"train/loss": "loss", "train/lr": "learning_rate", "train/grad_norm": "grad_norm"}
            numbers = {
                ours: float(entry[theirs])
                for ours, theirs in said.items()
                if isinstance(entry.get(theirs), int | float)
            }
            rows.append({"step": entry["step"] - 1, **known, **numbers})
        if isinstance(entry.get("eval_loss"), int | float):
            rows.append({"step": entry["step"], **known, "val/loss": float(entry["eval_loss"])})
    return rows, ["its training losses are means over the steps since the line before"]


def _table(path: Path, records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Rows of a table by the names of its columns; those that are not given are guessed, and said."""
    there = list(dict.fromkeys(key for record in records for key in record))
    missing = [name for name in columns.values() if name not in there]
    taken = {ours: next((name for name in names if name in there), None) for ours, names in _NAMES.items()}
    taken |= dict(columns)
    if missing or taken["step"] is None or not (taken["train/loss"] or taken["val/loss"]):
        what = f"no column {missing[0]!r}" if missing else "no column for step and a loss"
        raise ConfigError(
            f"{path} has {what}; it has {_shown(there)}. Name them: --columns step=COLUMN,train/loss=COLUMN,"
            "val/loss=COLUMN (also tokens, time, train/lr, train/grad_norm)"
        )
    rows = list[Row]()
    for record in records:
        numbers = {
            ours: number for ours, name in taken.items() if name and (number := _number(record.get(name))) is not None
        }
        if "step" not in numbers or not isfinite(numbers["step"]):
            continue
        step = {"step": int(numbers.pop("step"))}
        val = numbers.pop("val/loss", None)
        if "train/loss" in numbers:
            rows.append({**step, **numbers})
        if val is not None:
            place: Row = {key: number for key, number in numbers.items() if key in {"tokens", "time"}}
            rows.append({**step, **place, "val/loss": val})
    guessed = [
        f"{ours} from column {name}" for ours, name in taken.items() if name and ours not in columns and ours != name
    ]
    return rows, [f"taken as it is named: {safe(', '.join(guessed))}"] if guessed else []


def _printed(text: str) -> tuple[str, list[Row], list[str]]:
    """Lines as programs print them; the program of most lines gives the kind."""
    rows, kinds = list[Row](), dict[str, int]()
    for line in text.splitlines():
        for kind, pattern, made in _LINES:
            found = pattern.search(line[:2_000])
            if found:
                rows += made(found.groups())
                kinds[kind] = kinds.get(kind, 0) + 1
                break
    return max(kinds, key=lambda kind: kinds[kind], default="printed lines"), rows, []


def _ours(said: Sequence[str | None]) -> list[Row]:
    step, loss, lr, norm, ms, speed = (None if each is None else float(each) for each in said)
    numbers = {
        "train/loss": loss,
        "train/lr": lr,
        "train/grad_norm": norm,
        "train/step_ms": ms,
        "train/tokens_per_sec": speed,
    }
    return [{"step": int(step or 0), **{key: value for key, value in numbers.items() if value is not None}}]


def _book(said: Sequence[str | None]) -> list[Row]:
    """Its counter is that of the update just made, and both losses are of the weights after it."""
    step, train, val = (float(each or 0) for each in said)
    return [{"step": int(step), "train/loss": train}, {"step": int(step) + 1, "val/loss": val}]


def _evaluated(said: Sequence[str | None]) -> list[Row]:
    return [{"step": int(said[0] or 0), "val/loss": float(said[1] or 0)}]


def _nanogpt(said: Sequence[str | None]) -> list[Row]:
    return _evaluated((said[0], said[2]))


def _nanogpt_step(said: Sequence[str | None]) -> list[Row]:
    step, loss, ms = (float(each or 0) for each in said)
    return [{"step": int(step), "train/loss": loss, "train/step_ms": ms}]


def _trained(said: Sequence[str | None]) -> list[Row]:
    return [{"step": int(said[0] or 0), "train/loss": float(said[1] or 0)}]


_LINES: tuple[tuple[str, re.Pattern[str], Callable[[Sequence[str | None]], list[Row]]], ...] = (
    ("lines as build-nanogpt prints them", re.compile(rf"^\s*step\s+(\d+) \| val loss:? {_NUMBER}"), _evaluated),
    (
        "lines as build-nanogpt prints them",
        re.compile(
            rf"^\s*step\s+(\d+) \| loss: {_NUMBER}(?: \| lr:? {_NUMBER})?(?: \| norm: {_NUMBER})?"
            rf"(?: \| dt: {_NUMBER}ms)?(?: \| tok/sec: {_NUMBER})?"
        ),
        _ours,
    ),
    ("log.txt of build-nanogpt", re.compile(rf"^(\d+) val {_NUMBER}\s*$"), _evaluated),
    ("log.txt of build-nanogpt", re.compile(rf"^(\d+) train {_NUMBER}\s*$"), _trained),
    (
        "lines as the book prints them",
        re.compile(rf"Ep \d+ \((?:Step|Iter) (\d+)\):\s+Train loss {_NUMBER},\s+Val loss {_NUMBER}"),
        _book,
    ),
    ("lines as nanoGPT prints them", re.compile(rf"^step (\d+): train loss {_NUMBER}, val loss {_NUMBER}"), _nanogpt),
    ("lines as nanoGPT prints them", re.compile(rf"^iter (\d+): loss {_NUMBER}, time {_NUMBER}ms"), _nanogpt_step),
)


def _with_right_times(train: tuple[Row, ...], tokens_per_step: int | None) -> tuple[tuple[Row, ...], list[str]]:
    """Step times that are a thousand times off against tokens a second and the tokens of a step, put right and said."""
    both = [row for row in train if row.get("train/step_ms") and row.get("train/tokens_per_sec")]
    if not both or tokens_per_step is None:
        return train, []
    products = sorted(row["train/step_ms"] / 1000 * row["train/tokens_per_sec"] / tokens_per_step for row in both)
    off = products[len(products) // 2]
    factor = next((factor for factor in (1000.0, 0.001) if 0.5 < off / factor < 2), None)
    if factor is None:
        return train, []
    said = (
        f"its dt is 1000 times too {'large' if factor > 1 else 'small'} for {tokens_per_step:,} tokens a step at its "
        "tok/sec; it was put right here"
    )
    mended = tuple(
        {**row, "train/step_ms": row["train/step_ms"] / factor} if row.get("train/step_ms") else row for row in train
    )
    return mended, [said]


def _timed(train: Sequence[Row], val: Sequence[Row]) -> tuple[Row, ...]:
    """Evaluations with the time of the step before them, where steps say their time and all are there."""
    if any("time" in row for row in val) or not train or any(row.get("train/step_ms") is None for row in train):
        return tuple(val)
    if [row["step"] for row in train] != list(range(train[0]["step"], train[0]["step"] + len(train))):
        return tuple(val)
    spent, ends = 0.0, dict[int, float]()
    for row in train:
        spent += row["train/step_ms"] / 1000
        ends[row["step"] + 1] = spent
    return tuple({**row, "time": ends[row["step"]]} if row["step"] in ends else row for row in val)


def _merged(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows in order of steps; of two for one step the later wins."""
    found: dict[int, Row] = {}
    for row in rows:
        found[row["step"]] = found.get(row["step"], {}) | row
    return tuple(found[step] for step in sorted(found))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(names: Sequence[str]) -> str:
    """Names of columns, cleaned and cut."""
    return safe(", ".join(name[:40] for name in names[:20])) or "none"
