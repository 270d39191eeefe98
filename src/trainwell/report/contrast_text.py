"""Trials compared, on a terminal: what differs, what is unfair, what each arm came to, and the verdict in sentences.

Returns what rich prints, and prints nothing itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwell.report.arms import Arm, Contrast, Verdict, amount, sentence
from trainwell.report.axes import FAINT, Chart
from trainwell.report.curve import Series
from trainwell.report.lineup import AGAINST, against, groups, heads, is_many, labels, place, short, summary
from trainwell.report.trial import UNITS
from trainwell.runs.console import safe

_STYLES = {"better": "bold green", "worse": "bold red"}
_BAR = 30
_MOST_GROUPS = 6


def show_verdict(found: Verdict, along: str | None = None) -> RenderableType:
    """Everything about a comparison; `along` is the key that its arms are laid out over."""
    many = is_many(found)
    return Group(
        *(_values(found) if many else _differing(found)),
        *(Text(f"unfair: {safe(line)}" if line.startswith("other ") else f"note: {safe(line)}", "yellow")
          for line in found.warnings),
        Text(),
        *(_told(found) if many else (_arms(found), *_sentences(found))),
        *([] if along is None else _over(found, along)),
        *_chart(found),
    )  # fmt: skip


def _values(found: Verdict) -> Iterable[RenderableType]:
    """Each key that differs, with its values."""
    for key in found.differing:
        yield Text(f"{key}: {safe(', '.join(dict.fromkeys(arm.settings.get(key, 'several') for arm in found.arms)))}")


def _differing(found: Verdict) -> Iterable[RenderableType]:
    """Each key that differs, with its value in each of a few arms."""
    if not found.differing:
        yield Text("the same configuration but for the seed", FAINT)
        return
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("what differs")
    for arm in found.arms:
        table.add_column(Text(safe(_cut(arm.name))), overflow="fold")
    for key in found.differing:
        table.add_row(key, *(Text(safe(arm.settings.get(key, "several"))) for arm in found.arms))
    yield table


def _told(found: Verdict) -> Iterable[RenderableType]:
    """Many arms in one table, and in one sentence."""
    counts, against_what = summary(found)
    yield from (_lineup(found), Text(), Text(safe(f"{counts}, {against_what}")))


def _lineup(found: Verdict) -> Table:
    """A row for each of many arms: which it is, what it came to, how it did against the base."""
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    for head in heads(found):
        table.add_column(head, overflow="fold")
    measured = [f"at {amount(found.end, found.by)}", *_targets(found)]
    for head in (*measured, *AGAINST[:-1]):
        table.add_column(head, justify="right")
    table.add_column(AGAINST[-1])
    for arm in found.arms:
        *numbers, verdict = against(arm, found)
        own = [spread(arm.losses()), *(_reached(arm, by) for by in _target_measures(found))]
        style = _STYLES.get(verdict, "bold" if arm is found.base else "")
        table.add_row(*(Text(safe(value)) for value in place(arm, found)), *own, *numbers, Text(verdict, style))
    return table


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
    last = ["last"] if _other_ends(found) else []
    return ["runs", f"at {amount(found.end, found.by)}", *last, "best", "mean over all", *_targets(found)]


def cells(arm: Arm, found: Verdict) -> list[str]:
    """An arm in these columns."""
    every = arm.outcomes
    last = [[each.last for each in every]] if _other_ends(found) else []
    measured = [*last, [each.best for each in every], [each.area for each in every]]
    targets = [_reached(arm, by) for by in _target_measures(found)]
    return [str(len(every)), spread(arm.losses()), *(spread(values) for values in measured), *targets]


def _target_measures(found: Verdict) -> Sequence[str]:
    return () if found.target_loss is None else ("tokens", "time")


def _targets(found: Verdict) -> list[str]:
    return [f"{by} to {found.target_loss:g}" for by in _target_measures(found)]


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


def _over(found: Verdict, along: str) -> Iterable[RenderableType]:
    """The loss over the values of a key: as bars, or a column for each combination of what else differs."""
    made = groups(found, along)
    if len(made) > _MOST_GROUPS:
        return
    yield Text(f"\nloss over {along}", "bold")
    yield _bars(found, along) if len(made) == 1 else _pivot(found, along, made)


def _bars(found: Verdict, along: str) -> Table:
    """Bars between the lowest and the highest mean."""
    means = [arm.mean for arm in found.arms]
    low, high = min(means), max(means)
    table = Table(box=None, pad_edge=False, show_header=False)
    for arm in found.arms:
        size = round(_BAR * (arm.mean - low) / (high - low)) if high > low else 0
        bar = Text("#" * (size + 1), "bright_blue")
        table.add_row(Text(safe(arm.settings[along])), bar, spread(arm.losses()))
    return table


def _pivot(found: Verdict, along: str, made: Mapping[str, Sequence[Arm]]) -> Table:
    """A row for each value of the key; the base is bold."""
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column(labels(found)[along])
    for name in made:
        table.add_column(safe(name.replace(", ", "\n")), justify="right")
    for value in dict.fromkeys(arm.settings[along] for arm in found.arms):
        cells: list[Text] = []
        for arms in made.values():
            arm = next((each for each in arms if each.settings[along] == value), None)
            said = "" if arm is None else spread(arm.losses())
            cells.append(Text(said, "bold" if arm is found.base else ""))
        table.add_row(Text(safe(value)), *cells)
    return table


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
        lines.append(Series(points, name=safe(_cut(short(arm, found))), dashed=number == 1))
    log = all(loss > 0 for line in lines for _, loss in line.points)
    yield Text()
    yield Chart(f"{found.unit}, over steps", lines, last, numbers=".3g", log=log)


def _cut(name: str) -> str:
    return name if len(name) <= 32 else f"...{name[-29:]}"
