"""RUNS/NAME of a grid: grid.json says what it is made of, and each of its runs lies in KEY=VALUE,KEY=VALUE beside it.

Knows names and files, no configuration.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.parse import quote

from trainwell.errors import ConfigError, StorageError

GRID, RESULTS = "grid.json", "results.json"
_PLAIN = " +-._~[]{}()%:"
"""Letters besides the alphabet and digits that a folder's name may have on every system we know, or nearly."""
_LONGEST = 200

Axes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Grid:
    """What a grid is made of."""

    target: str
    axes: Axes
    """The values of each key, as they were typed, in their order."""
    arguments: tuple[str, ...] = ()
    """What else was typed, the same for all of its runs."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    name: str
    settings: Mapping[str, str]
    path: Path


def cells_of(folder: Path, axes: Axes) -> tuple[Cell, ...]:
    """Every combination, the last key changing first; ConfigError for a name that no folder can have."""
    found = []
    for values in product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        name = ",".join(f"{key}={quote(value, safe=_PLAIN)}" for key, value in settings.items())
        if len(name.encode()) > _LONGEST:
            raise ConfigError(
                f"--each: the run {name[:60]}... would need a folder name of {len(name.encode())} bytes, and "
                f"{_LONGEST} are allowed; take fewer keys, or shorter values"
            )
        found.append(Cell(name, settings, folder / name))
    return tuple(found)


def is_grid(folder: Path) -> bool:
    """Whether a grid lives in this folder."""
    return (folder / GRID).is_file()


def read_grid(folder: Path) -> Grid:
    """What the grid in a folder is made of; StorageError for a file that does not say it."""
    try:
        said = json.loads((folder / GRID).read_text(encoding="utf-8"))
        axes = {str(key): tuple(str(value) for value in values) for key, values in said["axes"].items()}
        return Grid(str(said["target"]), axes, tuple(str(word) for word in said["arguments"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{folder / GRID} cannot be read ({error}); move it away to start the grid anew") from None


def write_grid(folder: Path, grid: Grid) -> None:
    """Say what the grid in a folder is made of; StorageError when that fails."""
    said = {"target": grid.target, "axes": grid.axes, "arguments": grid.arguments}
    _write(folder / GRID, json.dumps(said, indent=1))


def read_results(folder: Path) -> dict[str, int]:
    """The exit code of each run that ended, by its name; empty where nothing is on record."""
    try:
        said = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return {str(name): int(code) for name, code in said.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_results(folder: Path, results: Mapping[str, int]) -> None:
    """Put the exit codes on record; StorageError when that fails."""
    _write(folder / RESULTS, json.dumps(dict(results), indent=1))


def _write(file: Path, text: str) -> None:
    unfinished = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text + "\n", encoding="utf-8", newline="\n")
        unfinished.replace(file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}; name another folder with --run") from None
