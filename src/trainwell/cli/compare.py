"""`trainwell compare`: two schedules laid over each other, the settings that make the difference, and, of two runs, the
losses they measured. Without torch.

A name is looked up as a path, a run, a recipe, a dialect, in this order; `dialect:NAME` is a dialect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from trainwell.cli.output import print_json, print_rich, wrote
from trainwell.cli.plans import plan_of
from trainwell.config import checks
from trainwell.config.load import load, recipe_names
from trainwell.config.syntax import FORMATS
from trainwell.config.tree import RunConfig, ScheduleConfig
from trainwell.config.values import Duration, Share
from trainwell.errors import ConfigError, DataError
from trainwell.optim import dialects
from trainwell.planning.describe import batch_line, schedule_line
from trainwell.planning.resolve import Plan, resolve
from trainwell.report.compare import Comparison, Side
from trainwell.report.compare import compare as compared
from trainwell.report.course import grid
from trainwell.report.load import joined, load_run
from trainwell.report.measured import Loss, Measured
from trainwell.runs.rundir import is_run, parse_target

if TYPE_CHECKING:
    from trainwell.report.arms import Verdict

_NUMBERS_OF = "demo"
"""The recipe whose numbers two dialects are compared with."""
_FORCED = "dialect:"
_MOST_ROWS = 2_000


def compare(
    *targets: str,
    by: Annotated[
        str, Parameter(help="Align runs by tokens, steps, time or flops; or a key, to show the loss over its values.")
    ] = "tokens",
    target_loss: Annotated[
        float | None, Parameter(help="A validation loss: how many tokens and how long to reach it.")
    ] = None,
    out: Annotated[Path | None, Parameter(name=["-o", "--out"], help="Write the comparison as one HTML page.")] = None,
    fail_if_worse: Annotated[
        str | None, Parameter(help="Exit with 1 where another is worse than the first by more than this, such as 0.5%.")
    ] = None,
    columns: Annotated[
        str | None, Parameter(help="Columns of a CSV or JSONL, as step=COLUMN,train/loss=COLUMN,val/loss=COLUMN.")
    ] = None,
    tokens_per_step: Annotated[
        int | None, Parameter(help="Tokens of a step, for a log that does not say them.", validator=Number(gte=1))
    ] = None,
    json: Annotated[bool, Parameter(help="Print what a program may read.", negative=())] = False,
    png: Annotated[Path | None, Parameter(help="Draw two schedules into this PNG file.")] = None,
    svg: Annotated[Path | None, Parameter(help="Draw two schedules into this SVG file.")] = None,
) -> None:
    """Compare runs, folders of runs and logs of other programs: which did better, and whether that is noise.

    Or the schedules of two recipes, config files or dialects (compare book nanogpt). A branch is shown behind the run
    it began from. A dialect takes its numbers from the other side; dialect:NAME is one where a recipe has the name.
    """
    from trainwell.cli import trials

    asked = trials.Asked(by, target_loss, out, fail_if_worse, columns, tokens_per_step, json)
    pictures = {"png": png, "svg": svg}
    measured = bool(targets) and trials.are_trials(targets) and not any(pictures.values())
    if asked.measured and not measured:
        raise ConfigError(
            "--by, --target-loss, --out, --fail-if-worse, --columns and --tokens-per-step compare what was trained: "
            "name runs, folders of runs or logs, and nothing else"
        )
    two_runs = len(targets) == 2 and all(is_run(Path(parse_target(target).path)) for target in targets)
    if measured and (asked.measured or not two_runs):
        trials.compare_trials(targets, asked)
    elif len(targets) == 2:
        _compare_plans(targets[0], targets[1], pictures, trials.verdict_of(targets, asked) if measured else None, json)
    else:
        raise ConfigError(
            "compare takes two recipes, config files or dialects, or any number of runs; given: "
            f"{' '.join(targets) or 'none'}"
        )


def _compare_plans(
    left: str, right: str, pictures: Mapping[str, Path | None], verdict: "Verdict | None", json: bool
) -> None:
    """Two schedules; of two runs behind what they came to."""
    notes = list[str]()
    found = compared(*_sides(left, right, notes))
    if any(pictures.values()):
        from trainwell.report.picture import save_as
        from trainwell.report.schedule_plot import draw_comparison

        save_as(draw_comparison(found), pictures)
    if json:
        from trainwell.cli.trials import facts_of

        print_json(_facts(found, notes) | {"verdict": None if verdict is None else facts_of(verdict)})
    elif any(pictures.values()):
        wrote(*pictures.values())
    else:
        from trainwell.report.contrast_text import show_verdict
        from trainwell.report.side_by_side import show_comparison

        if verdict is not None:
            print_rich(show_verdict(verdict))
        print_rich(show_comparison(found, notes))


def _sides(left: str, right: str, notes: list[str]) -> tuple[Side, Side]:
    """Both sides; what was assumed of a dialect is added to `notes`."""
    kinds = [_kind(name) for name in (left, right)]
    names = (left, right)
    found: list[Side | None] = [
        None if kind == "dialect" else _run(name, notes) if kind == "run" else _planned(name, kind, notes)
        for name, kind in zip(names, kinds, strict=True)
    ]
    source = found[0] or found[1]
    if source is None:
        source = Side(_NUMBERS_OF, "recipe", _counted(load(_NUMBERS_OF)))
        notes.append(f"two dialects: their numbers are those of the recipe {_NUMBERS_OF}")
    one, other = (
        side or Side(name, "dialect", _as_dialect(name.removeprefix(_FORCED), source, notes))
        for name, side in zip(names, found, strict=True)
    )
    return one, other


def _kind(name: str) -> str:
    """What a name is; ConfigError suggests the nearest."""
    path, step = parse_target(name)
    if step is not None:
        raise ConfigError(f"{name}: whole schedules are compared; leave out the step, as in {path}")
    forced = name.startswith(_FORCED)
    if forced and name.removeprefix(_FORCED) in dialects.DIALECTS:
        return "dialect"
    if forced:
        bare, near = name.removeprefix(_FORCED), checks.did_you_mean(name.removeprefix(_FORCED), dialects.DIALECTS)
        raise ConfigError(f"there is no dialect {bare!r}; dialects are {', '.join(dialects.DIALECTS)}{near}")
    if is_run(Path(path)):
        return "run"
    if "/" in name or "\\" in name or Path(name).suffix.lower() in FORMATS:
        return "file"
    if name in recipe_names():
        return "recipe"
    if name in dialects.DIALECTS:
        return "dialect"
    known = [*recipe_names(), *dialects.DIALECTS]
    raise ConfigError(
        f"there is no path, run, recipe or dialect {name!r}; recipes are {', '.join(recipe_names())}; "
        f"dialects are {', '.join(dialects.DIALECTS)}{checks.did_you_mean(name, known)}"
    )


def _run(name: str, notes: list[str]) -> Side:
    """A run, with its rows behind those of the run it branches from."""
    run = load_run(Path(parse_target(name).path))
    rows = joined(run)
    notes.extend([rows.missing] if rows.missing else [])
    return Side(name, "run", run.planned(), rows)


def _planned(name: str, kind: str, notes: list[str]) -> Side | None:
    """The plan; None, and a note, for a recipe that needs a text which is not here, where a dialect has its name."""
    try:
        return Side(name, kind, _counted(load(name)))
    except DataError as error:
        if name not in dialects.DIALECTS:
            raise DataError(f"{name}: {error}") from None
    notes.append(f"the recipe {name} cannot be counted without its text, so this is the dialect {name}")
    return None


def _counted(config: RunConfig) -> Plan:
    """The plan, without the text where nothing needs it to be counted: reading it takes the most time."""
    try:
        return resolve(config)
    except ConfigError:
        return plan_of(config)[0]


def _as_dialect(name: str, source: Side, notes: list[str]) -> Plan:
    """The schedule that a dialect makes of another's numbers; what it has no word for is left out, and said."""
    plan = source.plan
    old = plan.config.schedule
    initial = old.initial_lr if name in dialects.READ_INITIAL else None
    if name in dialects.NEED_INITIAL and (initial is None or not initial.amount):
        initial = Share.parse("1%")
        notes.append(f"{name} needs an initial rate and {source.name} has none: 1% of the peak is taken")
    schedule = old.model_copy(
        update={
            "dialect": name,
            "warmup_shape": ScheduleConfig().warmup_shape,
            "decay": ScheduleConfig().decay,
            "decay_steps": old.decay_steps if name in dialects.TAKE_DECAY_STEPS else None,
            "initial_lr": initial,
            "reach_min": False,
        }
    )
    config = plan.config.model_copy(update={"schedule": schedule})
    if name in dialects.END_AT_HORIZON and plan.num_steps > plan.horizon:
        notes.append(f"{name} says nothing past its horizon and ends there, at step {plan.horizon:,}")
        ended = {"duration": Duration.parse(plan.horizon), "schedule": schedule.model_copy(update={"horizon": None})}
        config = plan.config.model_copy(update=ended)
    return resolve(config, plan.info)


