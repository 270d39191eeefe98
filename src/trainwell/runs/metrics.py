"""metrics.jsonl: one JSON line for each step and each evaluation, appended, rewound on resume, read back.

Knows lines and steps, not what the numbers mean. Strict JSON: a number that is not finite is null, and a second key
says which it was; reading gives the number back.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from trainwell import faults
from trainwell.errors import StorageError
from trainwell.runs.strict_json import from_plain, to_plain

Row = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """What a metrics file says, in order of steps; of two lines for one step the later one wins."""

    train: tuple[Row, ...]
    """One row for each step taken; the row of step s is about the update from state s to state s + 1."""
    val: tuple[Row, ...]
    """One row for each evaluation; its step is the state that was evaluated."""


@dataclass(frozen=True)
class MetricsFile:
    """A metrics file by its path; it is open only during a call, so every finished call is on record."""

    path: Path

    def append(self, *records: Mapping[str, object]) -> None:
        """Write the records, one line each, in a single write; raise StorageError when that fails.

        What a failed write left of them is taken back, so that the lines can be written again.
        """
        lines = "".join(_to_line(record) for record in records).encode()
        step = _step_of(records)
        faults.reach("log.before_line", step)
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                if faults.armed("log.mid_line", step):
                    file.write(lines[: len(lines) // 2])
                    faults.reach("log.mid_line", step)
                _write_or_take_back(file, lines, size)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}; free space there") from None
        faults.reach("log.after_line", step)

    def sync(self) -> None:
        """Force what is written to the disk; raise StorageError when that fails."""
        if not self.path.exists():
            return
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from None

    def read(self) -> Records:
        """All rows; a torn last line is left out, a damaged line elsewhere raises StorageError."""
        train: dict[int, Row] = {}
        val: dict[int, Row] = {}
        for _, row in self._lines():
            if row is None:
                continue
            rows = val if _is_evaluation(row) else train
            rows[row["step"]] = rows.get(row["step"], {}) | row
        return Records(_in_order(train), _in_order(val))

    def rewind(self, step: int, attempts: Path) -> int:
        """Move lines past state `step`, and a torn last line, to the next file in `attempts`; return how many.

        The row of step s stays when s < step, the evaluation of state n when n <= step. The evidence is on disk
        before the file is replaced: a crash between the two repeats lines in `attempts`, it never loses one.
        """
        kept: list[str] = []
        moved: list[str] = []
        for line, row in self._lines():
            past = row is not None and (row["step"] <= step if _is_evaluation(row) else row["step"] < step)
            (kept if past else moved).append(line)
        if not moved:
            return 0
        try:
            attempts.mkdir(exist_ok=True)
            number = 1 + max(
                (int(file.stem) for file in attempts.glob("[0-9]*.jsonl") if file.stem.isdigit()), default=0
            )
            _write(attempts / f"{number:03}.jsonl", moved)
            faults.reach("resume.mid_rewind", step)
            unfinished = self.path.with_suffix(".tmp")
            _write(unfinished, kept)
            unfinished.replace(self.path)
        except OSError as error:
            raise StorageError(f"cannot move old metrics to {attempts}: {error.strerror}") from None
        return len(moved)

    def _lines(self) -> Iterator[tuple[str, Row | None]]:
        """Each line with its row; a last line that was cut off has none."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}") from None
        for number, line in enumerate(lines, start=1):
            row = _from_line(line)
            if row is None and number < len(lines):
                raise StorageError(
                    f"{self.path} line {number} is damaged: {line.strip()[:80]}; what to do: trainwell check "
                    f"{self.path.parent}"
                )
            yield line, row


def _step_of(records: Iterable[Mapping[str, object]]) -> int:
    """The step of the first record that has one; -1 where none has."""
    steps = (record.get("step") for record in records)
    return next((step for step in steps if isinstance(step, int)), -1)


def _is_evaluation(row: Row) -> bool:
    return any(key.startswith("val/") for key in row) and not any(key.startswith("train/") for key in row)


def _in_order(rows: dict[int, Row]) -> tuple[Row, ...]:
    return tuple(rows[step] for step in sorted(rows))


def _to_line(record: Mapping[str, object]) -> str:
    return json.dumps(to_plain(record), allow_nan=False) + "\n"


def _from_line(line: str) -> Row | None:
    if not line.endswith("\n"):
        return None
    try:
        row = from_plain(json.loads(line))
    except (ValueError, TypeError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _write_or_take_back(file: FileIO, lines: bytes, size: int) -> None:
    try:
        written = file.write(lines)
        if written != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(size)
        raise


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
