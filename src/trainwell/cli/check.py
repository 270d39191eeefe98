"""`trainwell check`: the mistakes in a recipe, a config file or a run's plan, what is worth knowing about it, and
whether the files of a run are whole.

Looks at configuration, counts and files alone; nothing is run, and torch is not imported. Only with --tasks it opens a
run and asks its weights, and with --prove it trains short twins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from trainwell.cli import parts
from trainwell.cli.flags import with_config_flags
from trainwell.cli.output import print_json, print_rich
from trainwell.cli.plans import Planned, plan_of
from trainwell.config.load import load
from trainwell.errors import CheckError, ConfigError, DataError, StorageError
from trainwell.planning.describe import batch_line
from trainwell.planning.finding import Finding
from trainwell.planning.lints import findings
from trainwell.planning.resolve import Plan
from trainwell.planning.target import find_step
from trainwell.report.damage import Part, damaged, holds_run, inspect, inspect_checkpoint, show_parts, summary
from trainwell.report.load import load_run
from trainwell.runs.console import safe, short_count
from trainwell.runs.rundir import RunDir, Step, is_run, parse_target

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"warning": "bold yellow", "note": "bold"}
_FAINT = "bright_black"
_NEED_TEXT = "passes over it, the horizon against its length, the size of the validation text"


@with_config_flags
def check(
    target: str = "demo",
    /,
    *,
    config: Annotated[Path | None, Parameter(help="A .yaml, .toml or .json file; it overrides the recipe.")] = None,
    strict: Annotated[bool, Parameter(help="Exit with 1 when there is a warning.", negative=())] = False,
    json: Annotated[bool, Parameter(help="Print what a program may read.", negative=())] = False,
    tasks: Annotated[
        str | None,
        Parameter(
            help="Benchmarks for the weights of a run or a step of it: task files (.yaml), folders of them, names of "
            "the lm-evaluation-harness, with commas between. Needs the extra [eval]."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        Parameter(help="With --tasks: only the first so many documents of each.", validator=Number(gte=1)),
    ] = None,
    prove: Annotated[
        bool,
        Parameter(
            help="Train short twins on this configuration and machine, and say for each promise whether it holds.",
            negative=(),
        ),
    ] = False,
    small: Annotated[bool, Parameter(help="With --prove: the same model and batch, scaled down.", negative=())] = False,
    flags: Mapping[str, object],
) -> None:
    """Check TARGET: a recipe or config file before anything runs, a run's files and plan, a checkpoint (runs/demo@40).

    Mistakes end it with exit code 2. Each warning and note says what is the case, where, why it matters, and the line
    to change. Of a run every checkpoint and line of metrics is verified; what is damaged ends it with 74. With --tasks
    the weights of a run are checked, by benchmarks of others; with --prove, what trainwell promises.
    """
    _refuse_together(tasks=tasks, limit=limit, prove=prove, small=small, config=config, strict=strict)
    if prove:
        from trainwell.cli.prove import show_proof

        show_proof(target, config, flags, small=small, as_json=json)
    elif tasks is not None:
        _check_weights(target, tasks, limit, flags, as_json=json)
    else:
        _check(target, config, flags, strict=strict, as_json=json)


def _refuse_together(
    *, tasks: str | None, limit: int | None, prove: bool, small: bool, config: Path | None, strict: bool
) -> None:
    """Raise ConfigError for flags that belong to different checks."""
    if prove and (tasks is not None or strict):
        raise ConfigError("--prove trains twins, --tasks and --strict are checks of their own; give one of them")
    if small and not prove:
        raise ConfigError("--small is for --prove, which is not given")
    if tasks is not None and (config is not None or strict):
        raise ConfigError("--tasks is about the weights of a run, --config and --strict are about a plan")
    if limit is not None and tasks is None:
        raise ConfigError(f"--limit {limit} is for --tasks, and there are none")


def _check(target: str, file: Path | None, flags: Mapping[str, object], *, strict: bool, as_json: bool) -> None:
    """Check a plan; of a run its files too; of a step of it only that checkpoint."""
    path, step = parse_target(target)
    files: list[Part] = []
    if not holds_run(Path(path)):
        planned: Planned | None = _plan(target, path, step, file, flags)
    elif file is not None or flags:
        raise ConfigError(f"{path} is a run and is checked as it is; --config and config keys change a recipe")
    elif step is None:
        files = inspect(RunDir(Path(path)))
        planned = _plan_of_run(Path(path), files)
    else:
        number = step if isinstance(step, int) else find_step(RunDir(Path(path)), step)
        path, files, planned = f"{path}@{number}", inspect_checkpoint(RunDir(Path(path)), number), None
    found = [] if planned is None else findings(planned.plan)
    if as_json:
        print_json(_facts(path, planned, found, files))
    else:
        _print(path, planned, found, files)
    if bad := damaged(files):
        why = files[0].what if len(files) == 1 else f"{summary(files)}: {', '.join(bad)}"
        raise StorageError(f"{path}: {why}")
    warnings = [finding.name for finding in found if finding.level == "warning"]
    if strict and warnings:
        raise CheckError(f"{path} has {_count(len(warnings), 'warning')}: {', '.join(warnings)}")


def _plan(target: str, path: str, step: Step | None, file: Path | None, flags: Mapping[str, object]) -> Planned:
    """The plan of a recipe or config file, with what else is to be said of its data."""
    if step is not None:
        raise ConfigError(
            f"{target}: a check looks at all steps of a plan; write `trainwell check {path}`, "
            f"or see that step with `trainwell show {target}`"
        )
    return plan_of(load(path, file=file, flags=flags))


def _plan_of_run(path: Path, files: Sequence[Part]) -> Planned | None:
    """The plan of a run; None where its files are too damaged to say."""
    try:
        return Planned(load_run(path).planned())
    except (ConfigError, DataError, StorageError):
        if damaged(files):
            return None
        raise


def _facts(path: str, planned: Planned | None, found: Sequence[Finding], files: Sequence[Part]) -> dict[str, Any]:
    facts: dict[str, Any] = {"target": path}
    if planned is not None:
        plan = planned.plan
        facts |= {
            "name": plan.config.name,
            "num_steps": plan.num_steps,
            "horizon": plan.horizon,
            "warmup": plan.warmup,
            "counted_with_text": plan.info is not None,
            "warnings": sum(finding.level == "warning" for finding in found),
            "findings": [asdict(finding) for finding in found],
        }
    if files:
        facts |= {"damaged": damaged(files), "files": [asdict(part) for part in files]}
    return facts


def _print(path: str, planned: Planned | None, found: Sequence[Finding], files: Sequence[Part]) -> None:
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = []
    if planned is not None:
        said = [*planned.notes, *([planned.missing] if planned.missing else [])]
        lines += _shown(path, planned.plan, found, said)
    if files:
        lines += [
            *([Text()] if lines else []),
            *show_parts(
                path if planned is None and len(files) == 1 else f"the files of {RunDir(Path(path)).shown}", files
            ),
        ]
    print_rich(Group(*lines))


def _shown(path: str, plan: Plan, found: Sequence[Finding], said: Sequence[str]) -> "list[RenderableType]":
    from rich.text import Text

    tokens, passes = short_count(plan.batch.tokens_before(plan.num_steps)), plan.epoch(plan.num_steps)
    length = f"{plan.num_steps:,} steps, {tokens} tokens" + ("" if passes is None else f", {passes:.3g} passes")
    lines: list[RenderableType] = [
        Text.assemble((safe(path), "bold"), f": no mistakes; {length}"),
        Text(f"a step takes {batch_line(plan)}", _FAINT),
    ]
    for finding in found:
        lines += [Text(), *_one(finding)]
    counts = [_count(sum(each.level == level for each in found), level) for level in ("warning", "note")]
    summary = ", ".join(counts) if found else "no warnings, no notes"
    lines += [Text(), Text(summary, "bold")]
    if any(finding.change for finding in found):
        lines.append(
            Text("a change is a line of a config file; on the command line, `key: value` is `--key value`", _FAINT)
        )
    if plan.info is None:
        lines.append(Text(f"not checked, because the text is not known: {_NEED_TEXT}", _FAINT))
    lines += [Text(safe(line), _FAINT) for line in said]
    return lines


def _one(finding: Finding) -> "list[RenderableType]":
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style=_FAINT, no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("where", finding.where)
    facts.add_row("why", finding.why)
    if finding.accepted:
        facts.add_row("on purpose", Text(finding.accepted))
    if finding.change:
        facts.add_row("change", Text(finding.change, "green"))
    heading = Text.assemble((finding.level, _STYLES[finding.level]), f"  {finding.name}", (f"  {finding.key}", _FAINT))
    return [heading, Padding.indent(Text(safe(finding.what)), 2), Padding.indent(facts, 2)]


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _check_weights(target: str, tasks: str, limit: int | None, flags: Mapping[str, object], *, as_json: bool) -> None:
    """Run benchmarks on a run or a step of it, and print what was measured."""
    name, _ = parse_target(target)
    if not is_run(Path(name)):
        raise ConfigError(
            f"--tasks asks the weights of a run, and {name} is none; train one first (trainwell train demo), then: "
            f"trainwell check runs/demo --tasks {tasks}"
        )
    names = [task.strip() for task in tasks.split(",") if task.strip()]
    if not names:
        raise ConfigError(
            "--tasks: it is empty; give task files (.yaml), folders of them, or names, with commas between"
        )
    if flags.keys() - {"device"}:
        raise ConfigError(f"{name} is a run and is asked as it is; of the config keys only --device goes with --tasks")

    from trainwell.build import open_run
    from trainwell.harness import run_tasks

    run = open_run(target, weights_alone=True, **parts.current(), **dict[str, Any](flags))
    if run.config.task == "classify":
        raise ConfigError(f"{name} is a classifier and continues no text; its accuracy is in trainwell show {name}")
    if run.tokenizer is None:
        raise ConfigError(f"{name} was trained on ids given in Python, so there is no tokenizer to read a task with")
    measured = run_tasks(run.model, run.tokenizer, names, context=run.plan.seq_len, limit=limit)
    if as_json:
        print_json({"target": name, "step": run.trainer.step, "limit": limit, "tasks": measured})
    else:
        print_rich(_measured(f"{name} at step {run.trainer.step:,}", measured))


def _measured(title: str, tasks: Mapping[str, Mapping[str, Any]]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(safe(title)), title_justify="left", title_style="bold")
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    for heading in ("value", "stderr", "documents"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, found in tasks.items():
        for metric, number in found["metrics"].items():
            documents = "" if found["samples"] is None else f"{found['samples']:,}"
            table.add_row(
                Text(safe(task)), Text(safe(metric)), _figure(number["value"]), _figure(number["stderr"]), documents
            )
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