def _facts(found: Comparison, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "left": _side_facts(found.left),
        "right": _side_facts(found.right),
        "notes": notes,
        "identical": found.identical,
        "common_steps": found.common_steps,
        "looked_at": found.looked_at,
        "first_difference": None if found.first is None else asdict(found.first),
        "largest_difference": None if found.largest is None else asdict(found.largest),
        "area": found.area,
        "area_ratio": found.area[1] / found.area[0] if found.area[0] else None,
        "first_batch_difference": None if found.first_batch is None else asdict(found.first_batch),
        "config": found.config,
        "curve_columns": ["step", "left", "right"],
        "curve": [[point.step, point.left, point.right] for point in found.curve],
        "measured": None if found.measured is None else _measured_facts(found.measured),
    }


def _measured_facts(found: Measured) -> dict[str, Any]:
    """The losses of all common steps; where they are over 2,000, of some, evenly spread from the first to the last."""

    def rows(losses: Sequence[Loss]) -> list[list[float]]:
        return [[losses[at].step, losses[at].left, losses[at].right] for at in grid(len(losses), _MOST_ROWS)]

    return {
        "left": {"runs": found.sides[0].runs},
        "right": {"runs": found.sides[1].runs},
        "common_steps": len(found.train),
        "first_difference": None if found.first is None else asdict(found.first),
        "columns": ["step", "left", "right"],
        "train": rows(found.train),
        "val": rows(found.val),
    }


def _side_facts(side: Side) -> dict[str, Any]:
    plan = side.plan
    return {
        "name": side.name,
        "kind": side.kind,
        "schedule": schedule_line(plan),
        "batch": batch_line(plan),
        "num_steps": plan.num_steps,
        "warmup": plan.warmup,
        "horizon": plan.horizon,
        "tokens": plan.batch.tokens_before(plan.num_steps),
    }
