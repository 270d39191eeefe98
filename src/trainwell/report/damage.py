"""What in a run's folder is whole and what is damaged, and what to do about it: checkpoints, metrics, small files.

Reads every byte that has a checksum, and writes nothing; also while the run trains. Never imports torch.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trainwell.checkpoint.layout import LEFT_BEHIND, candidates, directory_of, read_manifest
from trainwell.config.load import load_recorded
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.runs.console import safe, short_count
from trainwell.runs.incidents import incident_steps, read_incident
from trainwell.runs.rundir import RunDir, split_target

if TYPE_CHECKING:
    from rich.console import RenderableType  # imported where it draws: a program may only want the parts

_STYLES = {"whole": "green", "damaged": "bold red", "note": "yellow"}
_FAINT = "bright_black"
_SHOWN_RANGES = 4
_GAP = "the run continues; its curves have a gap there"


@dataclass(frozen=True)
class Part:
    """A file or folder of a run."""

    name: str
    """Its path in the run's folder."""
    state: Literal["whole", "damaged", "note"]
    """note: nothing is lost, and yet it is worth knowing."""
    what: str
    """What it holds, or what is wrong with it."""
    advice: str = ""
    """What to do about it."""


def holds_run(path: Path) -> bool:
    """Whether this is, or was, the folder of a run: one that has lost its config.yaml is to be checked too."""
    run = RunDir(path)
    return run.config_yaml.is_file() or run.metrics_jsonl.is_file() or run.checkpoints.is_dir()


def inspect(run: RunDir) -> list[Part]:
    """Every part of a run that can be damaged, and its state."""
    owned = run.owner() is not None
    checkpoints = _verified(run)
    whole = _whole(checkpoints)
    return [
        *_small_files(run),
        *(_checkpoint(run, step, its, whole) for step, its in checkpoints.items()),
        *_beside(run, owned),
        _metrics(run, max(whole, default=0), owned),
        *_incidents(run),
    ]


def inspect_checkpoint(run: RunDir, step: int) -> list[Part]:
    """The checkpoint of one step, alone; ConfigError where there is none of that name."""
    steps = candidates(run.checkpoints)
    if step not in steps:
        have = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"{run.shown} has no checkpoint of step {step}; it has: {have}")
    its = _verify(run, step)
    return [_checkpoint(run, step, its, [] if its.problem is None else _whole(_verified(run)))]


def damaged(parts: Sequence[Part]) -> list[str]:
    """The names of those that are."""
    return [part.name for part in parts if part.state == "damaged"]


def summary(parts: Sequence[Part]) -> str:
    """How things stand in a line: "2 of 9 parts are damaged", or of a part alone "whole"."""
    bad = len(damaged(parts))
    if len(parts) == 1:
        return parts[0].state
    return f"{bad} of {len(parts)} parts {'is' if bad == 1 else 'are'} damaged" if bad else "all of it is whole"


