"""compare.html: trials compared on one page: the verdict in sentences, the curves of every run, the loss over a key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.models import NumeralTickFormatter, Range1d

from trainwell.report import charts
from trainwell.report.arms import Arm, Verdict, amount, as_number, sentence
from trainwell.report.charts import Chart, curve_source, framed, hover, place_legend, point_source
from trainwell.report.columns import Axis, range_of, smoothed, span_of
from trainwell.report.contrast_text import also, cells, columns
from trainwell.report.html import drawn, page, write
from trainwell.report.lineup import AGAINST, against, groups, heads, is_many, place, short, summary
from trainwell.report.picture import ARMS, PALE
from trainwell.report.trial import UNITS


def write_verdict(found: Verdict, file: Path, along: str | None) -> Path:
    """Write a comparison as one page; StorageError when that fails."""
    return write(verdict_page(found, along), file)


def verdict_page(found: Verdict, along: str | None) -> str:
    """The page of a comparison; `along` is the key that its arms are laid out over."""
    end = max(float(each.trial.curve(found.by, found.key)[0][-1]) for arm in found.arms for each in arm.outcomes)
    axis = Axis(UNITS[found.by], np.array([0.0, end]))
    # the charts stand over the chosen measure already: one axis, on which a place is itself
    drawing = drawn(_charts(found, along, end), axis.values, {"step": axis}, (-0.004 * end, 1.01 * end))
    many = is_many(found)
    context = {
        "title": _title(found),
        "by": found.by,
        "many": many,
        "summary": summary(found) if many else None,
        "sentences": []
        if many
        else [(each.verdict, sentence(each, found), also(each, found)) for each in found.contrasts],
        "warnings": found.warnings,
        "differing": [(key, [arm.settings.get(key, "several") for arm in found.arms]) for key in found.differing],
        "names": [arm.name for arm in found.arms],
        "heads": heads(found),
        "columns": [*columns(found), *(AGAINST if many else ())],
        "rows": [_row(arm, found, many) for arm in found.arms],
        "runs": [
            (place(arm, found), each.trial.name, each.trial.seed or "", f"{each.final:.4f}", f"{each.best:.4f}")
            for arm in found.arms
            for each in arm.outcomes
        ],
        "unit": found.unit,
    }
    return page("compare.html", context, drawing)


def _row(arm: Arm, found: Verdict, many: bool) -> tuple[list[str], bool, list[str]]:
    """Which arm it is, whether others are held against it, and what it came to."""
    return place(arm, found), arm is found.base, [*cells(arm, found), *(against(arm, found) if many else ())]


def _title(found: Verdict) -> str:
    names = [arm.name for arm in found.arms]
    return " against ".join(names) if len(names) == 2 else f"{len(names)} arms compared"


def _charts(found: Verdict, along: str | None, end: float) -> list[Chart]:
    x_range = Range1d(-0.004 * end, 1.01 * end, name="steps")
    made = [_losses(found, x_range), _training(found, x_range)]
    if along is not None:
        made.insert(0, _over_key(found, along))
    return [chart for chart in made if chart is not None]


def _over(found: Verdict, x_range: Range1d, label: str, height: int, span: tuple[float, float]) -> Any:
    """An empty figure over what the comparison is aligned by."""
    made = framed(x_range, label, height, Range1d(*span))
    made.xaxis.axis_label = UNITS[found.by]
    made.xaxis.formatter = NumeralTickFormatter(format="0.[00]a")
    return made


@dataclass(frozen=True)
class _Look:
    """How an arm is drawn."""

    color: str
    dash: str
    label: str
    told: bool
    """Whether it has a name and says its values; of many arms the best and the worst do, and the rest are pale."""


def _looks(found: Verdict) -> list[_Look]:
    if len(found.arms) <= len(ARMS):
        return [_Look(*look, short(arm, found)[:60], told=True) for arm, look in zip(found.arms, ARMS, strict=False)]
    best, worst = (choose(found.arms, key=lambda arm: arm.mean) for choose in (min, max))
    told = {id(best): (*ARMS[0], "best"), id(worst): (*ARMS[1], "worst")}
    return [
        _Look(*look[:2], f"{look[2]}: {short(arm, found)[:60]}", told=True)
        if (look := told.get(id(arm))) is not None
        else _Look(PALE, "solid", "all others", told=False)
        for arm in found.arms
    ]


def _losses(found: Verdict, x_range: Range1d) -> Chart:
    """Every evaluation of every run: a thin line each, the mean of an arm as a thick one."""
    curves = [[each.trial.curve(found.by, found.key) for each in arm.outcomes] for arm in found.arms]
    every = np.concatenate([losses for arm in curves for _, losses in arm])
    low, high = range_of(every)
    made = _over(found, x_range, found.unit, 340, (low, high))
    for own, look in sorted(zip(curves, _looks(found), strict=True), key=lambda each: each[1].told):
        for at, losses in own if look.told else ():
            made.line("x", "y", source=point_source(at, losses), color=look.color, line_width=1, alpha=0.35)
        common = np.unique(np.concatenate([at for at, _ in own]))
        common = common[common <= min(at[-1] for at, _ in own)]
        mean = np.mean([np.interp(common, at, losses) for at, losses in own], axis=0)
        line = made.line("x", "y", source=point_source(common, mean), line_width=2.4, **_drawn(look))
        if look.told:
            hover(made, [line], "loss", "0.0000", UNITS[found.by])
    place_legend(made)
    about = f"{found.unit}; thin lines are single runs, thick ones the mean of an arm"
    return Chart("loss", "Validation loss", about, {"linear": made})


def _drawn(look: _Look) -> dict[str, Any]:
    return {"color": look.color, "line_dash": look.dash, "legend_label": look.label}


def _training(found: Verdict, x_range: Range1d) -> Chart | None:
    """The smoothed training loss of every run."""
    curves = [
        (look, curve)
        for arm, look in zip(found.arms, _looks(found), strict=True)
        for each in arm.outcomes
        if len((curve := each.trial.training(found.by))[0]) > 1
    ]
    if not curves:
        return None
    smooth = [(look, at, smoothed(losses, span_of(losses))) for look, (at, losses) in curves]
    low, high = range_of(np.concatenate([losses for _, _, losses in smooth]))
    made = _over(found, x_range, "nats per token", 300, (low, high))
    for look, at, losses in sorted(smooth, key=lambda each: each[0].told):
        made.line("x", "y", source=curve_source(at, losses, 2_000), line_width=1.6, alpha=0.8, **_drawn(look))
    place_legend(made)
    about = "a mean over a twentieth of the steps, each run"
    return Chart("training", "Training loss, smoothed", about, {"linear": made})


def _over_key(found: Verdict, along: str) -> Chart:
    """The final loss over the values of a key: every run a dot, the mean of an arm on the line."""
    numbers = [as_number(arm.settings[along])[0] for arm in found.arms]
    numeric = all(np.isfinite(numbers)) and len({*numbers}) > 1
    positive = numeric and min(numbers) > 0 and max(numbers) / min(numbers) >= 5
    places = numbers if numeric else [float(at) for at in range(len(numbers))]
    losses = [loss for arm in found.arms for loss in arm.losses()]
    low, high = charts.with_air(min(losses), max(losses))
    span = (min(places) / 1.3, max(places) * 1.3) if positive else charts.with_air(min(places), max(places))
    made = framed(Range1d(*span), found.unit, 320, Range1d(low, high), x_kind="log" if positive else "linear")
    made.xaxis.axis_label = along
    made.xaxis.ticker = sorted({*places})
    made.xaxis.major_label_overrides = {at: arm.settings[along] for at, arm in zip(places, found.arms, strict=True)}
    at = {id(arm): place for place, arm in zip(places, found.arms, strict=True)}
    for (name, arms), (color, dash) in zip(groups(found, along).items(), ARMS, strict=False):
        label = {"legend_label": name[:60]} if name else {}
        line = [at[id(arm)] for arm in arms]
        made.line(line, [arm.mean for arm in arms], color=color, line_dash=dash, line_width=2.2, **label)
        dots = [(at[id(arm)], loss) for arm in arms for loss in arm.losses()]
        made.scatter([x for x, _ in dots], [loss for _, loss in dots], color=color, size=7, alpha=0.6)
    place_legend(made, "top_left")
    about = f"at {amount(found.end, found.by)}; every run a dot, the line through the means"
    return Chart("key", f"Loss over {along}", about, {"linear": made})
