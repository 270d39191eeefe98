"""The whole comparison: which cases, which contestants, in which order; the screen, the JSON file and the page."""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.speed import compare, extras, page, whole
from benchmarks.speed.cases import CASES
from benchmarks.speed.machine import ROOT, describe
from benchmarks.speed.processes import prepare, start

RESULTS = ROOT / "benchmarks" / "results"
STEP_CASES = ("124m-2x256", "124m-4x1024", "tiny")
WHOLE_CASES = ("book", "nanogpt")
EXTRAS = ("stalls", "tokenizing")
PEERS = ("raw", "raw-ours-model", "book", "trainer", "lightning", "accelerate", "litgpt", "nanogpt")
OPTIONAL = ("raw-compiled", "ours-compiled", "ours-reference", "litgpt-eager")
_PACKAGES = {
    "book": "llms_from_scratch",
    "trainer": "transformers",
    "lightning": "lightning",
    "accelerate": "accelerate",
    "litgpt": "litgpt",
}
_EXTRA = "pip install '.[bench]'"
_INSTALL = {"book": "pip install --no-deps llms-from-scratch", "litgpt": "pip install --no-deps litgpt"}
"""Those that ask for versions or packages that nothing else here can have."""
_QUICK_STEPS = {"124m-2x256": 4, "124m-4x1024": 3, "tiny": 60}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 0 when everything ran that could."""
    asked = _parse(arguments)
    peers = [name for name in asked.peers if name != "nanogpt" or asked.nanogpt]
    result: dict[str, Any] = {"machine": describe(), "quick": asked.quick, "cases": {}, "whole": {}, "extras": {}}
    print("\n".join(f"{name}: {value}" for name, value in result["machine"].items()))
    for case in asked.cases:
        if case in STEP_CASES:
            for precision in asked.precisions:
                result["cases"][f"{case} {precision}"] = _steps(case, precision, peers, asked)
                _write(result, asked.out)
        elif case in WHOLE_CASES:
            result["whole"][case] = whole.measure(
                case, asked.precisions, asked.settings, quick=asked.quick, nanogpt=asked.nanogpt
            )
        else:
            result["extras"][case] = extras.measure(case, asked.precisions, quick=asked.quick)
        _write(result, asked.out)
    print("\n".join(page.lines(result)))
    print(f"written: {asked.out}.md, {asked.out}.json")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    everything = (*STEP_CASES, *WHOLE_CASES, *EXTRAS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="trainwell beside its peers")
    parser.add_argument("--cases", type=_list_of(everything), default=list(everything), help=", ".join(everything))
    parser.add_argument("--precisions", type=_list_of(("fp32", "bf16")), default=["fp32", "bf16"], help="fp32,bf16")
    names = ", ".join((*PEERS, *OPTIONAL))
    parser.add_argument("--peers", type=_list_of((*PEERS, *OPTIONAL)), default=list(PEERS), help=names)
    kinds = ("documented", "ours")
    parser.add_argument("--settings", type=_list_of(kinds), default=list(kinds), help="of peers: documented,ours")
    parser.add_argument("--steps", type=int, help="steps of each process, warm-up included")
    parser.add_argument("--out", type=Path, help="results without their endings; default benchmarks/results/DATE-speed")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, which is in no package index")
    parser.add_argument("--quick", action="store_true", help="a few steps of each: to see that all works")
    asked = parser.parse_args(arguments)
    asked.out = asked.out or _free(RESULTS / time.strftime("%Y-%m-%d-speed"))
    return asked


def _list_of(allowed: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",") if part.strip()]
        wrong = [part for part in found if part not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)} is none of {', '.join(allowed)}")
        return found

    return read


def _free(wanted: Path) -> Path:
    """The name, or with a number where there is such a result already."""
    number, found = 2, wanted
    while found.with_name(f"{found.name}.json").exists():
        number, found = number + 1, wanted.with_name(f"{wanted.name}-{number}")
    return found


def _steps(name: str, precision: str, peers: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    """One case in one precision: rows of all contestants beside the machine's ceilings."""
    steps = asked.steps or (_QUICK_STEPS[name] if asked.quick else CASES[name].steps)
    case = replace(CASES[name], steps=steps)
    present = [peer for peer in peers if peer not in _PACKAGES or find_spec(_PACKAGES[peer])]
    with tempfile.TemporaryDirectory() as made:
        source = prepare(name, Path(made))
        chosen = compare.entries([compare.OURS, *present], asked.settings)
        rows = compare.run(case, precision, chosen, Path(made), steps, nanogpt=asked.nanogpt)
    for peer in peers:
        if peer not in present:
            rows.append({"title": peer, "name": peer, "left_out": f"not installed: {_INSTALL.get(peer, _EXTRA)}"})
    matmul = next((row["notes"].get("matmul") for row in rows if row["name"] == compare.OURS and "notes" in row), None)
    arguments = ["--case", name, "--precision", precision, "--matmul", matmul or "highest"]
    ceiling = start("benchmarks.speed.ceilings", arguments, ours=True).answer
    compare.add_ratios(rows, case, ceiling)
    found = {"case": vars(case), "tokens": source, "steps": steps, "rows": rows, "ceiling": ceiling}
    print("\n".join(page.of_case(f"{name} {precision}", found)), flush=True)
    return found


def _write(result: dict[str, Any], out: Path) -> None:
    """Keep what is there so far: a comparison takes hours, and may be stopped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.with_name(f"{out.name}.md").write_text("\n".join(page.lines(result)) + "\n", encoding="utf-8")
