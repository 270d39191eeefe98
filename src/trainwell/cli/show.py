"""`trainwell show`: a recipe before it runs, a run during or after, a step of either. Never imports torch."""

import json as json_format
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from trainwell.cli.flags import with_config_flags
from trainwell.config import checks
from trainwell.config.load import Recipe, load, read_recipe, recipe_names
from trainwell.config.render import to_yaml
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError, DataError
from trainwell.planning.resolve import Plan, resolve
from trainwell.planning.target import find_step
from trainwell.report.load import RunData, load_run
from trainwell.runs.console import safe
from trainwell.runs.rundir import RunDir, Step, is_run, parse_target


@with_config_flags
def show(
    target: str = "demo",
    /,
    *,
    config: Annotated[Path | None, Parameter(help="A .yaml, .toml or .json file; it overrides the recipe.")] = None,
    yaml: Annotated[bool, Parameter(help="Print the configuration, itself a valid config file.", negative=())] = False,
    code: Annotated[bool, Parameter(help="Print the same run as one plain PyTorch file.", negative=())] = False,
    json: Annotated[bool, Parameter(help="Print what a program may read.", negative=())] = False,
    flags: Mapping[str, object],
) -> None:
    """Show TARGET: a recipe or config file before it runs, a run during or after, a step of either (runs/demo@1200)."""
    if yaml + code + json > 1:
        raise ConfigError("--yaml, --code and --json each print something else; give one of them")
    path, step = parse_target(target)
    found = is_run(Path(path))
    if found and (config is not None or flags):
        raise ConfigError(f"{path} is a run and is shown as it is; --config and config keys change a recipe")
    settings = load(None, file=RunDir(Path(path)).config_yaml) if found else load(path, file=config, flags=flags)
    if yaml:
        print(to_yaml(settings), end="")
    elif code:
        _show_code(settings, Path(path) if found else None)
    elif found:
        _show_run(Path(path), step, json)
    else:
        _show_recipe(path, settings, step, json)


def _show_run(path: Path, step: Step | None, json: bool) -> None:
    run = load_run(path)
    if step is not None:
        state = step if isinstance(step, int) else find_step(run.dir, step)
        plan = run.plan or resolve(run.config)
        rows = [row for row in run.train if row["step"] == state]
        _show_step(plan, str(path), state, json, rows[0] if rows else None)
    elif json:
        _print_json(_run_facts(run))
    else:
        from trainwell.report.terminal import show_run

        _print(show_run(run))


def _show_recipe(name: str, config: RunConfig, step: Step | None, json: bool) -> None:
    plan, missing = _plan(config)
    if isinstance(step, str):
        raise ConfigError(f"{name}@{step}: only a run has a {step} step; write {name}@1200")
    if step is not None:
        _show_step(plan, name, step, json)
    elif json:
        _print_json(_plan_facts(plan))
    else:
        from trainwell.report.terminal import show_recipe

        recipe = (
            read_recipe(name) if name in recipe_names() else Recipe(name, f"your configuration {config.name}", {}, {})
        )
        _print(show_recipe(plan, recipe))
        if missing:
            _print(safe(f"\ncounted without the text: {missing}"))


def _show_step(plan: Plan, name: str, step: int, json: bool, row: dict[str, Any] | None = None) -> None:
    if step >= plan.num_steps:
        raise ConfigError(
            f"{name}@{step}: the run has {plan.num_steps} steps; the last one taken is @{plan.num_steps - 1}"
        )
    if json:
        _print_json(_step_facts(plan, step) | {"recorded": row})
    else:
        from trainwell.report.terminal import show_step

        _print(show_step(plan, step, name, row))


def _plan(config: RunConfig) -> tuple[Plan, str]:
    """The plan, with the counts of the text if it is at hand; else without, and why."""
    if checks.training_problems(config):
        return resolve(config), ""
    from trainwell.data.prepare import prepare  # here, because it brings numpy, which most calls can do without

    try:
        return resolve(config, prepare(config.data).info), ""
    except DataError as error:
        try:
            return resolve(config), str(error)
        except ConfigError:  # a length in epochs: without the text there is nothing to count, so say how to get it
            raise error from None


def _show_code(config: RunConfig, run: Path | None) -> None:
    from trainwell.report.code import plain_file, refuse_unless_plain

    refuse_unless_plain(config)  # before the text is needed
    plan = load_run(run).plan if run else None
    print(plain_file(plan or _plan(config)[0]), end="")


def _run_facts(run: RunData) -> dict[str, Any]:
    from trainwell.report.verdict import judge

    return {
        "run": str(run.dir.path),
        "status": run.status,
        "steps_done": run.steps_done,
        "num_steps": run.num_steps,
        "verdict": asdict(judge(run.train, run.val)),
        "checkpoints": run.checkpoints,
        "val": run.val,
        "last_step": run.train[-1] if run.train else None,
        "samples": [asdict(sample) for sample in run.samples],
        "config": run.config.model_dump(mode="json"),
        "env": run.env,
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    from trainwell.planning.describe import joints, schedule_line
    from trainwell.planning.lints import notes

    return {
        "name": plan.config.name,
        "num_steps": plan.num_steps,
        "tokens": plan.batch.tokens_before(plan.num_steps),
        "epochs": plan.epoch(plan.num_steps),
        "horizon": plan.horizon,
        "warmup": plan.warmup,
        "schedule": schedule_line(plan),
        "joints": [asdict(joint) for joint in joints(plan)],
        "notes": notes(plan),
        "config": plan.config.model_dump(mode="json"),
    }


def _step_facts(plan: Plan, step: int) -> dict[str, Any]:
    from trainwell.planning.describe import explain

    return {
        "step": step,
        "lr": plan.lr(step),
        "because": explain(plan, step),
        "batch_size": plan.batch.size(step),
        "first_example": plan.batch.examples_before(step),
        "tokens_before": plan.batch.tokens_before(step),
        "epoch": plan.epoch(step),
    }


def _print_json(facts: dict[str, Any]) -> None:
    print(json_format.dumps(_strict(facts), indent=2, allow_nan=False))


def _strict(value: Any) -> Any:
    """The same with null for every number that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _print(what: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(what, markup=False)
