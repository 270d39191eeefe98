"""One case in one precision: every contestant twice, there and back, and what comes of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.cases import Case
from benchmarks.speed.processes import start

OURS = "ours"
OWN = ("ours", "ours-compiled", "ours-reference", "raw-ours-model")
"""Made of our parts: they are not peers."""
BOUNDS = ("raw", "raw-compiled")
"""Loops that nobody documents; they bound what a framework can reach."""
SAME = 1e-4
"""Nats by which losses of fp32 may differ."""


@dataclass(frozen=True)
class Entry:
    """A contestant with one kind of settings: documented or ours."""

    name: str
    settings: str

    @property
    def title(self) -> str:
        """For a table."""
        return self.name if self.name in OWN else f"{self.name}, {self.settings}"


def entries(names: Sequence[str], settings: Sequence[str]) -> list[Entry]:
    """What is ours once, everybody else once for each kind of settings."""
    found = []
    for name in names:
        kinds = ["documented"] if name in OWN else settings
        found += [Entry(name, kind) for kind in kinds]
    return found


def run(
    case: Case,
    precision: str,
    asked: Sequence[Entry],
    folder: Path,
    steps: int,
    *,
    nanogpt: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """One row for each entry, in order; `folder` is one that `cases.prepare` wrote."""
    halves: dict[Entry, list[dict[str, Any]]] = {entry: [] for entry in asked}
    matmul = "highest"
    for entry in figures.there_and_back(asked):
        if any("left_out" in half for half in halves[entry]):
            continue
        arguments = [entry.name, "--case", case.name, "--precision", precision, "--settings", entry.settings]
        arguments += ["--steps", str(steps), "--folder", str(folder), "--matmul", matmul]
        arguments += ["--nanogpt", str(nanogpt.resolve())] if nanogpt else []
        ours = entry.settings == "ours" or entry.name in OWN
        begin = time.time()
        half = start("benchmarks.speed.worker", [*arguments, "--started", repr(begin)], ours=ours).answer
        halves[entry].append(half)
        matmul = half.get("notes", {}).get("matmul", matmul)
        say(f"  {case.name} {precision} {entry.title}: {_said(half)}")
    first = next((parts for entry, parts in halves.items() if entry.name == OURS), [])
    return [_row(case, entry, parts, first) for entry, parts in halves.items()]


def _said(half: dict[str, Any]) -> str:
    return half["left_out"] if "left_out" in half else f"{figures.shown_ms(figures.spread(half['seconds']))} ms a step"


def _row(case: Case, entry: Entry, halves: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """What both halves give together; losses are compared with those of ours."""
    row: dict[str, Any] = {"title": entry.title, "name": entry.name, "settings": entry.settings}
    missing = [half["left_out"] for half in halves if "left_out" in half]
    if missing or not halves:
        return row | {"left_out": missing[0] if missing else "not run"}
    seconds = [value for half in halves for value in half["seconds"]]
    waits = [value for half in halves for value in half["data_wait_s"]]
    notes = halves[0]["notes"]
    found = figures.spread(seconds)
    row |= {
        "step_s": vars(found),
        "halves_s": [figures.spread(half["seconds"]).median for half in halves],
        "tokens_per_s": case.tokens / found.median,
        "first_step_s": figures.spread([half["first_step_s"] for half in halves]).median,
        "peak_bytes": max(half["peak_bytes"] for half in halves),
        "data_wait_share": sum(waits) / sum(seconds) if waits else None,
        "threads": halves[0]["threads"],
        "notes": notes,
        "losses": halves[0]["losses"],
        "grad_norms": halves[0]["grad_norms"],
        "seconds": [half["seconds"] for half in halves],
    }
    if ours and "losses" in ours[0] and "losses" not in notes:
        row["loss_difference"] = figures.largest_difference(halves[0]["losses"][:20], ours[0]["losses"][:20])
    return row


def add_ratios(rows: list[dict[str, Any]], case: Case, ceiling: dict[str, Any]) -> None:
    """Put beside each row its time over ours, and its share of the machine."""
    own = next((row for row in rows if row["name"] == OURS and "step_s" in row), None)
    for row in rows:
        if "step_s" not in row:
            continue
        row["times_ours"] = row["step_s"]["median"] / own["step_s"]["median"] if own else None
        if "ceiling_gflops" in ceiling:
            row["mfu"] = figures.utilisation(row["tokens_per_s"], case.flops_per_token, ceiling["ceiling_gflops"])
            row["share_of_light"] = ceiling["light_s"] / row["step_s"]["median"]


HEAD = ("", "ms a step", "tokens/s", "times ours", "MFU", "of light", "peak GB", "first step s", "data %", "loss diff")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as a table, and under it why some are not in it."""
    timed = [row for row in rows if "step_s" in row]
    lines = figures.table(HEAD, [_cells(row) for row in timed]) if timed else []
    return lines + [f"- {row['title']}: {row['left_out']}" for row in rows if "left_out" in row]


def _cells(row: dict[str, Any]) -> list[str]:
    wait, difference = row["data_wait_share"], row.get("loss_difference")
    return [
        row["title"],
        figures.shown_ms(figures.Spread(**row["step_s"])),
        f"{row['tokens_per_s']:,.0f}",
        f"{row['times_ours']:.2f}" if row.get("times_ours") else "",
        f"{row['mfu']:.0%}" if "mfu" in row else "",
        f"{row['share_of_light']:.0%}" if "share_of_light" in row else "",
        f"{row['peak_bytes'] / 1e9:.2f}",
        f"{row['first_step_s']:.1f}",
        "" if wait is None else f"{wait:.2%}",
        "not compared" if difference is None else f"{difference:.1e}",
    ]
