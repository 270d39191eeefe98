"""`trainwell check`: the mistakes in a recipe, a config file or a run's plan, and what is worth knowing about it.

Looks at configuration and counts alone; nothing is run, and torch is not imported. Only with --tasks it opens a run and
asks its weights.
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
from trainwell.errors import CheckError, ConfigError
from trainwell.planning.describe import batch_line
from trainwell.planning.finding import Finding
from trainwell.planning.lints import findings
from trainwell.planning.resolve import Plan
from trainwell.report.load import load_run
from trainwell.runs.console import safe, short_count
from trainwell.runs.rundir import is_run, parse_target

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
    flags: Mapping[str, object],
) -> None:
    """Check TARGET before anything runs: a recipe, a config file, or the plan of a run.

    Mistakes end it with exit code 2. Each warning and note says what is the case, where, why it matters, and the line
    to change. With --tasks it is the weights of a run that are checked, by benchmarks of others.
    """
    if tasks is not None:
        if config is not None or strict:
            raise ConfigError("--tasks is about the weights of a run, --config and --strict are about a plan")
        _check_weights(target, tasks, limit, flags, as_json=json)
        return
    if limit is not None:
        raise ConfigError(f"--limit {limit} is for --tasks, and there are none")
    path, (plan, unknown, notes) = _plan(target, config, flags)
    found = findings(plan)
    warnings = [finding.name for finding in found if finding.level == "warning"]
    if json:
        print_json(
            {
                "target": path,
                "name": plan.config.name,
                "num_steps": plan.num_steps,
                "horizon": plan.horizon,
                "warmup": plan.warmup,
                "counted_with_text": plan.info is not None,
                "warnings": len(warnings),
                "findings": [asdict(finding) for finding in found],
            }
        )
    else:
        from rich.console import Group

        print_rich(Group(*_shown(path, plan, found, [*notes, *([unknown] if unknown else [])])))
    if strict and warnings:
        raise CheckError(f"{path} has {_count(len(warnings), 'warning')}: {', '.join(warnings)}")


def _plan(target: str, file: Path | None, flags: Mapping[str, object]) -> tuple[str, Planned]:
    """The target without its step, and its plan with what else is to be said of its data."""
    path, step = parse_target(target)
    if step is not None:
        raise ConfigError(
            f"{target}: a check looks at all steps of a plan; write `trainwell check {path}`, "
            f"or see that step with `trainwell show {target}`"
        )
    if not is_run(Path(path)):
        return path, plan_of(load(path, file=file, flags=flags))
    if file is not None or flags:
        raise ConfigError(f"{path} is a run and is checked as it is; --config and config keys change a recipe")
    return path, Planned(load_run(Path(path)).planned())


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
