"""A recipe, a run, or a step of either, on a terminal: a curve, tables, notes.

Returns what rich prints, and prints nothing itself. Knows how things look; what they are
comes from `planning` and `report.load`.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from math import exp, isfinite, log
from statistics import fmean, median

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainwell.config.checks import training_problems
from trainwell.config.load import Recipe
from trainwell.planning.describe import explain, joints, schedule_line
from trainwell.planning.lints import notes
from trainwell.planning.model_size import count_parameters, flops_per_token
from trainwell.planning.resolve import Plan
from trainwell.report.curve import Cell, Series, chart, y_range
from trainwell.report.load import RunData
from trainwell.report.verdict import verdict
from trainwell.runs.console import safe, short_count, short_time
from trainwell.runs.metrics import Row

_STYLES = ("bright_blue", "bright_yellow")
_FAINT = "bright_black"
_LABEL = 9
_HEIGHT = 11
_SHOWN_EVALUATIONS = 6
_SHOWN_SAMPLES = 2


class Chart:
    """Series over steps with axes, as wide as the terminal up to 100 columns; braille, or stars where it cannot.

    With `log`, values stand at their logarithms; all of them must be positive.
    """

    def __init__(self, series: Sequence[Series], last: int, *, numbers: str, log: bool = False) -> None:
        self.series = [_logarithmic(line) for line in series] if log else series
        self.last = last
        self.numbers = numbers
        self.log = log

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for the width at hand."""
        width = min(options.max_width, 100) - _LABEL - 4
        ascii = options.ascii_only
        low, high = y_range(self.series)
        values = {row: high - (high - low) * row / (_HEIGHT - 1) for row in (0, _HEIGHT // 2, _HEIGHT - 1)}
        labels = {row: format(exp(value) if self.log else value, self.numbers) for row, value in values.items()}
        tick, wall, corner, floor = ("|", "|", "+", "-") if ascii else ("┤", "│", "└", "─")
        for number, cells in enumerate(chart(self.series, width, _HEIGHT, x=(0, self.last), ascii=ascii)):
            label = labels.get(number, "")
            yield _row(f"{label:>{_LABEL}} {tick if label else wall}", cells)
        yield Text(f"{'':{_LABEL}} {corner}{floor * width}", _FAINT)
        yield Text(f"{'':{_LABEL + 2}}{_under(self.last, width)}", _FAINT)


def show_recipe(plan: Plan, recipe: Recipe) -> RenderableType:
    """What a recipe would do: its rate as a curve, where it turns, its arithmetic, what to know before starting it."""
    last = plan.num_steps - 1
    at = sorted({round(last * i / 400) for i in range(401)})
    return Group(
        *_heading(recipe.name, recipe.about),
        Text("learning rate over steps", "bold"),
        Chart([Series([(step, plan.lr(step)) for step in at])], last, numbers=".2e"),
        Text(f"\n{schedule_line(plan)}\n"),
        _joint_table(plan),
        Text(),
        _arithmetic(plan),
        *_notes(notes(plan)),
        *_next(
            f"trainwell train {recipe.name}{' --data.path TEXT' if training_problems(plan.config) else ''}",
            f"trainwell show {recipe.name} --yaml > my.yaml",
        ),
    )


def show_run(run: RunData) -> RenderableType:
    """The report of a run: its state, the verdict, the loss curve, evaluations, speed, the last samples, its files."""
    parts: list[RenderableType] = [*_heading(str(run.dir.path), run.status)]
    if run.train:
        parts += [Text(verdict(run)), Text(), *_losses(run), Text(), _evaluations(run), _speed(run)]
    for sample in run.samples[-_SHOWN_SAMPLES:]:
        parts += [Text(f"\nstep {sample.step}, {safe(sample.about)}", "bold"), Padding(Text(safe(sample.text)), (0, 2))]
    parts += [Text(), _files(run)]
    return Group(*parts)


def show_step(plan: Plan, step: int, name: str, row: Row | None = None) -> RenderableType:
    """One step: its rate and why, the batch it takes, and what is on record about it (`row`) if it was taken."""
    table = _facts()
    size, tokens = plan.batch.size(step), plan.batch.tokens_before(step)
    first = plan.batch.examples_before(step)
    table.add_row("rate", f"{plan.lr(step):.6e}")
    table.add_row("because", explain(plan, step))
    table.add_row(
        "batch", f"{size} sequences x {plan.seq_len} tokens: examples {first:,} to {first + size - 1:,} of the run"
    )
    table.add_row("before it", f"{tokens:,} tokens{_epochs(plan, step)}")
    for key, value in (row or {}).items():
        if key.startswith("train/"):
            table.add_row(key.removeprefix("train/"), f"{value:.6g}" if isinstance(value, float) else str(value))
    return Group(Text(f"{name}@{step}", "bold"), Text(f"step {step} of {plan.num_steps}\n", _FAINT), table)


def _heading(name: str, about: str) -> Iterable[RenderableType]:
    return Text(name, "bold"), Text(f"{about}\n", _FAINT)


def _joint_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style=_FAINT)
    table.add_column("")
    epoch = ["epoch"] if plan.num_windows else []
    for column in ("step", "tokens before", *epoch, "rate", "batch"):
        table.add_column(column, justify="right")
    for joint in joints(plan):
        place = [f"{joint.step:,}", short_count(joint.tokens)]
        place += [] if joint.epoch is None else [f"{joint.epoch:.2f}"]
        table.add_row(joint.what, *place, f"{joint.lr:.4e}", f"{joint.batch:,}")
    return table


def _facts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style=_FAINT, no_wrap=True)
    table.add_column(overflow="fold")  # a cut path is no path, and the mark of the cut is not ASCII
    return table


