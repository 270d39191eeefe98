"""What `train TARGET` means: start a recipe, continue a run, or branch from a step of one. Reads files, never torch.

A name is looked up as a path, a run, a recipe, in this order.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from trainwell.checkpoint.layout import candidates, saved_steps
from trainwell.config import checks, load
from trainwell.config.tree import DataConfig, RunConfig
from trainwell.config.values import parse_skips
from trainwell.errors import ConfigError, StorageError
from trainwell.planning.changes import TABLE, Change, allowed_keys, kind_of, notes, refusals, ways_out
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir, Step, is_run, local_folder, next_free, parse_target

FREE = TABLE[0].keys
"""Keys, or beginnings of them, that only look at steps."""

Parent = tuple[RunDir, int]
"""A run, and the step of it that a branch begins at."""

_CHOSEN = ("device", "precision", "compile", "deterministic", "parallel")
"""Keys that a run leaves open in its config.yaml; what they came to is in its env.json."""


@dataclass(frozen=True)
class Start:
    """Where a run lives and what it is."""

    config: RunConfig
    run_dir: RunDir
    parent: Parent | None = None
    """The run and step it branches from."""
    notes: tuple[str, ...] = ()
    """Lines for the summary: settings with which it goes on though they are not those of its steps so far."""


def find_start(
    target: str | None,
    *,
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    run: Path | None = None,
    source: str = "command line",
    data: object = None,
    allow: Collection[str] = (),
    skip: int | None = None,
) -> Start:
    """Say what to train and where; raise ConfigError when target, folder and flags do not fit together.

    `data` is what was given in Python in place of the configured text: what it decides may say what it likes. `allow`
    names keys that a run may continue with though they change its mathematics. `skip` leaves so many batches out where
    a branch begins.
    """
    run = None if run is None else local_folder(run)
    path, step = parse_target(target) if target is not None else (None, None)
    is_branch = path is not None and step is not None and is_run(Path(path))
    _check_skip(skip, path or "RUN", is_branch=is_branch)
    allow = allowed_keys(allow)
    if is_branch:
        assert path is not None, "a branch has a source"
        assert step is not None, "and a step of it"
        start = _branch(RunDir(Path(path)), step, flags or {}, run, skip, allow)
    else:
        start = _own(target, file=file, flags=flags or {}, run=run, source=source, data=data, allow=allow)
    if start.config.data.skip is not None and data is not None and not hasattr(data, "__len__"):
        raise ConfigError(
            f"data.skip: {start.config.data.skip}, but from_loader's batches come as they come and none can be passed "
            "over; leave it out, or give examples with len(d) and d[i]"
        )
    return start


def _check_skip(skip: int | None, path: str, *, is_branch: bool) -> None:
    if skip is not None and not is_branch:
        raise ConfigError(
            f"--skip {skip}: batches are left out where a branch begins; write "
            f"trainwell train {path}@STEP --run NEW --skip {skip}"
        )
    if skip is not None and skip < 1:
        raise ConfigError(f"--skip {skip}: give the number of batches to leave out, at least 1")


def _own(
    target: str | None,
    *,
    file: Path | None,
    flags: Mapping[str, object],
    run: Path | None,
    source: str,
    data: object,
    allow: Collection[str],
) -> Start:
    """A run to start in a folder of its own, or to continue there."""
    path, step = parse_target(target) if target is not None else (None, None)
    if path is not None and is_run(Path(path)):
        old = RunDir(Path(path))
        if run is not None and run.resolve() != old.path.resolve():
            raise ConfigError(
                f"--run {run}: {path} is a run and continues in its own folder; to branch from it write {path}@last"
            )
        return _continued(old, load.load_recorded(old.config_yaml, flags=flags, source=source), allow)
    if step is not None:
        raise ConfigError(f"{target}: there is no run in {path}; a step is named as runs/NAME@1200, @best or @last")
    record = RunDir(run).config_yaml if run is not None and is_run(run) else None
    config = load.load(path, file=file, flags=flags, source=source, record=record)
    directory = next_free(config.name) if run is None else RunDir(run)
    if is_run(directory.path):
        return _continued(directory, config, allow, _decided_by(data))
    _refuse_foreign(directory)
    return Start(config, directory)


def _decided_by(data: object) -> tuple[str, ...]:
    """The keys that given data decides: its length, and for a loader, which has no count, its batches too."""
    if data is None:
        return ()
    shape = ("data.corpus", "data.path", "data.seq_len", "data.stride")
    return shape if hasattr(data, "__len__") else (*shape, "batch_size", "batch_tokens")


def _refuse_foreign(directory: RunDir) -> None:
    """Raise ConfigError for a folder that holds something else: a run's files would mix with it.

    What a start leaves that was killed before it wrote config.yaml is nothing else, and is written anew.
    """
    path = directory.path
    begun = {directory.env_json.name, directory.template_json.name, "tokenizer.json"}
    if path.exists() and (
        not path.is_dir() or any(entry.name not in begun and not entry.name.startswith(".") for entry in path.iterdir())
    ):
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
        damaged = candidates(run.checkpoints)
        raise StorageError(
            f"{run.shown} has no whole checkpoint: no manifest in step-{damaged[-1]}; see trainwell check {run.shown}"
            if damaged
            else f"{run.shown} has no checkpoint yet; train it first"
        )
    if step == "last":
        return saved[-1]
    if step == "best":
        best = best_evaluation(run)
        return saved[-1] if best is None else best[1]
    if step not in saved:
        raise ConfigError(f"{run.shown} has no checkpoint of step {step}; it has {', '.join(map(str, saved))}")
    return step


def best_evaluation(run: RunDir) -> tuple[float, int] | None:
    """The lowest finite validation loss among the saved steps, and its step; None where no saved step has one."""
    saved = set(saved_steps(run.checkpoints))
    losses = [(row["val/loss"], row["step"]) for row in MetricsFile(run.metrics_jsonl).read().val]
    return min((found for found in losses if found[1] in saved and isfinite(found[0])), default=None)


def parent_of(run: RunDir) -> Parent | None:
    """The run and step that a run branches from, as it wrote down; None for one that began by itself.

    The path is tried as it is, then beside the run's own folder, where it is after both were moved.
    """
    said = environment_of(run).get("parent")
    if not isinstance(said, str):
        return None
    name, _, step = said.rpartition("@")
    folder, beside = local_folder(name), run.path.parent / Path(name).name
    return RunDir(beside if not is_run(folder) and is_run(beside) else folder), int(step)


def environment_of(run: RunDir) -> dict[str, Any]:
    """What env.json of a run says; nothing where there is none yet, StorageError where it cannot be read."""
    try:
        content = json.loads(run.env_json.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{run.env_json} cannot be read ({error}); restore it, or start anew with --run OTHER"
        ) from error
    return content if isinstance(content, dict) else {}


def _branch(
    source: RunDir,
    step: Step,
    flags: Mapping[str, object],
    run: Path | None,
    skip: int | None,
    allow: Collection[str],
) -> Start:
    branch = None if run is None or not is_run(run) else RunDir(run)
    number = find_step(source, step) if branch is None else _branched_at(branch, source, step)
    if run is None:
        raise ConfigError(f"{source.shown}@{number}: a branch needs a folder of its own; name it with --run NEW")
    recorded = load.load_recorded(source.config_yaml)
    basis = source if branch is None else branch  # which may have gone on since, each for itself
    skipped = {} if skip is None else {"data.skip": with_skip(recorded.data.skip, number, skip)}
    config = load.load_recorded(basis.config_yaml, flags={"name": run.name, **flags, **skipped})
    _refuse_another_model(source, number, recorded, config)
    if branch is not None:
        continued = _continued(branch, config, allow=allow)
        return Start(continued.config, branch, continued.parent or (source, number), continued.notes)
    _refuse_foreign(RunDir(run))
    if config.duration.unit == "steps" and config.duration.amount <= number:
        raise ConfigError(
            f"duration: {config.duration} ends where the branch from {source.shown}@{number} begins, or before; give "
            f"more, such as --duration {2 * number or 1}"
        )
    return Start(config, RunDir(run), (source, number))


def _branched_at(branch: RunDir, source: RunDir, step: Step) -> int:
    """The step at which an existing branch began; ConfigError where it is none of `source`, or of another step.

    What `@last` and `@best` name may have moved on since: a command that is repeated continues its branch.
    """
    parent = parent_of(branch)
    if parent is None and branch.env_json.exists():
        raise ConfigError(
            f"--run {branch.shown}: it holds a run that is no branch of {source.shown}; name a new folder, or continue "
            f"it: trainwell train {branch.shown}"
        )
    if parent is None:
        return find_step(source, step)
    if parent[0].path.resolve() != source.path.resolve() or (isinstance(step, int) and step != parent[1]):
        raise ConfigError(
            f"--run {branch.shown}: it branches from {parent[0].shown}@{parent[1]}, and {source.shown}@{step} was "
            f"asked for; name a new folder, or continue it: trainwell train {branch.shown}"
        )
    return parent[1]


def with_skip(skips: str | None, step: int, batches: int) -> str:
    """The skips of a configuration with so many more batches left out at a step; those of one step add up."""
    found = dict(parse_skips(skips))
    found[step] = found.get(step, 0) + batches
    return ", ".join(f"{at}+{found[at]}" for at in sorted(found))


def _refuse_another_model(source: RunDir, step: int, recorded: RunConfig, wanted: RunConfig) -> None:
    """Raise ConfigError for a branch that would not go on with the weights and the optimizer of its source."""
    for key, then, now in (
        ("task", recorded.task, wanted.task),
        ("optim.train", recorded.optim.train, wanted.optim.train),
        ("init_from", recorded.init_from, wanted.init_from),
    ):
        if then != now:
            raise ConfigError(
                f"{key}: {source.shown} was trained with {then or 'null'}, and a branch goes on with its weights and "
                f"its optimizer; to start {now or 'anew'} from its weights alone: "
                f"trainwell train {wanted.task if wanted.task != 'pretrain' else 'RECIPE'} "
                f"--init-from {source.shown}@{step} --run NEW"
            )


def _continued(run: RunDir, wanted: RunConfig, allow: Collection[str] = (), decided: tuple[str, ...] = ()) -> Start:
    """How a run continues: as it is, and as `wanted` where `changes` lets it; other changes are refused."""
    recorded = load.load_recorded(run.config_yaml)
    old, new = flat(recorded), flat(wanted)
    if wanted.micro_batch != "auto":
        new["micro_batch"] = min(wanted.micro_batch, checks.sequences(recorded))  # at most, it says
    chosen = environment_of(run).get("settings", {})
    other = [
        Change(key, old[key], new[key])
        for key in new
        if old[key] != new[key]
        and key not in decided
        and not _left_open(key, new[key])
        and not (key in _CHOSEN and old[key] in {"auto", False} and chosen.get(key) == new[key])
    ]
    horizon = recorded.schedule.horizon is not None
    changes = [change for change in other if kind_of(change.key, horizon=horizon) != "free"]
    refused = refusals(changes, allow)
    if refused:
        hint = (
            "\n  (with schedule.horizon set, the duration would be free)"
            if any(change.key == "duration" for change in changes)
            else ""
        )
        raise ConfigError(
            "\n  ".join([f"{run.shown} already holds a run with other settings:", *refused])
            + f"{hint}\n{ways_out(changes, allow, run.path)}"
        )
    config = load.load_recorded(run.config_yaml, flags={change.key: change.now for change in other})
    return Start(config, run, parent_of(run), notes(changes))


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


def mathematics(config: RunConfig) -> dict[str, Any]:
    """The keys that decide the numbers of a run, with their values: those that may not change by themselves."""
    horizon = config.schedule.horizon is not None
    decisive = {key: value for key, value in flat(config).items() if kind_of(key, horizon=horizon) == "refuse"}
    return {key: value for key, value in decisive.items() if key != "custom"}
