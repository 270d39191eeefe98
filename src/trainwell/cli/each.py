"""`train --each KEY=V1,V2`: a grid of runs in runs/NAME/KEY=VALUE,..., each as if it had been started by itself."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainwell.cli.failures import of_several
from trainwell.cli.restarts import program, written
from trainwell.config import checks, load
from trainwell.config.keys import by_name
from trainwell.errors import ConfigError, StoppedError, TrainwellError
from trainwell.grid import RESULTS, run_cells
from trainwell.planning.resolve import NeedsTimingError, resolve
from trainwell.planning.target import Start, find_start
from trainwell.report.load import load_run
from trainwell.runs.console import safe, short_time
from trainwell.runs.gridfolder import (
    Axes,
    Cell,
    Grid,
    cells_of,
    is_grid,
    read_grid,
    read_results,
    write_grid,
    write_results,
)
from trainwell.runs.rundir import is_run, next_free, parse_target

_MOST = 1000


@dataclass(frozen=True)
class Common:
    """What is the same for all runs of a grid, as it was typed."""

    target: str
    config: Path | None
    switches: Mapping[str, bool]
    values: Mapping[str, object]
    flags: Mapping[str, object]
    allow: Sequence[str] = ()

    def arguments(self, cell: Cell | None = None) -> list[str]:
        """The arguments of `train` for a cell, or what all cells share."""
        own = {} if cell is None else cell.settings
        values = {**self.values, **self.flags, **own}
        return written(self.target, config=self.config, switches=self.switches, values=values)


def train_each(
    common: Common,
    each: Sequence[str],
    jobs: int,
    run: Path | None,
    *,
    dry_run: bool,
    alone: Sequence[str],
    prepare: Callable[[Start], object],
) -> int:
    """Train every combination; return the exit code. ConfigError, before any of them starts, for what cannot be."""
    if alone:
        raise ConfigError(f"--each trains whole runs, each as often as it takes; leave out --{alone[0]}")
    if of_several():
        raise ConfigError("--each starts runs of its own and takes no part in one; start it without torchrun")
    axes = parse_axes(each, common.flags)
    folder = run or next_free(_name(common)).path
    grid = _extended(folder, Grid(common.target, axes, tuple(common.arguments())))
    cells = cells_of(folder, grid.axes)
    if len(cells) > _MOST:
        raise ConfigError(f"--each: {len(cells):,} runs are more than {_MOST:,}; take fewer values")
    starts = [_start(common, cell) for cell in cells]
    if dry_run:
        _say("\n".join([*map(_line, cells, starts), f"folder: {folder} (nothing was written)"]))
        return 0
    command = program("--each")
    prepare(starts[0])
    write_grid(folder, grid)
    return _run(folder, cells, jobs, lambda cell: [*command, "train", *common.arguments(cell), "--run", str(cell.path)])


def parse_axes(each: Sequence[str], flags: Mapping[str, object]) -> Axes:
    """`optim.lr=1e-4,3e-4` as a key and its values; ConfigError for an unknown key, none or a value twice."""
    axes: dict[str, tuple[str, ...]] = {}
    for text in each:
        key, sign, rest = text.partition("=")
        key, values = key.strip().replace("-", "_"), tuple(_split(rest))
        if not sign or not all(values):
            raise ConfigError(f"--each {text!r}: write KEY=VALUE,VALUE,..., such as --each optim.lr=1e-4,3e-4")
        if key not in by_name() and not key.startswith("extra."):
            raise ConfigError(f"--each {text!r}: there is no key {key!r}{checks.did_you_mean(key, by_name())}")
        if key in {"name", "custom"} or key in axes or key in flags:
            raise ConfigError(f"--each {text!r}: {key} is said elsewhere too, or names the run; say it once")
        twice = next((value for at, value in enumerate(values) if value in values[:at]), None)
        if twice is not None:
            raise ConfigError(f"--each {text!r}: {twice} is there twice; the same run twice is the same run")
        axes[key] = values
    return axes


def _split(text: str) -> Iterator[str]:
    """Values between commas; a comma in brackets belongs to its value."""
    depth, value = 0, ""
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            yield value.strip()
            value = ""
        else:
            value += letter
    yield value.strip()


def _name(common: Common) -> str:
    path, step = parse_target(common.target)
    if step is not None or is_run(Path(path)):
        raise ConfigError(f"--each with {common.target}: name the folder for all of its branches with --run NEW")
    return load.load(path, file=common.config, flags=common.flags).name


def _extended(folder: Path, grid: Grid) -> Grid:
    """This grid with the values of one that is there already; ConfigError where that is another one, or a run is."""
    if not is_grid(folder):
        if is_run(folder):
            raise ConfigError(f"--run {folder}: there is a run in it; a grid takes a folder of its own")
        return grid
    old = read_grid(folder)
    if old.arguments != grid.arguments or [*old.axes] != [*grid.axes]:
        raise ConfigError(
            f"--run {folder}: another grid is there, {_said(old)}; this one is {_said(grid)}. Values may be added to "
            "its keys; anything else takes another folder"
        )
    axes = {key: (*values, *(new for new in grid.axes[key] if new not in values)) for key, values in old.axes.items()}
    return Grid(grid.target, axes, grid.arguments)


def _said(grid: Grid) -> str:
    axes = " ".join(f"--each {key}={','.join(values)}" for key, values in grid.axes.items())
    return f"train {' '.join(grid.arguments)} {axes}"


def _start(common: Common, cell: Cell) -> Start:
    """What a cell would be; ConfigError that names it where it cannot be."""
    try:
        flags = {**common.flags, **cell.settings}
        return find_start(common.target, file=common.config, flags=flags, run=cell.path, allow=common.allow)
    except TrainwellError as error:
        raise ConfigError(f"{cell.name}: {error}") from None


def _line(cell: Cell, start: Start) -> str:
    try:
        plan = resolve(start.config)
    except (NeedsTimingError, ConfigError):
        return f"{cell.name}: {start.config.duration}"
    return f"{cell.name}: {plan.num_steps:,} steps, {plan.batch.tokens_before(plan.num_steps):,} tokens"


def _run(folder: Path, cells: Sequence[Cell], jobs: int, command: Callable[[Cell], list[str]]) -> int:
    results = read_results(folder)
    done = [cell for cell in cells if _is_done(cell, results)]
    if done:
        _say(f"{len(done)} of {len(cells)} runs are done already; to take one again, remove its folder")
    left = [cell for cell in cells if cell not in done]
    numbers = {cell.name: number for number, cell in enumerate(cells, start=1)}

    def began(cell: Cell) -> None:
        _say(f"[{numbers[cell.name]}/{len(cells)}] {cell.name}: started")

    def ended(cell: Cell, code: int, seconds: float, tail: str) -> None:
        if code != StoppedError.exit_code:
            results[cell.name] = code
            write_results(folder, results)
        _say(f"[{numbers[cell.name]}/{len(cells)}] {cell.name}: {_came_to(cell, code)}, {short_time(seconds)}")
        if tail:
            _say(f"{tail}\nall of it: {folder}/logs/{cell.name}.log")

    if not run_cells(left, command, folder / "logs", jobs, ended, began):
        raise StoppedError(f"stopped; the same command with --run {folder} goes on where each run was")
    failed = [results[cell.name] for cell in left if results.get(cell.name, 0) not in RESULTS]
    _say(f"\n{len(cells) - len(failed)} of {len(cells)} runs are done; next: trainwell compare {folder}{_by(cells)}")
    return failed[0] if failed else 0


def _is_done(cell: Cell, results: Mapping[str, int]) -> bool:
    """Whether a cell has a result that another start would not change."""
    if not is_run(cell.path):
        return False
    if results.get(cell.name, -1) not in {-1, 0}:
        return results[cell.name] in RESULTS
    run = load_run(cell.path)
    return run.num_steps is not None and run.num_steps in run.checkpoints


def _came_to(cell: Cell, code: int) -> str:
    if code == StoppedError.exit_code:
        return "stopped and saved"
    if code not in RESULTS:
        return f"failed with exit code {code}"
    if code:
        return "diverged"
    val = load_run(cell.path).val
    return f"val {val[-1]['val/loss']:.4f}" if val and val[-1].get("val/loss") is not None else "done"


def _by(cells: Sequence[Cell]) -> str:
    """The key to lay a comparison out over: the first one with several values that is not the seed."""
    keys = [key for key in cells[0].settings if key != "seed" and len({cell.settings[key] for cell in cells}) > 1]
    return f" --by {keys[0]}" if keys else ""


def _say(line: str) -> None:
    sys.stdout.write(safe(line) + "\n")
    sys.stdout.flush()
