"""How a page becomes one file: templates that escape, scripts by their hash, charts as data. No network, no eval.

Knows templates and charts, no run. Text of a run is hostile: it is escaped by the template, and what steers a terminal
or turns its direction is written as an escape before that.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from time import strftime
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from trainwell.errors import StorageError
from trainwell.report.columns import Axis, Floats
from trainwell.report.picture import INK, MARK, PALE, SPIKE, TRAIN, VAL
from trainwell.runs.console import safe
from trainwell.version import version_of

COLOURS = (
    (TRAIN, "#56B4E9"), (VAL, "#E69F00"), (MARK, "#2FC192"), (SPIKE, "#F0A3CC"), (INK, "#D6D4CE"), (PALE, "#50535A"),
)  # fmt: skip
"""Each colour of a chart on light paper, and on dark; Okabe and Ito's, told apart with every kind of colour vision."""
_CSP = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Placed:
    """A chart on a page: the elements that its figures are drawn into."""

    name: str
    title: str
    about: str
    places: Sequence[str]


@dataclass(frozen=True)
class Drawn:
    """All charts of a page as data for its script, and where they go."""

    charts: Sequence[Placed] = ()
    data: Mapping[str, Any] | None = None
    axes: Sequence[tuple[str, str]] = ()
    """The key of each axis and its name on a button."""
    log_too: bool = False


def drawn(charts: Sequence[Any], knots: Floats, axes: Mapping[str, Axis], whole: tuple[float, float]) -> Drawn:
    """The charts (see `charts.Chart`) as data: one document, so that they zoom together; over `axes`, at `knots`."""
    from bokeh.document import Document
    from bokeh.embed.util import standalone_docs_json_and_render_items

    if not charts:
        return Drawn()
    placed, targets = [], {}
    for chart in charts:
        places = {kind: f"figure-{chart.name}-{kind}" for kind in chart.figures}
        for kind, figure in chart.figures.items():
            targets[figure.id] = places[kind]
            if len(places) > 1:
                figure.tags = [{"scale": kind}]
        placed.append(Placed(chart.name, chart.title, chart.about, list(places.values())))
    figures = [figure for chart in charts for figure in chart.figures.values()]
    document = Document()
    with document.models.freeze():  # or it would count its models anew for each
        for figure in figures:
            document.add_root(figure)
    docs, (item,) = standalone_docs_json_and_render_items(figures)
    data = {
        "docs": docs,
        "items": [item.to_json() | {"roots": targets}],
        "knots": knots.tolist(),
        "axes": {key: {"label": axis.label, "values": axis.values.tolist()} for key, axis in axes.items()},
        "whole": whole,
        "colours": COLOURS,
    }
    named = {"step": "steps", "tokens": "tokens", "time": "hours", "flops": "FLOPs"}
    return Drawn(
        placed,
        data,
        [(key, name) for key, name in named.items() if key in axes],
        any(len(chart.places) > 1 for chart in placed),
    )


def page(template: str, context: Mapping[str, Any], drawing: Drawn, reload_s: float = 0) -> str:
    """Render a template of `assets` with what it needs; it loads itself again after `reload_s` seconds, 0 for never."""
    scripts = [*([_bokeh()] if drawing.data else []), _asset("page.js")]
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    facts = {**(drawing.data or {}), "reload": reload_s}
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            charts=drawing.charts,
            axes=drawing.axes,
            log_too=drawing.log_too,
            policy=_CSP.format(hashes=hashes),
            style=Markup(_asset("page.css")),
            scripts=[Markup(script) for script in scripts],
            page_json=Markup(_as_data(facts)),
            written=strftime("%Y-%m-%d %H:%M:%S %z"),
            version=version_of(),
        )
    )


def write(text: str, file: Path) -> Path:
    """Write a page whole, so that whoever loads it meanwhile sees the old one or the new; StorageError if it fails."""
    unfinished = file.with_name(f".{file.name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        unfinished.replace(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}; free space there, or name another") from None
    return file


def _as_data(value: object) -> str:
    """JSON that no HTML parser takes for the end of its script or the start of a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plain(value: object) -> object:
    return value if isinstance(value, Markup) else safe(str(value))


@cache
def _asset(name: str) -> str:
    return files("trainwell.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _bokeh() -> str:
    """Bokeh's own script: plots alone, without widgets and tables."""
    from bokeh.resources import Resources

    (script,) = Resources(mode="inline", components=["bokeh"]).js_raw[:1]
    assert "</script" not in script.lower(), "it would end its own element"
    return str(script)
