"""Whole runs, from the command to its end: the book's appendix D, and nanoGPT's recipe for a laptop.

Ours are the commands `trainwell train book` and `trainwell train shakespeare-char`, with a cache that is empty.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.processes import Ended, start

from trainwell.runs.metrics import MetricsFile
from trainwell.runs.samples import SamplesFile

_TEXTS = {"book": "the-verdict.txt", "nanogpt": "tinyshakespeare.txt"}
_RECIPES = {"book": "book", "nanogpt": "shakespeare-char"}
_QUICK = {"book": ["--duration", "1 epochs"], "nanogpt": ["--duration", "300"]}
_QUICK_OF_PEERS = {"book": ["--epochs", "1"], "nanogpt": ["--steps", "300"]}


def measure(
    case: str, precisions: Sequence[str], settings: Sequence[str], *, quick: bool, nanogpt: Path | None
) -> dict[str, Any]:
    """Every run once, one after the other; what they gave, as rows."""
    folder = os.environ.get("TRAINWELL_DATA_DIR")
    if not folder or not (Path(folder) / _TEXTS[case]).exists():
        return {"left_out": f"TRAINWELL_DATA_DIR names no folder with {_TEXTS[case]}"}
    rows = [_ours(case, precision, _QUICK[case] if quick else []) for precision in precisions]
    matmul = next((row["matmul"] for row in rows if row["precision"] == "fp32" and "matmul" in row), "highest")
    for precision, kind in _forms_of_peers(precisions, settings):
        if case == "nanogpt" and nanogpt is None:
            rows.append({"title": "nanogpt", "left_out": "give --nanogpt PATH, a checkout with model.py"})
            break
        arguments = [case, "--precision", precision, "--settings", kind, "--matmul", matmul]
        arguments += _QUICK_OF_PEERS[case] if quick else []
        arguments += ["--nanogpt", str(nanogpt.resolve())] if nanogpt else []
        ended = start("benchmarks.speed.recipes", arguments, ours=kind == "ours")
        rows.append({"title": f"{case}, {precision}, {kind}", "precision": precision} | _outside(ended) | ended.answer)
        print(f"  {rows[-1]['title']}: {rows[-1]['wall_s']:.1f} s {rows[-1].get('left_out', '')}", flush=True)
    return {"rows": rows, "quick": quick}


def _forms_of_peers(precisions: Sequence[str], settings: Sequence[str]) -> list[tuple[str, str]]:
    """As documented both compute in fp32 only."""
    documented = [("fp32", "documented")] if "documented" in settings else []
    return documented + [(precision, "ours") for precision in precisions if "ours" in settings]


def _outside(ended: Ended) -> dict[str, Any]:
    return {"wall_s": ended.seconds, "peak_bytes": ended.peak_bytes}


def _ours(case: str, precision: str, more: Sequence[str]) -> dict[str, Any]:
    title = f"ours, {precision}"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        arguments = ["train", _RECIPES[case], "--run", str(folder / "run"), "--precision", precision, *more]
        ended = start("trainwell", arguments, ours=False, folder=folder, TRAINWELL_CACHE_DIR=str(folder / "cache"))
        row = {"title": title, "precision": precision} | _outside(ended)
        print(f"  {title}: {ended.seconds:.1f} s {ended.why if ended.code else ''}", flush=True)
        if ended.code:
            return row | {"left_out": f"failed with exit code {ended.code}: {ended.why}"}
        records = MetricsFile(folder / "run" / "metrics.jsonl").read()
        environment = json.loads((folder / "run" / "env.json").read_text(encoding="utf-8"))
        return row | {
            "steps": len(records.train),
            "evaluations": len(records.val),
            "samples": len(SamplesFile(folder / "run" / "samples.txt").read()),
            "step_s": vars(figures.spread([value["train/step_ms"] / 1000 for value in records.train])),
            "train_losses": [value["train/loss"] for value in records.train],
            "val_losses": [value["val/loss"] for value in records.val],
            "course": [
                {"step": value["step"], "seconds": value["time"], "val_loss": value["val/loss"]}
                for value in records.val
            ],
            "matmul": environment["settings"].get("matmul_precision", "highest"),
            "chosen": environment["settings"],
        }


def seconds_to(course: Sequence[dict[str, Any]], loss: float) -> float | None:
    """Seconds to the first evaluation at or below a validation loss; None where there is none."""
    return next((point["seconds"] for point in course if point["val_loss"] <= loss), None)


def table(case: str, found: dict[str, Any]) -> list[str]:
    """The runs as a table."""
    if "left_out" in found:
        return [f"- {case}: {found['left_out']}"]
    rows = [row for row in found["rows"] if "left_out" not in row]
    courses = [row["course"] for row in rows if row.get("course")]
    common = max(course[-1]["val_loss"] for course in courses) if len(courses) > 1 else None
    head: tuple[str, ...] = ("", "wall s", "peak GB", "steps", "evals", "samples", "ms a step", "last val loss")
    head += (f"s to {common:.3f}",) if common else ()
    cells = [_cells(row, common) for row in rows]
    lines = figures.table(head, cells) if cells else []
    return lines + [f"- {row['title']}: {row['left_out']}" for row in found["rows"] if "left_out" in row]


def _cells(row: dict[str, Any], common: float | None) -> list[str]:
    losses = row.get("val_losses") or [point["val_loss"] for point in row.get("course", [])]
    reached = seconds_to(row.get("course", []), common) if common else None
    cells = [
        row["title"],
        f"{row['wall_s']:.1f}",
        f"{row['peak_bytes'] / 1e9:.2f}",
        *(str(row.get(name, "")) for name in ("steps", "evaluations", "samples")),
        figures.shown_ms(figures.Spread(**row["step_s"])) if "step_s" in row else "",
        f"{losses[-1]:.4f}" if losses else "",
    ]
    return [*cells, "" if reached is None else f"{reached:.1f}"] if common else cells


def bf16_against_fp32(rows: Sequence[dict[str, Any]]) -> float | None:
    """Relative difference of our mean training loss in bf16 from that in fp32, over the whole run."""
    losses = {
        row["precision"]: row["train_losses"] for row in rows if row["title"].startswith("ours") and "steps" in row
    }
    if set(losses) != {"fp32", "bf16"}:
        return None
    return abs(fmean(losses["bf16"]) / fmean(losses["fp32"]) - 1)
