"""compare.html: trials compared on one page: the verdict in sentences, the curves of every run, the loss over a key."""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from bokeh.models import NumeralTickFormatter, Range1d

from trainwell.report import charts
from trainwell.report.arms import Arm, Verdict, amount, as_number, sentence
from trainwell.report.charts import Chart, curve_source, framed, hover, place_legend, point_source
from trainwell.report.columns import Axis, range_of, smoothed, span_of
from trainwell.report.contrast_text import also, cells, columns
from trainwell.report.html import drawn, page, write
from trainwell.report.picture import ARMS
from trainwell.report.trial import UNITS

_MOST_ARMS = len(ARMS)


def write_verdict(found: Verdict, file: Path, along: str | None) -> Path:
    """Write a comparison as one page; StorageError when that fails."""
    return write(verdict_page(found, along), file)


def verdict_page(found: Verdict, along: str | None) -> str:
    """The page of a comparison; `along` is the key that its arms are laid out over."""
    end = max(float(each.trial.curve(found.by, found.key)[0][-1]) for arm in found.arms for each in arm.outcomes)
    axis = Axis(UNITS[found.by], np.array([0.0, end]))
    # the charts stand over the chosen measure already: one axis, on which a place is itself
    drawing = drawn(_charts(found, along, end), axis.values, {"step": axis}, (-0.004 * end, 1.01 * end))
    context = {
        "title": _title(found),
        "by": found.by,
        "sentences": [(each.verdict, sentence(each, found), also(each, found)) for each in found.contrasts],
        "warnings": found.warnings,
        "differing": [(key, [arm.settings.get(key, "several") for arm in found.arms]) for key in found.differing],
        "names": [arm.name for arm in found.arms],
        "columns": columns(found),
        "rows": [(arm.name, arm is found.base, cells(arm, found)) for arm in found.arms],
        "runs": [
            (arm.name, each.trial.name, f"{each.final:.4f}", f"{each.best:.4f}")
            for arm in found.arms
            for each in arm.outcomes
        ],
        "unit": found.unit,
    }
    return page("compare.html", context, drawing)


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


def _losses(found: Verdict, x_range: Range1d) -> Chart:
    """Every evaluation of every run: a thin line each, the mean of an arm as a thick one."""
    curves = [[each.trial.curve(found.by, found.key) for each in arm.outcomes] for arm in found.arms[:_MOST_ARMS]]
    every = np.concatenate([losses for arm in curves for _, losses in arm])
    low, high = range_of(every)
    made = _over(found, x_range, found.unit, 340, (low, high))
    for arm, own, (color, dash) in zip(found.arms, curves, ARMS, strict=False):
        for at, losses in own:
            made.line("x", "y", source=point_source(at, losses), color=color, line_width=1, alpha=0.35)
        common = np.unique(np.concatenate([at for at, _ in own]))
        common = common[common <= min(at[-1] for at, _ in own)]
        mean = np.mean([np.interp(common, at, losses) for at, losses in own], axis=0)
        look = {"color": color, "line_width": 2.4, "line_dash": dash, "legend_label": arm.name[:60]}
        line = made.line("x", "y", source=point_source(common, mean), **look)
        hover(made, [line], "loss", "0.0000", UNITS[found.by])
    place_legend(made)
    about = f"{found.unit}; thin lines are single runs, thick ones the mean of an arm"
    return Chart("loss", "Validation loss", about, {"linear": made})


def _training(found: Verdict, x_range: Range1d) -> Chart | None:
    """The smoothed training loss of every run."""
    curves = [(arm, each.trial.training(found.by)) for arm in found.arms[:_MOST_ARMS] for each in arm.outcomes]
    curves = [(arm, (at, losses)) for arm, (at, losses) in curves if len(at) > 1]
    if not curves:
        return None
    looks = dict(zip((arm.name for arm in found.arms), ARMS, strict=False))
    smooth = [(arm, at, smoothed(losses, span_of(losses))) for arm, (at, losses) in curves]
    low, high = range_of(np.concatenate([losses for _, _, losses in smooth]))
    made = _over(found, x_range, "nats per token", 300, (low, high))
    for arm, at, losses in smooth:
        color, dash = looks[arm.name]
        look = {"color": color, "line_width": 1.6, "line_dash": dash, "alpha": 0.8, "legend_label": arm.name[:60]}
        made.line("x", "y", source=curve_source(at, losses, 2_000), **look)
    place_legend(made)
    about = "a mean over a twentieth of the steps, each run"
    return Chart("training", "Training loss, smoothed", about, {"linear": made})


def _over_key(found: Verdict, along: str) -> Chart:
    """The final loss over the values of a key: every run a dot, the mean of an arm on the line."""
    numbers = [as_number(arm.settings[along])[0] for arm in found.arms]
    numeric = all(np.isfinite(numbers)) and len({*numbers}) > 1
    positive = numeric and min(numbers) > 0 and max(numbers) / min(numbers) >= 5
    places = numbers if numeric else [float(at) for at in range(len(numbers))]
    low, high = range_of(np.array([loss for arm in found.arms for loss in arm.losses()]))
    span = (min(places) / 1.3, max(places) * 1.3) if positive else charts.with_air(min(places), max(places))
    made = framed(Range1d(*span), found.unit, 320, Range1d(low, high), x_kind="log" if positive else "linear")
    made.xaxis.axis_label = along
    made.xaxis.ticker = sorted({*places})
    made.xaxis.major_label_overrides = {at: arm.settings[along] for at, arm in zip(places, found.arms, strict=True)}
    groups: dict[tuple[str, ...], list[tuple[float, Arm]]] = {}
    for at, arm in zip(places, found.arms, strict=True):
        rest = tuple(f"{key}={value}" for key, value in arm.settings.items() if key != along)
        groups.setdefault(rest, []).append((at, arm))
    for (rest, arms), (color, dash) in zip(groups.items(), ARMS, strict=False):
        label = {"legend_label": ", ".join(rest)[:60]} if any(rest) else {}
        means = [fmean(arm.losses()) for _, arm in arms]
        made.line([at for at, _ in arms], means, color=color, line_dash=dash, line_width=2.2, **label)
        dots = [(at, loss) for at, arm in arms for loss in arm.losses()]
        made.scatter([at for at, _ in dots], [loss for _, loss in dots], color=color, size=7, alpha=0.6)
    place_legend(made)
    about = f"at {amount(found.end, found.by)}; every run a dot, the line through the means"
    return Chart("key", f"Loss over {along}", about, {"linear": made})
