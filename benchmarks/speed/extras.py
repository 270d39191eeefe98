"""What only we can measure of ourselves: how long saving and evaluating hold training up, and how fast text is read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.cases import CASES, prepare
from benchmarks.speed.processes import start

_CASE = "124m-2x256"
_STEPS, _QUICK_STEPS = 24, 9
_MEGABYTES, _QUICK_MEGABYTES = 20, 3


def measure(name: str, precisions: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """`stalls` or `tokenizing`."""
    if name == "tokenizing":
        megabytes = _QUICK_MEGABYTES if quick else _MEGABYTES
        return start("benchmarks.speed.tokenizing", ["--megabytes", str(megabytes)], ours=True).answer
    with tempfile.TemporaryDirectory() as folder:
        prepare(CASES[_CASE], Path(folder))
        return {precision: _stalls(precision, folder, _QUICK_STEPS if quick else _STEPS) for precision in precisions}


def _stalls(precision: str, folder: str, steps: int) -> dict[str, Any]:
    arguments = ["ours-stalls", "--case", _CASE, "--precision", precision, "--steps", str(steps), "--folder", folder]
    found = start("benchmarks.speed.worker", arguments, ours=True).answer
    if "left_out" in found:
        return found
    return stalls(found["seconds"], found["notes"], CASES[_CASE].warm_up)


def stalls(seconds: Sequence[float], notes: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """From times between ends of steps, the first of which was step `warm_up`, and the steps that something followed.

    What follows a step is in the time of the next. Where both were due, the time counts as evaluation's.
    """
    saved = [step + 1 - warm_up for step in notes["saved"] if step not in notes["evaluated"]]
    evaluated = [step + 1 - warm_up for step in notes["evaluated"]]
    near = {index + after for index in (*saved, *evaluated) for after in (0, 1, 2)}
    usual = median([value for index, value in enumerate(seconds) if index not in near] or seconds)
    return {
        "step_s": usual,
        "save_stall_s": figures.stall_s(seconds, saved, usual),
        "evaluation_stall_s": figures.stall_s(seconds, evaluated, usual),
        "seconds": list(seconds),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """As a list for the page."""
    shown = []
    for precision, part in found.get("stalls", {}).items():
        if "left_out" in part:
            shown.append(f"- stalls {precision}: {part['left_out']}")
            continue
        shown.append(
            f"- {_CASE} {precision}: a step {part['step_s']:.3f} s, the longest step around a save "
            f"{part['save_stall_s']:+.3f} s, around an evaluation (one batch) {part['evaluation_stall_s']:+.3f} s"
        )
    reading = found.get("tokenizing", {})
    if "left_out" in reading:
        shown.append(f"- tokenizing: {reading['left_out']}")
    elif reading:
        rates = ", ".join(f"{name} {value:.1f} MB/s" for name, value in reading["mb_per_s"].items())
        shown.append(f"- reading {reading['megabytes']:.0f} MB of text ({reading['source']}): {rates}")
    return shown
