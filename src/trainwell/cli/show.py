"""`trainwell show`: a recipe before it runs, a run, a step of either. Imports torch for --calibrate alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from trainwell.cli.estimate import Asked, refuse_unless_known, show_estimate
from trainwell.cli.flags import with_config_flags
from trainwell.cli.live import ADDRESS, follow, show_index
from trainwell.cli.output import print_json, print_rich, wrote
from trainwell.cli.plans import plan_of
from trainwell.config.load import Recipe, load, load_recorded, read_recipe, recipe_names
from trainwell.config.render import to_yaml
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.planning.resolve import Plan
from trainwell.planning.target import find_step
from trainwell.report.load import RunData, load_run
from trainwell.runs.console import safe
from trainwell.runs.incidents import Incident, incident_steps, read_incident
from trainwell.runs.metrics import Row
from trainwell.runs.rundir import RunDir, Step, is_run, parse_target

if TYPE_CHECKING:
    from trainwell.report.step_text import StepText

_CURVE = 180
"""Steps of the curve in --json, to which its turns are added."""


class _Pages(NamedTuple):
    """Which page of a run is asked for."""

    watch: bool
    serve: bool
    address: str

    @property
    def asked(self) -> bool:
        """Whether any is."""
        return self.watch or self.serve


@with_config_flags
def show(
    target: str = "demo",
    /,
    *,
    config: Annotated[Path | None, Parameter(help="A .yaml, .toml or .json file; it overrides the recipe.")] = None,
    yaml: Annotated[bool, Parameter(help="Print the configuration, itself a valid config file.", negative=())] = False,
    code: Annotated[bool, Parameter(help="Print the same run as one plain PyTorch file.", negative=())] = False,
    json: Annotated[bool, Parameter(help="Print what a program may read.", negative=())] = False,
    png: Annotated[Path | None, Parameter(help="Draw rate and batch size into this PNG file.")] = None,
    svg: Annotated[Path | None, Parameter(help="Draw rate and batch size into this SVG file.")] = None,
    gpus: Annotated[int | None, Parameter(help="Estimate what it takes on so many GPUs, with --gpu.")] = None,
    gpu: Annotated[str | None, Parameter(help="The kind of GPU to estimate for: h100-80gb, h200, l4 ...")] = None,
    calibrate: Annotated[bool, Parameter(help="Take and time a few steps on this machine first.", negative=())] = False,
    watch: Annotated[bool, Parameter(help="Write the report of a run anew as it goes on.", negative=())] = False,
    serve: Annotated[bool, Parameter(help="Serve the report of a run to a browser here.", negative=())] = False,
    address: Annotated[
        str | None, Parameter(help="HOST:PORT to serve at; one that others can reach is given a token.")
    ] = None,
    flags: Mapping[str, object],
) -> None:
    """Show TARGET: a recipe or config file before it runs, a run during or after, a step of either (runs/demo@1200).

    Of a run it writes report.html, and of a folder of runs index.html.
    """
    path, step = parse_target(target)
    found, picture = is_run(Path(path)), png is not None or svg is not None
    asked, flags = _asked(gpus, gpu, calibrate, flags)
    _refuse_two_at_once(yaml, code, json, picture, step is not None, asked)
    if found and (config is not None or flags):
        raise ConfigError(f"{path} is a run and is shown as it is; --config and config keys change a recipe")
    pages = _Pages(watch, serve or address is not None, address or ADDRESS)
    if pages.asked or _holds_runs(Path(path), step):
        others = {"yaml": yaml, "code": code, "png": png, "svg": svg, "gpus": gpus, "gpu": gpu, "calibrate": calibrate}
        named = [*(key for key, value in others.items() if value), *flags]
        _show_pages(path, pages, named, found and step is None, json)
        return
    settings = load_recorded(RunDir(Path(path)).config_yaml) if found else load(path, file=config, flags=flags)
    if asked.anything:
        show_estimate(plan_of(settings).plan, path, asked, json)
        return
    if picture:
        _draw(path, settings, found, {"png": png, "svg": svg})
    if yaml:
        print(to_yaml(settings), end="")
    elif code:
        _show_code(settings, Path(path) if found else None)
    elif picture and not json:
        wrote(png, svg)
    else:
        _show(path, settings, step, json, found)


def _asked(
    gpus: int | None, gpu: str | None, calibrate: bool, flags: Mapping[str, object]
) -> tuple[Asked, Mapping[str, object]]:
    """What is to be estimated, and the flags without --parallel, which then names a column and changes no plan."""
    asked = Asked(gpus, gpu, flags.get("parallel"), calibrate)
    if not asked.anything:
        return asked, flags
    refuse_unless_known(asked)
    return asked, {name: value for name, value in flags.items() if name != "parallel"}


def _holds_runs(path: Path, step: Step | None) -> bool:
    """Whether it is a folder of runs, and neither a run nor the name of a recipe."""
    if step is not None or is_run(path) or not path.is_dir() or str(path) in recipe_names():
        return False
    from trainwell.report.load import runs_below

    return bool(runs_below(path))


def _show_pages(path: str, pages: _Pages, others: Sequence[str], of_a_run: bool, json: bool) -> None:
    """The report of a run that is followed or served, or the index of a folder of runs; neither goes with `others`."""
    if pages.asked and not of_a_run:
        raise ConfigError(f"--watch and --serve follow a run, and {path} is none; name a run's folder")
    if others or (pages.asked and json):
        named = [*others, *(["json"] if pages.asked and json else [])]
        raise ConfigError(f"{path} is shown as a page; leave out {', '.join(f'--{name}' for name in named)}")
    if pages.asked:
        follow(Path(path), watching=pages.watch, address=pages.address if pages.serve else None)
    else:
        show_index(Path(path), json=json)


def _refuse_two_at_once(yaml: bool, code: bool, json: bool, picture: bool, of_a_step: bool, asked: Asked) -> None:
    if yaml + code + json > 1:
        raise ConfigError("--yaml, --code and --json each print something else; give one of them")
    if picture and (of_a_step or yaml or code):
        raise ConfigError("--png and --svg draw a whole schedule; leave out @STEP, --yaml and --code")
    if asked.anything and (of_a_step or yaml or code or picture):
        raise ConfigError("--gpus and --gpu estimate a whole run; leave out @STEP, --yaml, --code, --png and --svg")


def _show(path: str, config: RunConfig, step: Step | None, json: bool, found: bool) -> None:
    if found:
        _show_run(Path(path), step, json)
    else:
        _show_recipe(path, config, step, json)


def _draw(path: str, config: RunConfig, found: bool, files: Mapping[str, Path | None]) -> None:
    """Draw the plan of a recipe, or that of a run over what it recorded."""
    from trainwell.report.picture import save_as
    from trainwell.report.schedule_plot import draw_plan

    recorded = None
    if found:
        run = load_run(Path(path))
        plan = run.planned()
        rows = [row for row in run.train if row.get("train/lr") is not None]
        recorded = ([row["step"] for row in rows], [row["train/lr"] for row in rows]) if rows else None
    else:
        plan = plan_of(config).plan
    save_as(draw_plan(plan, RunDir(Path(path)).name if found else config.name, recorded), files)


def _show_run(path: Path, step: Step | None, json: bool) -> None:
    run = load_run(path)
    if step is not None:
        state = step if isinstance(step, int) else find_step(run.dir, step)
        plan = run.planned()
        rows = [row for row in run.train if row["step"] == state]
        on_record = _OnRecord(rows[0] if rows else None, read_incident(run.dir, state), run.checkpoints)
        _show_step(plan, str(path), state, json, on_record)
    elif json:
        print_json(_run_facts(run))
    else:
        from trainwell.report.terminal import show_run

        print_rich(show_run(run))
        _write_report(run)


def _write_report(run: RunData) -> None:
    """Write report.html; a folder that cannot be written is still shown."""
    from trainwell.report.run_page import write_report

    try:
        wrote(write_report(run))
    except StorageError as error:
        print_rich(safe(f"no report: {error}"))


def _show_recipe(name: str, config: RunConfig, step: Step | None, json: bool) -> None:
    plan, missing, notes = plan_of(config)
    if isinstance(step, str):
        raise ConfigError(f"{name}@{step}: only a run has a {step} step; write {name}@1200")
    if step is not None:
        _show_step(plan, name, step, json, why_no_text=missing)
    elif json:
        print_json(_plan_facts(plan))
    else:
        from trainwell.report.terminal import show_recipe

        recipe = (
            read_recipe(name) if name in recipe_names() else Recipe(name, f"your configuration {config.name}", {}, {})
        )
        print_rich(show_recipe(plan, recipe))
        if missing:
            print_rich(safe(f"\ncounted without the text: {missing}"))
        for note in notes:
            print_rich(safe(f"\n{note}"))


class _OnRecord(NamedTuple):
    """What a run knows of a step: its row in the metrics, its incident, and which states are saved."""

    row: Row | None = None
    incident: Incident | None = None
    saved: Sequence[int] = ()


_NOTHING = _OnRecord()


def _show_step(
    plan: Plan, name: str, step: int, json: bool, known: _OnRecord = _NOTHING, why_no_text: str = ""
) -> None:
    if step >= plan.num_steps:
        raise ConfigError(
            f"{name}@{step}: the run has {plan.num_steps} steps; the last one taken is @{plan.num_steps - 1}"
        )
    text = why_no_text or _text(plan, step)
    if json:
        incident = _incident_facts(known.incident)
        print_json(_step_facts(plan, step) | {"recorded": known.row, "incident": incident, "text": _text_facts(text)})
    else:
        from trainwell.report.terminal import show_step

        print_rich(show_step(plan, step, name, known.row, text, known.incident, known.saved))


def _text(plan: Plan, step: int) -> "StepText | str":
    """What a step reads, or why that cannot be said."""
    from trainwell.report.step_text import text_of_step

    try:
        return text_of_step(plan, step)
    except DataError as error:
        return str(error)


def _text_facts(text: "StepText | str") -> dict[str, Any]:
    if isinstance(text, str):
        return {"missing": text}
    return {"indices": text.indices, "windows": [asdict(window) for window in text.windows]}


def _incident_facts(incident: Incident | None) -> dict[str, Any] | None:
    if incident is None:
        return None
    from trainwell.report.incident import explained

    return asdict(incident) | {"explained": explained(incident)}


def _show_code(config: RunConfig, run: Path | None) -> None:
    from trainwell.report.code import plain_file, refuse_unless_plain

    refuse_unless_plain(config)  # before the text is needed
    plan = load_run(run).plan if run else None
    print(plain_file(plan or plan_of(config)[0]), end="")


def _run_facts(run: RunData) -> dict[str, Any]:
    from trainwell.report.verdict import judge_run

    return {
        "run": str(run.dir.path),
        "status": run.status,
        "steps_done": run.steps_done,
        "num_steps": run.num_steps,
        "verdict": asdict(judge_run(run)),
        "checkpoints": run.checkpoints,
        "incidents": incident_steps(run.dir),
        "plan": _schedule_facts(run.plan) if run.plan else None,
        "val": run.val,
        "last_step": run.train[-1] if run.train else None,
        "samples": [asdict(sample) for sample in run.samples],
        "config": run.config.model_dump(mode="json"),
        "env": run.env,
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    from trainwell.planning.lints import findings

    return {
        "name": plan.config.name,
        **_schedule_facts(plan),
        **_cost_facts(plan),
        "findings": [asdict(finding) for finding in findings(plan)],
        "config": plan.config.model_dump(mode="json"),
    }


def _schedule_facts(plan: Plan) -> dict[str, Any]:
    """The schedule and the batch in numbers; the curve has step, tokens before it, rate and sequences in each row."""
    from trainwell.planning.describe import batch_line, joints, schedule_line
    from trainwell.report.course import course

    return {
        "num_steps": plan.num_steps,
        "tokens": plan.batch.tokens_before(plan.num_steps),
        "epochs": plan.epoch(plan.num_steps),
        "horizon": plan.horizon,
        "warmup": plan.warmup,
        "batch_ramp_steps": plan.batch.ramp_steps,
        "schedule": schedule_line(plan),
        "batch": batch_line(plan),
        "joints": [asdict(joint) for joint in joints(plan)],
        "curve_columns": ["step", "tokens", "lr", "batch_size"],
        "curve": [[moment.step, moment.tokens, moment.lr, moment.batch_size] for moment in course(plan, _CURVE)],
    }


def _cost_facts(plan: Plan) -> dict[str, Any]:
    """Bytes by part with what they assume, and tokens a second by device; null and empty where nothing can be said."""
    from trainwell.planning.memory import micro_batch_of, planned_memory, precision_of
    from trainwell.planning.speed import UTILISATION, speeds

    estimate = planned_memory(plan)
    assumed = {"precision": precision_of(plan.config), "micro_batch": micro_batch_of(plan)}
    return {
        "memory": None if estimate is None else asdict(estimate) | {"total": estimate.total} | assumed,
        "speed": [asdict(speed) | {"utilisation": UTILISATION} for speed in speeds(plan)],
    }


def _step_facts(plan: Plan, step: int) -> dict[str, Any]:
    from trainwell.planning.describe import explain, explain_batch

    return {
        "step": step,
        **{setting: value(step) for setting, value in plan.schedules.items()},
        "because": explain(plan, step),
        "batch_size": plan.batch.size(step),
        "batch_because": explain_batch(plan, step),
        "first_example": plan.batch.first_example(step),
        "tokens_before": plan.batch.tokens_before(step),
        "epoch": plan.epoch(step),
    }
