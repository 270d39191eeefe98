"""A step that leapt out or was not finite, on a terminal: what was seen, its examples, its gradients, what to do next.

Returns what rich prints, and prints nothing itself.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from statistics import median

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trainwell.report.axes import FAINT, facts
from trainwell.runs.console import safe
from trainwell.runs.incidents import Incident, SampleLoss, TensorNorms

_SHOWN_SAMPLES = 8
_SHOWN_TENSORS = 10
_SHOWN_CHARACTERS = 200
_STANDS_OUT = 2.0
"""An example stands out when its loss is so many times the median of the step."""
_SKIPPED_BATCHES = 200
_NAMES = {"loss": "loss", "grad_norm": "gradient norm"}


def show_incident(incident: Incident, next_commands: Sequence[str] = ()) -> Iterable[RenderableType]:
    """Everything that is on record about an incident, the worst first; `next_commands` come last."""
    table = facts()
    table.add_row("reason", Text(safe(incident.reason), "bold yellow"))
    for key, value in (("loss", incident.loss), ("grad_norm", incident.grad_norm)):
        table.add_row(_NAMES[key], f"{value:.6g}{_against(value, incident.bounds.get(key))}")
    table.add_row("update", "left out: nothing has changed" if incident.skipped else f"made, at rate {incident.lr:.4e}")
    yield table
    for line in explained(incident):
        yield Text(safe(line))
    if incident.samples:
        yield Text()
        yield from _samples(incident)
    if incident.tensors:
        yield Text()
        yield from _tensors(incident)
    for note in incident.notes:
        yield Text(safe(note), FAINT)
    if next_commands:
        yield Text("\nwhat to do next", "bold")
        yield from (Text(f"  {safe(command)}", FAINT) for command in next_commands)


def _against(value: float, bound: float | None) -> str:
    if bound is None or not isfinite(value):
        return ""
    return f", an outlier: above {bound:.6g}" if value > bound else f", no outlier: an outlier is above {bound:.6g}"


def explained(incident: Incident) -> list[str]:
    """What the numbers say about where it comes from, in a sentence each."""
    said = list[str]()
    bad = [sample for sample in incident.samples if not isfinite(sample.loss)]
    losses = [sample.loss for sample in incident.samples if isfinite(sample.loss)]
    if bad and losses:
        said.append(f"{_examples(bad)}: the loss is not finite; of the other {len(losses)} it is")
    elif bad:
        said.append("no example has a finite loss: it is the weights, not one text")
    elif losses and losses[0] > _STANDS_OUT * median(losses):
        said.append(
            f"{_examples(incident.samples[:1])}: the loss is {losses[0] / median(losses):.3g} times the median of the "
            "step's examples"
        )
    elif losses:
        which = "no example" if len(losses) == len(incident.windows or ()) else f"none of the {len(losses)} measured"
        said.append(f"{which} stands out: the loss of the worst is less than twice the median")
    holes = [tensor for tensor in incident.tensors if tensor.not_finite]
    if holes:
        said.append(f"{len(holes)} of {len(incident.tensors)} gradients have elements that are not finite")
    return said


def commands(path: str, step: int, saved: Sequence[int]) -> list[str]:
    """What to type next: look at the step again, and go on from before it and past its data, where that is saved."""
    found = [f"trainwell train {path}@{step} --steps 1    take that step again, and measure all of it"]
    before = [state for state in saved if state <= step]
    if before:
        skip = max(_SKIPPED_BATCHES, 2 * (step + 1 - before[-1]))
        found.append(
            f"trainwell train {path}@{before[-1]} --run NEW --skip {skip}    "
            "a branch from before it that passes over its data"
        )
    return found


def _examples(samples: Sequence[SampleLoss]) -> str:
    shown = ", ".join(f"{sample.index:,}" for sample in samples[:4])
    more = f" and {len(samples) - 4} more" if len(samples) > 4 else ""
    return f"example{'s' if len(samples) > 1 else ''} {shown}{more}"


def _samples(incident: Incident) -> Iterable[RenderableType]:
    shown = incident.samples[:_SHOWN_SAMPLES]
    yield Text(
        f"{_count(len(shown), len(incident.samples), 'example')} by loss, with {safe(incident.weights)}, dropout off",
        "bold",
    )
    table = _table("loss", "targets", "example")
    text = any(sample.text is not None for sample in shown)
    if text:
        table.add_column("text", overflow="fold")
    for sample in shown:
        style = "" if isfinite(sample.loss) else "yellow"
        cells = [f"{sample.loss:.4f}", f"{sample.targets:,}", f"{sample.index:,}"]
        table.add_row(*cells, *([Text(one_line(sample.text or ""))] if text else []), style=style)
    yield table


def _tensors(incident: Incident) -> Iterable[RenderableType]:
    shown = sorted(incident.tensors, key=_largest_first)[:_SHOWN_TENSORS]
    holes, updates = any(each.not_finite for each in shown), any(each.update_norm for each in shown)
    yield Text(f"{_count(len(shown), len(incident.tensors), 'gradient')} by norm, before clipping", "bold")
    columns = ["gradient", *(["not finite"] if holes else []), "weights"]
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    table.add_column("tensor", overflow="fold")
    for column in (*columns, *(["update", "of the weights"] if updates else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for tensor in shown:
        cells = [_figure(tensor.grad_norm), *([f"{tensor.not_finite:,}"] if holes else []), _figure(tensor.weight_norm)]
        cells += [_figure(tensor.update_norm), _share(tensor)] if updates else []
        table.add_row(Text(safe(tensor.name)), *cells, style="yellow" if tensor.not_finite else "")
    yield table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _largest_first(tensor: TensorNorms) -> tuple[bool, float]:
    norm = tensor.grad_norm or 0.0
    return isfinite(norm), -norm if isfinite(norm) else 0.0


def _count(shown: int, of: int, what: str) -> str:
    if shown < of:
        return f"the first {shown} of {of:,} {what}s"
    return f"the {what}" if of == 1 else f"all {of:,} {what}s"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(tensor: TensorNorms) -> str:
    """The update as a share of the weights."""
    if tensor.update_norm is None or not tensor.weight_norm:
        return ""
    return f"{tensor.update_norm / tensor.weight_norm:.2%}"


def one_line(text: str) -> str:
    """The beginning of a text, its line ends written out, so that it is a line or two; nothing in it steers."""
    line = safe(text[: _SHOWN_CHARACTERS + 1].replace("\\", "\\\\")).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(text) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]} ..."