def show_parts(name: str, parts: Sequence[Part]) -> "Iterable[RenderableType]":
    """Each part with its state, and below it what to do where there is something to do."""
    from rich.table import Table
    from rich.text import Text

    yield Text.assemble((safe(name), "bold"), f": {summary(parts)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("part", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("what", overflow="fold")
    for part in parts:
        table.add_row(Text(safe(part.name)), Text(part.state, _STYLES[part.state]), Text(safe(part.what)))
        if part.advice:
            table.add_row("", "", Text(safe(part.advice), _FAINT))
    yield table


def _small_files(run: RunDir) -> Iterator[Part]:
    """What says how the run is made: damaged where it cannot be read."""
    yield _read(
        run.config_yaml,
        "the configuration",
        lambda: load_recorded(run.config_yaml),
        "bring it back from a copy: without it the folder is no run",
    )
    if run.env_json.exists():
        yield _read_json(run.env_json, "machine, versions, choices, data")
    else:
        what = "missing: machine, versions, data and what `auto` came to are not known"
        yield Part(run.env_json.name, "note", what, "the run continues, and all of that is decided anew")
    for path, what in (
        (run.template_json, "how a question becomes text"),
        (run.path / "tokenizer.json", "text to ids"),
    ):
        if path.exists():
            yield _read_json(path, what)


def _read_json(path: Path, what: str) -> Part:
    return _read(path, what, lambda: _an_object(path), "bring it back from a copy")


def _read(path: Path, what: str, read: Callable[[], object], advice: str) -> Part:
    try:
        read()
    except (ConfigError, DataError, StorageError, OSError, ValueError) as error:
        return Part(path.name, "damaged", f"cannot be read: {' '.join(str(error).split())}", advice)
    return Part(path.name, "whole", what)


def _an_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


class _Checkpoint(NamedTuple):
    """A checkpoint whose every byte was compared with its manifest."""

    problem: str | None
    """What is wrong with it; None where nothing is."""
    holds: str = ""


def _verified(run: RunDir) -> dict[int, _Checkpoint]:
    """Every checkpoint by its step; one that retention removed in the meantime is left out."""
    found = {step: _verify(run, step) for step in candidates(run.checkpoints)}
    return {step: its for step, its in found.items() if directory_of(run.checkpoints, step).is_dir()}


def _verify(run: RunDir, step: int) -> _Checkpoint:
    directory = directory_of(run.checkpoints, step)
    try:
        manifest = read_manifest(directory)
        size = sum(path.stat().st_size for path in directory.iterdir())
    except (StorageError, OSError) as error:
        return _Checkpoint(str(error).removeprefix(f"{directory}: ").removesuffix("; the checkpoint is damaged"))
    if manifest.step != step:
        return _Checkpoint(f"its manifest is that of step {manifest.step}")
    there = None if run.remote is None else run.remote.problem(step)
    if there is not None:
        return _Checkpoint(f"behind {run.shown}: {there}")
    return _Checkpoint(None, f"{len(manifest.tensors)} tensors, {short_count(size)}B")


def _whole(checkpoints: Mapping[int, _Checkpoint]) -> list[int]:
    return [step for step, its in checkpoints.items() if its.problem is None]


def _checkpoint(run: RunDir, step: int, its: _Checkpoint, whole: Sequence[int]) -> Part:
    directory = directory_of(run.checkpoints, step)
    name = f"{run.checkpoints.name}/{directory.name}"
    if its.problem is None:
        return Part(name, "whole", its.holds)
    if not whole:
        return Part(name, "damaged", its.problem, "bring it back from a copy: no other checkpoint is whole")
    newest = max(whole)
    then = "nothing needs it, the run continues from" if newest > step else "the run falls back to"
    return Part(name, "damaged", its.problem, f"delete {directory}; {then} step {newest:,}")


def _beside(run: RunDir, owned: bool) -> Iterator[Part]:
    """Folders of saves that are under way, or were killed; and what else lies there."""
    if not run.checkpoints.is_dir():
        return
    for entry in sorted(run.checkpoints.iterdir()):
        if LEFT_BEHIND.fullmatch(entry.name):
            what = "a save under way" if owned else "left by a save that was killed; it counts for nothing"
            advice = "" if owned else "the next save removes it"
            yield Part(f"{run.checkpoints.name}/{entry.name}", "whole" if owned else "note", what, advice)


def _metrics(run: RunDir, saved: int, owned: bool) -> Part:
    """Every line of the metrics: whether it can be read, and whether every step stands there once.

    `saved` is the newest whole checkpoint: the steps before it were on record when it was written.
    """
    name = run.metrics_jsonl.name
    try:
        text = run.metrics_jsonl.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        lost = "missing, and with it the numbers of all steps"
        return Part(name, "damaged", lost, _GAP) if saved else Part(name, "whole", "no step is on record yet")
    except OSError as error:
        return Part(name, "damaged", f"cannot be read: {error.strerror}", "give yourself the right to read it")
    *lines, torn = text.split("\n")
    rows = [_row(line) for line in lines]
    unreadable = [number for number, row in enumerate(rows, start=1) if row is None]
    steps = [row["step"] for row in rows if row is not None and any(key.startswith("train/") for key in row)]
    problems = [f"{_ranges('line', unreadable)} cannot be read"] if unreadable else []
    problems += _gaps_and_repeats(steps, _first_step(run), saved)
    if problems:
        remove = f"remove {_ranges('line', unreadable)} of {run.metrics_jsonl}; " if unreadable else ""
        return Part(name, "damaged", "; ".join(problems), remove + _GAP)
    if torn and not owned:
        what = f"{len(steps):,} steps; its last line is torn, as a kill leaves it"
        return Part(name, "note", what, "the next start moves it to attempts/")
    return Part(name, "whole", f"{len(steps):,} steps")


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _first_step(run: RunDir) -> int:
    """The step that a branch begins with; 0 for any other run."""
    try:
        parent = _an_object(run.env_json).get("parent")
        step = split_target(parent).step if parent else 0
    except (OSError, ValueError, ConfigError):
        return 0
    return step if isinstance(step, int) else 0


def _gaps_and_repeats(steps: Sequence[int], first: int, saved: int) -> list[str]:
    missing = sorted(set(range(first, max([saved, *(step + 1 for step in steps)]))) - set(steps))
    repeated = sorted(step for step, count in Counter(steps).items() if count > 1)
    found = [f"{_ranges('step', missing)} {_are(missing)} missing"] if missing else []
    return found + ([f"{_ranges('step', repeated)} {_are(repeated)} there more than once"] if repeated else [])


def _are(numbers: Sequence[int]) -> str:
    return "is" if len(numbers) == 1 else "are"


def _ranges(what: str, numbers: Sequence[int]) -> str:
    """Ascending numbers in words: "step 5", "steps 5 to 7, 9 and 3 more"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [f"{run[0]:,} to {run[-1]:,}" if len(run) > 1 else f"{run[0]:,}" for run in runs[:_SHOWN_RANGES]]
    left = sum(map(len, runs[_SHOWN_RANGES:]))
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join(shown)}" + (f" and {left:,} more" if left else "")


def _incidents(run: RunDir) -> Iterator[Part]:
    """The incidents, in one line where all can be read."""
    steps = incident_steps(run)
    bad = 0
    for step in steps:
        try:
            read_incident(run, step)
        except StorageError as error:
            bad += 1
            yield Part(
                f"{run.incidents.name}/step-{step}.json", "damaged", str(error), "delete it: it is evidence only"
            )
    if len(steps) > bad:
        good = len(steps) - bad
        yield Part(run.incidents.name, "whole", f"{good:,} step{'s' if good > 1 else ''} that leapt out or broke")
