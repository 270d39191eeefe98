"""What only we can measure of ourselves: how long saving and evaluating hold training up, and how fast text is read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed import figures
from benchmarks.speed.cases import CASES
from benchmarks.speed.processes import prepare, start

_CASE = "124m-2x256"
_STEPS, _QUICK_STEPS = 24, 9
_MEGABYTES, _QUICK_MEGABYTES = 20, 3


def measure(name: str, precisions: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """`stalls` or `tokenizing`."""
    if name == "tokenizing":
        megabytes = _QUICK_MEGABYTES if quick else _MEGABYTES
        return start("benchmarks.speed.tokenizing", ["--megabytes", str(megabytes)], ours=True).answer
    with tempfile.TemporaryDirectory() as folder:
        prepare(_CASE, Path(folder))
        return {precision: _stalls(precision, folder, _QUICK_STEPS if quick else _STEPS) for precision in precisions}


def _stalls(precision: str, folder: str, steps: int) -> dict[str, Any]:
    """Of saves and of evaluations, each in a process of its own."""
    shared = ["--case", _CASE, "--precision", precision, "--steps", str(steps), "--folder", folder]
    answers = {
        kind: start("benchmarks.speed.worker", [f"ours-{kind}", *shared], ours=True).answer
        for kind in ("saves", "evaluations")
    }
    for answer in answers.values():
        if "left_out" in answer:
            return answer
    return {
        kind: stalls(answer["seconds"], answer["notes"]["after"], CASES[_CASE].warm_up)
        for kind, answer in answers.items()
    }


def stalls(seconds: Sequence[float], after: Sequence[int], warm_up: int) -> dict[str, Any]:
    """From times between ends of steps, the first of which was step `warm_up`, and the steps that something followed.

    What follows a step is in the time of the next, and what goes on beside training may slow a few more.
    """
    begun = [step + 1 - warm_up for step in after]
    near = figures.next_to(begun)
    usual = median([value for index, value in enumerate(seconds) if index not in near] or seconds)
    return {"step_s": usual, "stall_s": figures.stall_s(seconds, begun, usual), "seconds": list(seconds)}


def lines(found: dict[str, Any]) -> list[str]:
    """As a list for the page."""
    shown = []
    for precision, part in found.get("stalls", {}).items():
        if "left_out" in part:
            shown.append(f"- stalls {precision}: {part['left_out']}")
            continue
        for kind, what in (("saves", "a save"), ("evaluations", "an evaluation of one batch")):
            figure = part[kind]
            longest = f"the longest step after {what} took {figure['stall_s']:.3f} s more"
            shown.append(f"- {_CASE} {precision}: a step takes {figure['step_s']:.3f} s, {longest}")
    reading = found.get("tokenizing", {})
    if "left_out" in reading:
        shown.append(f"- tokenizing: {reading['left_out']}")
    elif reading:
        rates = ", ".join(f"{name} {value:.1f} MB/s" for name, value in reading["mb_per_s"].items())
        shown.append(f"- reading {reading['megabytes']:.0f} MB of text ({reading['source']}): {rates}")
    return shown
