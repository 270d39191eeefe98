"""RUN/incidents/step-N.json: what is known of a step that leapt out or was not finite. Written once, read back.

Knows plain numbers and text, no tensor; what they are is measured by `trainwell.incidents`. Strict JSON, as the metrics
are: a number that is not finite is null, and a second key says which it was; reading gives the number back.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainwell.errors import StorageError
from trainwell.runs.rundir import RunDir
from trainwell.runs.strict_json import from_plain, to_plain

_NAME = re.compile(r"step-(\d+)\.json")


@dataclass(frozen=True)
class SampleLoss:
    """One example of the step's batch."""

    place: int
    """Its place among the examples of the step, from 0."""
    index: int
    """Its number in the data: of the window, or of the example given."""
    loss: float
    """Mean over its targets, in nats."""
    targets: int
    """How many of its tokens are asked for."""
    text: str | None
    """Its beginning, decoded; None where there is no tokenizer."""


@dataclass(frozen=True)
class TensorNorms:
    """One trained tensor; norms are L2, in float64, and NaN or infinite where an element is."""

    name: str
    grad_norm: float | None
    """Before clipping; None where it has no gradient."""
    not_finite: int
    """Elements of the gradient that are NaN or infinite."""
    weight_norm: float
    """Of the weights as they stand after the step."""
    update_norm: float | None
    """Of what the step added to the weights; 0 where it was left out, None where it cannot be told."""


@dataclass(frozen=True)
class Incident:
    """A step that leapt out, or whose loss or gradient norm was not finite."""

    step: int
    reason: str
    """One line: what was seen."""
    skipped: bool
    """Whether its update was left out."""
    loss: float
    grad_norm: float
    """Global, before clipping."""
    lr: float
    bounds: dict[str, float] = field(default_factory=dict)
    """Above which the guard takes a value for an outlier, by the name of the value: `loss`, `grad_norm`."""
    windows: tuple[int, ...] | None = None
    """The numbers of all examples of the batch, in order; None for data without numbers."""
    samples: tuple[SampleLoss, ...] = ()
    """Worst first; those that are not finite before all others."""
    weights: str = ""
    """Of which weights the losses of `samples` are."""
    tensors: tuple[TensorNorms, ...] = ()
    """In the order of the model."""
    notes: tuple[str, ...] = ()
    """What could not be measured, or was left out, and why."""


def incident_file(run: RunDir, step: int) -> Path:
    """Where the incident of a step lies."""
    return run.incidents / f"step-{step}.json"


def write_incident(run: RunDir, incident: Incident) -> Path:
    """Write an incident, whole or not at all, over one of the same step; return its place.

    Raises StorageError when that fails: evidence is lost then, and nothing else.
    """
    path = incident_file(run, incident.step)
    unfinished = path.with_suffix(".tmp")
    try:
        run.incidents.mkdir(exist_ok=True)
        text = json.dumps(to_plain(asdict(incident)), indent=1, allow_nan=False)
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; the run itself is not affected") from None
    return path


def rewind_incidents(run: RunDir, step: int) -> None:
    """Move the incidents of `step` and later ones to `attempts`: the run takes those steps anew."""
    try:
        for late in [each for each in incident_steps(run) if each >= step]:
            run.attempts.mkdir(exist_ok=True)
            number = 1 + len(list(run.attempts.glob(f"incident-{late}-*.json")))
            incident_file(run, late).replace(run.attempts / f"incident-{late}-{number}.json")
    except OSError as error:
        raise StorageError(f"cannot move old incidents to {run.attempts}: {error.strerror}") from None


def read_incident(run: RunDir, step: int) -> Incident | None:
    """The incident of a step; None where there was none, StorageError for a file that cannot be read."""
    path = incident_file(run, step)
    try:
        facts = from_plain(json.loads(path.read_text(encoding="utf-8")))
        return Incident(
            **facts
            | {
                "windows": None if facts["windows"] is None else tuple(facts["windows"]),
                "samples": tuple(SampleLoss(**sample) for sample in facts["samples"]),
                "tensors": tuple(TensorNorms(**tensor) for tensor in facts["tensors"]),
                "notes": tuple(facts["notes"]),
            }
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} cannot be read ({error}); move it away to look at the rest of the run") from None


def incident_steps(run: RunDir) -> list[int]:
    """The steps that have an incident on file, ascending."""
    if not run.incidents.is_dir():
        return []
    named = (_NAME.fullmatch(entry.name) for entry in run.incidents.iterdir())
    return sorted(int(match.group(1)) for match in named if match)