def _arithmetic(plan: Plan) -> Table:
    """The model, the batch, the length and the work, each with the numbers it is made of."""
    model, table = plan.config.model, _facts()
    tokens = plan.batch.tokens_before(plan.num_steps)
    shape = f"{model.arch}, {model.num_layers} layers, {model.num_heads} heads, {model.width} wide"
    step = f"{plan.batch.size(0)} sequences x {plan.seq_len} tokens = {plan.batch.size(0) * plan.seq_len:,} tokens"
    length = f"{plan.num_steps:,} steps, {short_count(tokens)} tokens{_epochs(plan, plan.num_steps)}"
    if plan.vocab_size is None:
        table.add_row("model", f"{shape}; its vocabulary depends on the text")
        table.add_row("a step", step)
        table.add_row("the run", length)
        return table
    size = count_parameters(model, plan.vocab_size, plan.seq_len)
    flops = flops_per_token(model, plan.vocab_size, plan.seq_len)
    table.add_row("model", f"{shape}, {size.total:,} parameters, {size.embedding:,} of them embeddings")
    table.add_row("a step", f"{step}, {_power(flops * plan.batch.size(0) * plan.seq_len)} FLOPs")
    table.add_row(
        "the run", f"{length}, {tokens / size.total:.3g} tokens per parameter, {_power(flops * tokens)} FLOPs"
    )
    return table


def _power(count: float) -> str:
    digits, exponent = f"{count:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def _epochs(plan: Plan, step: int) -> str:
    epochs = plan.epoch(step)
    return "" if epochs is None else f", {epochs:.2f} epochs of {plan.num_windows:,} windows"


def _losses(run: RunData) -> Iterable[RenderableType]:
    """The curve of the training loss, a mean for each of some eighty stretches, and of the validation loss."""
    end = run.num_steps or run.steps_done
    train, val = _points(run.train, "train/loss"), _points(run.val, "val/loss")
    size = max(1, len(train) // 80)
    stretches = [train[start : start + size] for start in range(0, len(train), size)]
    means = [(stretch[len(stretch) // 2][0], fmean(loss for _, loss in stretch)) for stretch in stretches]
    log = all(loss > 0 for _, loss in [*means, *val])
    what = f"loss, nats per token{', logarithmic' if log else ''}, over steps"
    heading = Text.assemble((f"{what}   ", "bold"), ("training", _STYLES[0]), "  ", ("o validation", _STYLES[1]))
    return heading, Chart([Series(means), Series(val, "o")], end, numbers=".3g", log=log)


def _points(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), float) and isfinite(row[key])]


def _evaluations(run: RunData) -> Table:
    """The last evaluations, the best of them all in bold if it is among them."""
    named = {"val/loss": ("validation", ".4f"), "val/ppl": ("perplexity", ".3f"), "val/bpb": ("bits per byte", ".3f")}
    shown = [key for key in named if any(key in row for row in run.val)]
    table = Table(box=None, pad_edge=False, header_style=_FAINT)
    for column in ("state", "tokens", *(named[key][0] for key in shown)):
        table.add_column(column, justify="right")
    best = min((loss for _, loss in _points(run.val, "val/loss")), default=None)
    for row in run.val[-_SHOWN_EVALUATIONS:]:
        numbers = [format(row[key], named[key][1]) if row.get(key) is not None else "" for key in shown]
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
        f"\n{median(times):.1f} ms a step, {short_count(median(speeds))} tokens per second, {took} in steps", _FAINT
    )


def _files(run: RunData) -> Table:
    table = _facts()
    if run.checkpoints:
        table.add_row("checkpoints", ", ".join(f"@{step}" for step in run.checkpoints))
    plots = sorted(run.dir.plots.glob("*.png"))
    if plots:
        table.add_row("plots", ", ".join(str(path) for path in plots))
    if run.checkpoints:
        table.add_row("next", f'trainwell sample {run.dir.path} --prompt "The "')
    return table


def _notes(lines: Sequence[str]) -> Iterable[RenderableType]:
    return [Text(), *(Text(f"note: {line}", "yellow") for line in lines)] if lines else []


def _next(*commands: str) -> Iterable[RenderableType]:
    return [Text(), *(Text(command, _FAINT) for command in commands)]


def _logarithmic(series: Series) -> Series:
    return Series([(at, log(value)) for at, value in series.points], series.mark)


def _row(axis: str, cells: Sequence[Cell]) -> Text:
    text = Text.assemble((axis, _FAINT))
    for series, group in groupby(cells, key=lambda cell: cell.series):
        text.append("".join(cell.char for cell in group), None if series is None else _STYLES[series])
    text.rstrip()
    return text


def _under(last: int, width: int) -> str:
    """The first, the middle and the last step, each below its place."""
    left, middle, right = "0", f"{last // 2:,}", f"{last:,}"
    gap = width - len(left) - len(middle) - len(right)
    return f"{left}{' ' * (gap // 2)}{middle}{' ' * (gap - gap // 2)}{right}" if gap > 2 else f"{left} {right}"
