"""Trials compared, on a terminal: what differs, what is unfair, what each arm came to, and the verdict in sentences.

Returns what rich prints, and prints nothing itself.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwell.report.arms import Arm, Contrast, Verdict, amount, sentence
from trainwell.report.axes import FAINT, Chart
from trainwell.report.curve import Series
from trainwell.report.trial import UNITS
from trainwell.runs.console import safe

_STYLES = {"better": "bold green", "worse": "bold red"}
_BAR = 30


def show_verdict(found: Verdict, along: str | None = None) -> RenderableType:
    """Everything about a comparison; `along` is the key that its arms are laid out over."""
    return Group(
        *_differing(found),
        *(Text(f"unfair: {safe(line)}" if line.startswith("other ") else f"note: {safe(line)}", "yellow")
          for line in found.warnings),
        Text(),
        _arms(found),
        *_sentences(found),
        *([] if along is None else _over(found.arms, along)),
        *_chart(found),
    )  # fmt: skip


def _differing(found: Verdict) -> Iterable[RenderableType]:
    if not found.differing:
        yield Text("the same configuration but for the seed", FAINT)
        return
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("what differs")
    for arm in found.arms[:6]:
        table.add_column(Text(safe(_short(arm))), overflow="fold")
    for key in found.differing:
        values = [arm.settings.get(key, "several") for arm in found.arms[:6]]
        table.add_row(key, *(Text(safe(value)) for value in values))
    yield table


def _arms(found: Verdict) -> Table:
    """A row for each arm: means over its trials, with the spread where there are several."""
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("arm", overflow="fold")
    for column in columns(found):
        table.add_column(column, justify="right")
    for arm in found.arms:
        table.add_row(Text(safe(arm.name)), *cells(arm, found))
    return table


def columns(found: Verdict) -> list[str]:
    """What is said of each arm."""
    targets = [] if found.target_loss is None else [f"{by} to {found.target_loss:g}" for by in ("tokens", "time")]
    last = ["last"] if _other_ends(found) else []
    return ["runs", f"at {amount(found.end, found.by)}", *last, "best", "mean over all", *targets]


def cells(arm: Arm, found: Verdict) -> list[str]:
    """An arm in these columns."""
    every = arm.outcomes
    last = [[each.last for each in every]] if _other_ends(found) else []
    measured = [*last, [each.best for each in every], [each.area for each in every]]
    targets = [] if found.target_loss is None else [_reached(arm, by) for by in ("tokens", "time")]
    return [str(len(every)), spread(arm.losses()), *(spread(values) for values in measured), *targets]


def _other_ends(found: Verdict) -> bool:
    """Whether some trial goes on past the common end."""
    return any(each.last != each.final for arm in found.arms for each in arm.outcomes)


def spread(values: Sequence[float]) -> str:
    """A mean, and the standard deviation of single runs where there are several."""
    return f"{fmean(values):.4f}" + (f" ±{stdev(values):.4f}" if len(values) > 1 else "")


def _reached(arm: Arm, by: str) -> str:
    """How far it was to the target: the mean over the trials that got there, and how many did where not all."""
    known = [value for each in arm.outcomes if (value := each.target.get(by)) is not None]
    if not known:
        return "never"
    of = "" if len(known) == len(arm.outcomes) else f" ({len(known)} of {len(arm.outcomes)})"
    return amount(fmean(known), by).removesuffix(" tokens") + of


def _sentences(found: Verdict) -> Iterable[RenderableType]:
    yield Text()
    for contrast in found.contrasts:
        yield Text(safe(sentence(contrast, found)), _STYLES.get(contrast.verdict, ""))
        yield Text(f"  {safe(also(contrast, found))}", FAINT)


def also(contrast: Contrast, found: Verdict) -> str:
    """What else is known of two arms: the area between their curves, and where they part."""
    by = UNITS[found.by].partition(" ")[0]
    said = f"over all {by} the curves lie {contrast.area:+.4f} apart"
    if contrast.pair is None or contrast.first is None:
        return f"{said}; no training step that both have differs"
    first = contrast.first
    return f"{said}; their training losses first differ at step {first.step:,}: {first.left:.9g} and {first.right:.9g}"


def _over(arms: Sequence[Arm], along: str) -> Iterable[RenderableType]:
    """The loss over the values of a key, as bars between the lowest and the highest mean."""
    means = [arm.mean for arm in arms]
    low, high = min(means), max(means)
    yield Text(f"\nloss over {along}", "bold")
    table = Table(box=None, pad_edge=False, show_header=False)
    for arm in arms:
        size = round(_BAR * (arm.mean - low) / (high - low)) if high > low else 0
        rest = ", ".join(f"{key}={value}" for key, value in arm.settings.items() if key != along)
        bar = Text("#" * (size + 1), "bright_blue")
        table.add_row(Text(safe(arm.settings[along])), bar, spread(arm.losses()), Text(safe(rest), FAINT))
    yield table


def _chart(found: Verdict) -> Iterable[RenderableType]:
    """The evaluations of the first trial of the base and of the arm that is farthest from it."""
    if not found.contrasts:
        return
    far = max(found.contrasts, key=lambda each: abs(each.difference.mean)).arm
    lines, last = [], 1
    for number, arm in enumerate((found.base, far)):
        at, losses = arm.outcomes[0].trial.curve("steps", found.key)
        points = [(int(step), float(loss)) for step, loss in zip(at, losses, strict=True)]
        last = max(last, points[-1][0])
        lines.append(Series(points, name=safe(_short(arm)), dashed=number == 1))
    log = all(loss > 0 for line in lines for _, loss in line.points)
    yield Text()
    yield Chart(f"{found.unit}, over steps", lines, last, numbers=".3g", log=log)


def _short(arm: Arm) -> str:
    return arm.name if len(arm.name) <= 32 else f"...{arm.name[-29:]}"
