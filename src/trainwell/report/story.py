"""PURE. What a report says of a run in words and numbers: its cost, its events, its settings, its data.

Knows what is on record, and nothing of how a page looks. Everything here is plain text that nobody has escaped yet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from trainwell.config.load import load, recipe_names
from trainwell.config.tree import RunConfig
from trainwell.errors import StorageError
from trainwell.planning.bands import Band, band_line, bands_for
from trainwell.planning.model_size import count_parameters, flops_per_token, num_classes
from trainwell.planning.target import flat
from trainwell.report.load import Joined, RunData
from trainwell.report.verdict import Judgement
from trainwell.runs.console import scientific, short_count, short_time
from trainwell.runs.exits import read_exit
from trainwell.runs.incidents import incident_steps, read_incident
from trainwell.runs.metrics import Row
from trainwell.runs.starts import Beginning, read_starts

_MOST_EVENTS = 200
_MOST_SAMPLES = 12


@dataclass(frozen=True)
class Fact:
    """A number with its name, and what belongs to it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened at a state; `sign` is its kind: start, resume, spike, skipped, best, end ..."""

    step: int
    sign: str
    what: str
    when: str = ""


@dataclass(frozen=True)
class Setting:
    """A key of the configuration, its value, and that of what it is compared with where that is another."""

    key: str
    value: str
    usual: str | None


@dataclass(frozen=True)
class Moment:
    """A sample, or the lack of one, of a state."""

    step: int
    about: str
    text: str
    loss: float | None
    """The validation loss of the last evaluation up to that state."""


def cost_per_token(run: RunData) -> int | None:
    """Floating point operations to train on one token; None where the vocabulary or the model is not known."""
    plan = run.plan
    if plan is None or plan.vocab_size is None or "model" in run.config.custom:
        return None
    return flops_per_token(run.config.model, plan.vocab_size, plan.seq_len, num_labels=num_classes(run.config))


def outcome(run: RunData, rows: Joined, judged: Judgement) -> list[Fact]:
    """How well it did and at what cost, the most important first."""
    found = list(_quality(run, rows, judged))
    last = rows.train[-1] if rows.train else {}
    tokens = last.get("tokens")
    if tokens:
        epoch = last.get("epoch")
        found.append(
            Fact("tokens seen", short_count(tokens), "" if epoch is None else f"{epoch:.2f} passes over the data")
        )
    found += _speed(rows.train)
    cost = cost_per_token(run)
    if cost and tokens:
        found.append(Fact("computation", f"{scientific(cost * tokens)} FLOPs", f"{scientific(cost)} a token"))
    peak = max((row["mem/peak_gb"] for row in rows.train if row.get("mem/peak_gb")), default=None)
    if peak is not None:
        found.append(Fact("memory", f"{peak:.2f} GB", "most that was allocated"))
    return found


def _quality(run: RunData, rows: Joined, judged: Judgement) -> Iterator[Fact]:
    checked = [row for row in rows.val if isfinite(row.get("val/loss", float("nan")))]
    if checked and judged.best_loss is not None:
        place = f"at step {judged.best_step:,}"
        at_end = judged.best_step == checked[-1]["step"]
        place += (
            ", the last evaluation" if at_end else f"; {checked[-1]['val/loss']:.3f} at step {checked[-1]['step']:,}"
        )
        yield Fact("best validation loss", f"{judged.best_loss:.3f}", place)
        best = next(row for row in checked if row["step"] == judged.best_step)
        for key, name, form in (
            ("val/accuracy", "accuracy", ".1%"), ("val/hellaswag", "HellaSwag", ".1%"),
            ("val/bpb", "bits per byte", ".3f"), ("val/ppl", "perplexity", ".2f"),
        ):  # fmt: skip
            if best.get(key) is not None and (key != "val/ppl" or "val/accuracy" not in best):
                yield Fact(name, format(best[key], form), f"at step {judged.best_step:,}")
                break
    elif rows.train and isfinite(rows.train[-1].get("train/loss", float("nan"))):
        yield Fact("training loss", f"{rows.train[-1]['train/loss']:.3f}", "of the last step; nothing was evaluated")


def _speed(train: Sequence[Row]) -> Iterator[Fact]:
    times = [row["train/step_ms"] for row in train if row.get("train/step_ms")]
    speeds = [row["train/tokens_per_sec"] for row in train if row.get("train/tokens_per_sec")]
    if times:
        total = train[-1].get("time")
        note = "" if not total else f"of {short_time(total)} with evaluations and checkpoints"
        yield Fact("time in steps", short_time(sum(times) / 1000), note)
    if times and speeds:
        yield Fact("speed", f"{short_count(median(speeds))} tokens/s", f"{median(times):.1f} ms a step")
    used = [row["train/mfu"] for row in train if row.get("train/mfu")]
    if used:
        yield Fact("utilisation", f"{median(used):.1%}", "of the device's peak (MFU)")


def band(run: RunData, val: Sequence[Row]) -> str | None:
    """How the last evaluation compares with what the recipe usually gives; None where nobody knows."""
    for row in reversed(val):
        if row.get("tokens") is not None and isfinite(row.get("val/loss", float("nan"))):
            return band_line(bands_of(run), row["tokens"], row["val/loss"])
    return None


def bands_of(run: RunData) -> tuple[Band, ...]:
    """The losses that its recipe usually gives on its text."""
    counts = run.env.get("counts")
    return bands_for(run.config, str(counts.get("corpus_sha256", ""))) if isinstance(counts, dict) else ()


def time_left(run: RunData, rows: Joined) -> float | None:
    """Seconds to the end at the pace of the last steps, evaluations included; None for a run that is over."""
    if run.num_steps is None or run.steps_done >= run.num_steps:
        return None
    recent = [row for row in rows.train[-200:] if row.get("time") is not None]
    if len(recent) < 2 or recent[-1]["time"] <= recent[0]["time"]:
        return None
    pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    return float(pace * (run.num_steps - run.steps_done))


def resumes(run: RunData) -> tuple[Beginning, ...]:
    """Every start but the first."""
    return read_starts(run.dir.starts_jsonl)[1:]


def events(run: RunData, rows: Joined, judged: Judgement) -> list[Event]:
    """What happened, in order of steps; of very many the first and the last."""
    found = [*_beginnings(run, rows), *_of_steps(rows.train, {*incident_steps(run.dir)}), *_incidents(run)]
    if judged.best_step is not None:
        found.append(Event(judged.best_step, "best", f"best validation loss, {judged.best_loss:.4f}"))
    found += [Event(step, "saved", "a checkpoint that can be gone back to") for step in run.checkpoints]
    found += _left_behind(run)
    found = sorted(found, key=lambda event: event.step)
    found.append(_end(run))
    if len(found) > _MOST_EVENTS:
        half = _MOST_EVENTS // 2
        gap = Event(found[half].step, "gap", f"{len(found) - 2 * half:,} more, left out here; metrics.jsonl has them")
        found = [*found[:half], gap, *found[-half:]]
    return found


def _beginnings(run: RunData, rows: Joined) -> Iterator[Event]:
    for (source, _), (own, first) in zip(rows.runs, rows.runs[1:], strict=False):
        yield Event(first, "branch", f"{own} branches from {source}")
    for number, start in enumerate(read_starts(run.dir.starts_jsonl)):
        processes = "" if start.processes == 1 else f", {start.processes} processes"
        what = "training begins" if number == 0 else "training goes on"
        when = datetime.fromtimestamp(start.at).strftime("%Y-%m-%d %H:%M:%S")
        yield Event(start.step, "start" if number == 0 else "resume", f"{what} on {start.host}{processes}", when)


def _of_steps(train: Sequence[Row], explained: set[int]) -> Iterator[Event]:
    """Spikes and skipped steps that no incident explains."""
    for row in train:
        step = row["step"]
        if step not in explained and row.get("train/skipped"):
            yield Event(step, "skipped", "the update was left out")
        elif step not in explained and row.get("train/spike"):
            yield Event(step, "spike", f"the loss or the gradient norm leapt out: loss {row.get('train/loss')}")


def _incidents(run: RunData) -> Iterator[Event]:
    """What is known of steps that leapt out; a file that is damaged is said, and costs no page."""
    for step in incident_steps(run.dir)[:_MOST_EVENTS]:
        try:
            incident = read_incident(run.dir, step)
        except StorageError as error:
            yield Event(step, "damaged", str(error))
            continue
        if incident is not None:
            what = f"{incident.reason}; explained by: trainwell show {run.dir.shown}@{step}"
            yield Event(step, "skipped" if incident.skipped else "spike", what)


def _left_behind(run: RunData) -> Iterator[Event]:
    """Steps that a resume took again: what they gave the first time is kept."""
    files = sorted(run.dir.attempts.glob("*.jsonl")) if run.dir.attempts.is_dir() else []
    starts = resumes(run)
    for file in files:
        count = _lines_of(file)
        number = int(file.stem) if file.stem.isdigit() else 0
        step = starts[min(number, len(starts)) - 1].step if starts and number else 0
        yield Event(step, "again", f"{count:,} lines of steps past this one are kept in attempts/{file.name}")


def _lines_of(file: Path) -> int:
    try:
        return file.read_bytes().count(b"\n")
    except OSError:
        return 0


def _end(run: RunData) -> Event:
    ended = read_exit(run.dir.path)
    if ended is not None and run.owner is None and ended.code != 0:
        return Event(run.steps_done, "end", f"ended with exit code {ended.code}: {ended.message}")
    return Event(run.steps_done, "end" if run.owner is None else "now", run.status)


def samples(run: RunData, val: Sequence[Row]) -> list[Moment]:
    """Samples to put side by side, the first and the last among them; evenly spread where there are very many."""
    every = run.samples
    count = min(len(every), _MOST_SAMPLES)
    places = [round(number * (len(every) - 1) / max(1, count - 1)) for number in range(count)]
    return [
        Moment(sample.step, sample.about, sample.text, _loss_at(val, sample.step))
        for sample in (every[place] for place in places)
    ]


def _loss_at(val: Sequence[Row], state: int) -> float | None:
    known = [row["val/loss"] for row in val if row["step"] <= state and row.get("val/loss") is not None]
    return known[-1] if known else None


def settings(config: RunConfig) -> tuple[str, list[Setting]]:
    """What the configuration is compared with, and every key: the recipe of its name, else the defaults."""
    known = config.name in recipe_names()
    usual, own = flat(load(config.name) if known else RunConfig(name=config.name)), flat(config)
    what = f"the recipe {config.name}" if known else "the defaults"
    return what, [
        Setting(key, said(value), said(usual.get(key)) if usual.get(key) != value else None)
        for key, value in own.items()
        if key != "name"
    ]


def said(value: Any) -> str:
    """A value as a config file has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(said(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {said(item)}' for key, item in value.items())}}}"
    return str(value)


def parameters(run: RunData) -> list[Fact]:
    """How many parameters there are and where; nothing of a model that was given, or whose vocabulary is not known."""
    plan = run.plan
    if plan is None or plan.vocab_size is None or "model" in run.config.custom:
        return []
    size = count_parameters(run.config.model, plan.vocab_size, plan.seq_len, num_labels=num_classes(run.config))
    layers = run.config.model.num_layers
    return [
        Fact("all", f"{size.total:,}", "a tied head counts once"),
        Fact("token embedding and head", f"{size.embedding - size.position:,}"),
        Fact("positions", f"{size.position:,}"),
        Fact("matrices of the blocks", f"{layers * size.block_matrices:,}", f"{layers} x {size.block_matrices:,}"),
        Fact("norms and biases", f"{layers * size.block_vectors + size.final_norm:,}"),
        Fact("with weight decay", f"{size.decayed:,}", f"{size.decayed_tensors:,} tensors of two or more dimensions"),
        Fact("without", f"{size.not_decayed:,}", f"{size.not_decayed_tensors:,} tensors"),
    ]


def facts_of(section: object, before: str = "") -> list[Fact]:
    """Everything in a part of env.json, a line for each value, nested names joined by dots."""
    if not isinstance(section, dict):
        return []
    found = list[Fact]()
    for key, value in section.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, dict):
            found += facts_of(value, f"{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            found.append(Fact(name, f"{value:,}"))
        elif value is not None:
            found.append(Fact(name, said(value)))
    return found
