"""A recipe, a run, or a step of either, on a terminal: a curve, tables, notes.

Returns what rich prints, and prints nothing itself. Knows how things look; what they are
comes from `planning` and `report.load`.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainwell.config.checks import training_problems
from trainwell.config.load import Recipe
from trainwell.planning.describe import batch_line, explain, explain_batch, joints, schedule_line
from trainwell.planning.finding import Finding
from trainwell.planning.lints import findings
from trainwell.planning.memory import memory_line
from trainwell.planning.model_size import count_parameters, flops_per_token, num_classes
from trainwell.planning.resolve import Plan
from trainwell.planning.speed import speed_line, speeds
from trainwell.report.axes import FAINT, Chart, facts, heading
from trainwell.report.course import batch_changes, course, grid
from trainwell.report.curve import Series
from trainwell.report.incident import commands, one_line, show_incident
from trainwell.report.load import RunData
from trainwell.report.verdict import verdict
from trainwell.runs.console import safe, scientific, share, short_count, short_time
from trainwell.runs.incidents import Incident, incident_steps
from trainwell.runs.metrics import Row

if TYPE_CHECKING:
    from trainwell.report.index import Entry
    from trainwell.report.step_text import StepText, Window  # it brings numpy, which a recipe can be shown without

_SHOWN_EVALUATIONS = 6
_SHOWN_SAMPLES = 2
_SHOWN_INCIDENTS = 8
_SHOWN_VALUES = 12


def show_recipe(plan: Plan, recipe: Recipe) -> RenderableType:
    """What a recipe would do: its rate as a curve, where it turns, its arithmetic, what to know before starting it."""
    return Group(
        *heading(recipe.name, recipe.about),
        *plan_charts(plan),
        Text(f"\n{schedule_line(plan)}\n"),
        _joint_table(plan),
        Text(),
        _arithmetic(plan),
        *_findings(findings(plan)),
        *_next(
            f"trainwell train {recipe.name}{' --data.path TEXT' if training_problems(plan.config) else ''}",
            # a file of the user's own is never named as the one to write
            *([f"trainwell show {recipe.name} --yaml > my-{recipe.name}.yaml"] if recipe.config else []),
        ),
    )


def plan_charts(plan: Plan, recorded: Sequence[tuple[int, float]] = ()) -> Iterable[RenderableType]:
    """The rate over steps, what is on record below it, and the batch size where it changes."""
    moments, last = course(plan), plan.num_steps - 1
    planned = [(moment.step, moment.lr) for moment in moments]
    lines = [Series(planned)]
    if recorded:
        lines = [Series(recorded, name="recorded"), Series(planned, name="planned", dashed=True)]
    yield Chart("learning rate over steps", lines, last, numbers=".2e")
    if batch_changes(plan):
        sizes = Series([(moment.step, moment.exact_size) for moment in moments])
        yield Text()
        yield Chart("sequences a step, over steps", [sizes], last, numbers=",.0f", height=7)


def show_run(run: RunData) -> RenderableType:
    """The report of a run: its state, the verdict, the loss curve, evaluations, speed, the last samples, its files."""
    parts: list[RenderableType] = [*heading(str(run.dir.path), run.status)]
    if run.train:
        parts += [Text(verdict(run)), Text(), *_losses(run), Text(), _evaluations(run), _classes(run), _speed(run)]
        parts += [Text(), *_rates(run)]
    for sample in run.samples[-_SHOWN_SAMPLES:]:
        parts += [Text(f"\nstep {sample.step}, {safe(sample.about)}", "bold"), Padding(Text(safe(sample.text)), (0, 2))]
    parts += [Text(), _files(run)]
    return Group(*parts)


def index_table(folder: str, entries: Sequence["Entry"]) -> RenderableType:
    """The runs of a folder: how each stands."""
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("best val loss", "steps", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    styles = {"good": "green", "bad": "bold red"}
    for entry in entries:
        of = f" of {entry.num_steps:,}" if entry.num_steps else ""
        table.add_row(
            Text(safe(entry.name)),
            Text(f"{entry.sign} {entry.state}", styles.get(entry.tone, "")),
            "" if entry.best_loss is None else f"{entry.best_loss:.3f}",
            f"{entry.steps:,}{of}",
            entry.left,
        )
    return Group(*heading(folder, f"{len(entries)} run{'' if len(entries) == 1 else 's'}"), table)


def show_step(
    plan: Plan,
    step: int,
    name: str,
    row: Row | None = None,
    text: "StepText | str | None" = None,
    incident: Incident | None = None,
    saved: Sequence[int] = (),
) -> RenderableType:
    """One step: its rate and why, the batch it takes and what that says, and what is on record if it was taken (`row`).

    `text` is what the batch says, or why that cannot be shown; an `incident` is explained in its place, with what to do
    from the states that are `saved`.
    """
    table = facts()
    size, tokens = plan.batch.size(step), plan.batch.tokens_before(step)
    first = plan.batch.first_example(step)
    table.add_row("rate", f"{plan.lr(step):.6e}")
    table.add_row("because", explain(plan, step))
    table.add_row(
        "batch", f"{size} sequences x {plan.seq_len} tokens: examples {first:,} to {first + size - 1:,} of the run"
    )
    if plan.batch.ramp is not None:
        table.add_row("because", explain_batch(plan, step))
    for setting, value in plan.schedules.items():
        if setting != "lr":
            table.add_row(setting.replace("_", " "), f"{value(step):.6g}")
    table.add_row("before it", f"{tokens:,} tokens{_epochs(plan, step)}")
    for key, value in (row or {}).items():
        if key.startswith("train/") and value is not None:
            table.add_row(Text(safe(key.removeprefix("train/"))), Text(_said(value)))
    about = f"step {step:,} of {plan.num_steps:,}"
    parts: Iterable[RenderableType] = _text(plan, text)
    if incident is not None:
        parts = [Text("\nthe incident", "bold"), *show_incident(incident, commands(name, step, saved))]
    return Group(*heading(f"{name}@{step}", about), table, *parts)


def _said(value: object) -> str:
    """A value on record; of a long list, as the windows of a skipped step are, the beginning."""
    if isinstance(value, list) and len(value) > _SHOWN_VALUES:
        return f"{safe(', '.join(map(str, value[:_SHOWN_VALUES])))} and {len(value) - _SHOWN_VALUES:,} more"
    return f"{value:.6g}" if isinstance(value, float) else safe(str(value))


def _text(plan: Plan, text: "StepText | str | None") -> Iterable[RenderableType]:
    if text is None:
        return
    yield Text()
    if isinstance(text, str):
        yield Text(safe(f"the text cannot be shown: {text}"), "yellow")
        return
    shown, size = len(text.windows), len(text.indices)
    yield Text(f"the text, {f'the first {shown} of {size:,} sequences' if shown < size else 'all of it'}", "bold")
    for window in text.windows:
        yield Text(f"\n{safe(_origin(window, plan))}", FAINT)
        yield Padding(Text(one_line(window.text)), (0, 2))


def _origin(window: "Window", plan: Plan) -> str:
    """Where a window is from: "example 960, epoch 0: window 3,071, tokens 393,088 to 393,215; python-docs from ..."."""
    first = window.first_token
    tokens = "" if first is None else f"tokens {first:,} to {first + plan.seq_len - 1:,}; "
    start = "" if window.place is None else f" from {window.unit} {window.place:,}"
    others = len(window.sources) - 1
    more = "" if not others else f", then {window.sources[1]}" + (f" and {others - 1} more" if others > 1 else "")
    return (
        f"example {window.example:,}, epoch {window.epoch}: {plan.rows[:-1]} {window.index:,} of the training part, "
        f"{tokens}{window.sources[0]}{start}{more}"
    )


def _joint_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("")
    epoch = ["epoch"] if plan.num_windows else []
    for column in ("step", "tokens before", *epoch, "rate", "batch"):
        table.add_column(column, justify="right")
    for joint in joints(plan):
        place = [f"{joint.step:,}", short_count(joint.tokens)]
        place += [] if joint.epoch is None else [f"{joint.epoch:.2f}"]
        table.add_row(joint.what, *place, f"{joint.lr:.4e}", f"{joint.batch:,}")
    return table


def _arithmetic(plan: Plan) -> Table:
    """The model, the batch, the length, the work, the memory and the time, each with the numbers it is made of."""
    model, table = plan.config.model, facts()
    tokens = plan.batch.tokens_before(plan.num_steps)
    heads = f"{model.num_heads} heads"
    if model.kv_heads != model.num_heads:
        heads += f" over {model.kv_heads} of keys and values"
    shape = f"{model.arch}, {model.num_layers} layers, {heads}, {model.width} wide"
    step = batch_line(plan)
    length = f"{plan.num_steps:,} steps, {short_count(tokens)} tokens{_epochs(plan, plan.num_steps)}"
    if plan.vocab_size is None:
        table.add_row("model", f"{shape}; its vocabulary depends on the text")
        table.add_row("a step", step)
        table.add_row("the run", length)
        return table
    classes = num_classes(plan.config)
    size = count_parameters(model, plan.vocab_size, plan.seq_len, num_labels=classes)
    flops = flops_per_token(model, plan.vocab_size, plan.seq_len, num_labels=classes)
    table.add_row("model", f"{shape}, {size.total:,} parameters, {size.embedding:,} of them embeddings")
    full = "" if plan.batch.ramp is None else " when full"
    table.add_row("a step", f"{step}, {scientific(flops * plan.batch.batch_size * plan.seq_len)} FLOPs{full}")
    table.add_row(
        "the run", f"{length}, {tokens / size.total:.3g} tokens per parameter, {scientific(flops * tokens)} FLOPs"
    )
    for what, line in (("memory", memory_line(plan)), ("speed", speed_line(speeds(plan)))):
        if line is not None:
            table.add_row(what, line)
    return table


def _epochs(plan: Plan, step: int) -> str:
    epochs = plan.epoch(step)
    return "" if epochs is None else f", {epochs:.2f} epochs of {plan.num_windows:,} {plan.rows}"


def _losses(run: RunData) -> Iterable[RenderableType]:
    """The curve of the training loss, a mean for each of some eighty stretches, and of the validation loss."""
    end = run.num_steps or run.steps_done
    train, val = _points(run.train, "train/loss"), _points(run.val, "val/loss")
    size = max(1, len(train) // 80)
    stretches = [train[start : start + size] for start in range(0, len(train), size)]
    means = [(stretch[len(stretch) // 2][0], fmean(loss for _, loss in stretch)) for stretch in stretches]
    log = all(loss > 0 for _, loss in [*means, *val])
    what = f"loss, {run.loss_unit}{', logarithmic' if log else ''}, over steps"
    lines = [Series(means, name="training"), Series(val, "o", name="validation")]
    return [Chart(what, lines, end, numbers=".3g", log=log)]


def _rates(run: RunData) -> Iterable[RenderableType]:
    """The planned rate over the recorded one; nothing where the files do not say enough to lay a plan out."""
    recorded = _points(run.train, "train/lr")
    if run.plan is None or not recorded:
        return []
    return plan_charts(run.plan, [recorded[index] for index in grid(len(recorded), 400)])


def _points(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), float) and isfinite(row[key])]


_MEASURED = {
    "val/loss": ("validation", ".4f"),
    "val/ppl": ("perplexity", ".3f"),
    "val/bpb": ("bits per byte", ".3f"),
    "val/accuracy": ("accuracy", ".1%"),
    "val/hellaswag": ("hellaswag", ".1%"),
}


def _classes(run: RunData) -> Text:
    """The accuracy of each class at the last evaluation; nothing for a run without classes."""
    last = run.val[-1] if run.val else {}
    shares = {key.removeprefix("val/accuracy/"): last[key] for key in last if key.startswith("val/accuracy/")}
    said = ", ".join(f"{name} {share(value)}" for name, value in shares.items())
    return Text(f"\nright by class: {safe(said)}") if said else Text()


def _evaluations(run: RunData) -> Table:
    """The last evaluations, the best of them all in bold if it is among them."""
    shown = [key for key in _MEASURED if any(key in row for row in run.val)]
    named = {key: _MEASURED[key] for key in shown if key != "val/ppl" or "val/accuracy" not in shown}
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    for column in ("state", "tokens", *(name for name, _ in named.values())):
        table.add_column(column, justify="right")
    best = min((loss for _, loss in _points(run.val, "val/loss")), default=None)
    for row in run.val[-_SHOWN_EVALUATIONS:]:
        numbers = [format(row[key], form) if row.get(key) is not None else "" for key, (_, form) in named.items()]
        tokens = short_count(row["tokens"]) if "tokens" in row else ""
        table.add_row(f"{row['step']:,}", tokens, *numbers, style="bold" if row.get("val/loss") == best else "")
    return table


def _speed(run: RunData) -> Text:
    """The typical step: the median, because the first ones warm up and the ones after an evaluation wait for it."""
    times = [row["train/step_ms"] for row in run.train if row.get("train/step_ms")]
    speeds = [row["train/tokens_per_sec"] for row in run.train if row.get("train/tokens_per_sec")]
    if not times or not speeds:
        return Text()
    took = short_time(sum(times) / 1000)
    return Text(
        f"\n{median(times):.1f} ms a step, {short_count(median(speeds))} tokens per second, {took} in steps", FAINT
    )


_ASKED = {"pretrain": '--prompt "The "', "instruct": "--chat", "classify": '--label "some text"'}


def _files(run: RunData) -> Table:
    table = facts()
    if run.checkpoints:
        table.add_row("checkpoints", ", ".join(f"@{step}" for step in run.checkpoints))
    incidents = incident_steps(run.dir)
    if incidents:
        shown = ", ".join(f"@{step}" for step in incidents[-_SHOWN_INCIDENTS:])
        before = "" if len(incidents) <= _SHOWN_INCIDENTS else f"{len(incidents):,}, the last "
        table.add_row("incidents", f"{before}{shown}; each explained by trainwell show {run.dir.path}@{incidents[-1]}")
    plots = sorted(run.dir.plots.glob("*.png"))
    if plots:
        table.add_row("plots", ", ".join(str(path) for path in plots))
    if run.checkpoints and not run.config.custom:  # only the script that has its parts can sample from it
        table.add_row("next", f"trainwell sample {run.dir.path} {_ASKED[run.config.task]}")
    return table


def _findings(found: Sequence[Finding]) -> Iterable[RenderableType]:
    styles = {"warning": "bold yellow", "note": "yellow"}
    return [Text(), *(Text(finding.line(), styles[finding.level]) for finding in found)] if found else []


def _next(*commands: str) -> Iterable[RenderableType]:
    return [Text(), *(Text(command, FAINT) for command in commands)]
