"""What `train TARGET` means: start a recipe, continue a run, or branch from a step of one. Reads files, never torch.

A name is looked up as a path, a run, a recipe, in this order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from trainwell.checkpoint.layout import saved_steps
from trainwell.config import checks, load
from trainwell.config.tree import DataConfig, RunConfig
from trainwell.errors import ConfigError, StorageError
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir, Step, is_run, next_free, parse_target

FREE = ("log.", "eval.", "sample.", "checkpoint.", "name")
"""Keys (or beginnings of them) that change nothing about the steps, so a run may continue with other values."""


@dataclass(frozen=True)
class Start:
    """Where a run lives and what it is."""

    config: RunConfig
    run_dir: RunDir
    parent: tuple[RunDir, int] | None = None
    """The run and step it branches from."""


def find_start(
    target: str | None,
    *,
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    run: Path | None = None,
    source: str = "command line",
    data: object = None,
) -> Start:
    """Say what to train and where; raise ConfigError when target, folder and flags do not fit together.

    `data` is what was given in Python in place of the configured text: what it decides may say what it likes.
    """
    flags = flags or {}
    path, step = parse_target(target) if target is not None else (None, None)
    if path is not None and is_run(Path(path)):
        old = RunDir(Path(path))
        if step is not None:
            return _branch(old, step, flags, run)
        if run is not None and run.resolve() != old.path.resolve():
            raise ConfigError(
                f"--run {run}: {path} is a run and continues in its own folder; to branch from it write {path}@last"
            )
        return Start(_continued(old, load.load_recorded(old.config_yaml, flags=flags, source=source)), old)
    if step is not None:
        raise ConfigError(f"{target}: there is no run in {path}; a step is named as runs/NAME@1200, @best or @last")
    record = RunDir(run).config_yaml if run is not None and is_run(run) else None
    config = load.load(path, file=file, flags=flags, source=source, record=record)
    directory = next_free(config.name) if run is None else RunDir(run)
    if is_run(directory.path):
        return Start(_continued(directory, config, _decided_by(data)), directory)
    _refuse_foreign(directory)
    return Start(config, directory)


def _decided_by(data: object) -> tuple[str, ...]:
    """The keys that given data decides: its length, and for a loader, which has no count, its batches too."""
    if data is None:
        return ()
    shape = ("data.corpus", "data.path", "data.seq_len", "data.stride")
    return shape if hasattr(data, "__len__") else (*shape, "batch_size", "batch_tokens")


def _refuse_foreign(directory: RunDir) -> None:
    """Raise ConfigError for a folder that holds something else: a run's files would mix with it."""
    path = directory.path
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
        raise ConfigError(f"--run {path}: it exists and holds no run; name a new or empty folder, or one of a run")


def own_copies(start: Start) -> DataConfig:
    """The data of a run, with its own copies of a template or tokenizer file that is gone."""
    folders = [start.run_dir, *([] if start.parent is None else [start.parent[0]])]
    data, found = start.config.data, {}
    for key, name in (("template", "template.json"), ("tokenizer", "tokenizer.json")):
        said = getattr(data, key)
        copies = [folder.path / name for folder in folders if (folder.path / name).is_file()]
        if Path(said).suffix and not Path(said).expanduser().is_file() and copies:
            found[key] = str(copies[0])
    return data.model_copy(update=found)


def find_step(run: RunDir, step: Step) -> int:
    """The step that `@1200`, `@last` or `@best` (lowest validation loss) names among a run's checkpoints."""
    saved = saved_steps(run.checkpoints)
    if not saved:
        raise StorageError(f"{run.path} has no checkpoint yet; train it first")
    if step == "last":
        return saved[-1]
    if step == "best":
        best = best_evaluation(run)
        return saved[-1] if best is None else best[1]
    if step not in saved:
        raise ConfigError(f"{run.path} has no checkpoint of step {step}; it has {', '.join(map(str, saved))}")
    return step


def best_evaluation(run: RunDir) -> tuple[float, int] | None:
    """The lowest finite validation loss among the saved steps, and its step; None where no saved step has one."""
    saved = set(saved_steps(run.checkpoints))
    losses = [(row["val/loss"], row["step"]) for row in MetricsFile(run.metrics_jsonl).read().val]
    return min((found for found in losses if found[1] in saved and isfinite(found[0])), default=None)


def _branch(source: RunDir, step: Step, flags: Mapping[str, object], run: Path | None) -> Start:
    number = find_step(source, step)
    if run is None:
        raise ConfigError(f"{source.path}@{number}: a branch needs a folder of its own; name it with --run NEW")
    recorded = load.load_recorded(source.config_yaml)
    config = load.load_recorded(source.config_yaml, flags={"name": run.name, **flags})
    _refuse_another_model(source, number, recorded, config)
    if is_run(run):
        return Start(_continued(RunDir(run), config), RunDir(run), (source, number))
    _refuse_foreign(RunDir(run))
    return Start(config, RunDir(run), (source, number))


def _refuse_another_model(source: RunDir, step: int, recorded: RunConfig, wanted: RunConfig) -> None:
    """Raise ConfigError for a branch that would not go on with the weights and the optimizer of its source."""
    for key, then, now in (
        ("task", recorded.task, wanted.task),
        ("optim.train", recorded.optim.train, wanted.optim.train),
        ("init_from", recorded.init_from, wanted.init_from),
    ):
        if then != now:
            raise ConfigError(
                f"{key}: {source.path} was trained with {then or 'null'}, and a branch goes on with its weights and "
                f"its optimizer; to start {now or 'anew'} from its weights alone: "
                f"trainwell train {wanted.task if wanted.task != 'pretrain' else 'RECIPE'} "
                f"--init-from {source.path}@{step} --run NEW"
            )


def _continued(run: RunDir, wanted: RunConfig, decided: tuple[str, ...] = ()) -> RunConfig:
    """The configuration a run continues with: its own, and `wanted` where a key is free; other changes are refused."""
    recorded = load.load_recorded(run.config_yaml)
    old, new = flat(recorded), flat(wanted)
    if wanted.micro_batch != "auto":
        new["micro_batch"] = min(wanted.micro_batch, checks.sequences(recorded))  # at most, it says
    free = FREE if recorded.schedule.horizon is None else (*FREE, "duration")
    changed = [
        key
        for key in new
        if old[key] != new[key] and key not in decided and not _left_open(key, new[key]) and not key.startswith(free)
    ]
    if changed:
        lines = [f"  {key}: {old[key]} there, {new[key]} wanted" for key in changed]
        hint = (
            "\n  (its schedule is laid out over its duration; with schedule.horizon set, the duration would be free)"
            if "duration" in changed
            else ""
        )
        raise ConfigError(
            f"{run.path} already holds a run with other settings:\n" + "\n".join(lines) + hint + "\n"
            "Leave them as they are to continue it, start anew with --run OTHER, or branch: "
            f"trainwell train {run.path}@last --run NEW"
        )
    kept = {key: old[key] for key in old if not key.startswith(free)}
    return load.load_recorded(run.config_yaml, flags={key: new[key] for key in new if key not in kept})


def _left_open(key: str, value: Any) -> bool:
    """Whether a wanted value says no more than: as you see fit; the run has seen fit, and written what."""
    measured = key == "duration" and str(value).endswith("minutes")
    return value == "auto" or key.startswith("custom") or measured or (key == "data.labels" and value is None)


def flat(config: RunConfig) -> dict[str, Any]:
    """Every key with its dots and its plain value: {"optim.lr": 0.001, ...}."""
    found: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict) and key not in {"extra", "custom"}:
            found.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            found[key] = value
    return found
