"""The scoreboard: runs the parts, keeps each one's newest result in docs/reliability.json, and writes the page of them.

A part that is not run again keeps its result, with the date and the commit it is of. No figure is typed by hand.
"""

import argparse
import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.soak.figures import Row, measured

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of the soak: where its `run` is, what it is about, and how much of it a short form does."""

    module: str
    title: str
    about: str
    short: Mapping[str, Any] = field(default_factory=dict)


PARTS = {
    "kills": Part(
        "benchmarks.soak.kills",
        "Kills",
        "A run of 40 to 250 steps, its configuration drawn from the seed (GPT-2 or Llama, dropout, evaluations, "
        "samples, saving at once or in the background), is killed with SIGKILL and the same command repeated until it "
        "is done. Tensors and state of the last checkpoint, every recorded value but the clock's, and every sample "
        "must then equal those of a run that nobody killed. The children are forks of a process that has imported "
        "torch and done nothing with it, which makes thousands of starts affordable; some are processes of their own. "
        "Plots, which take longer than the run, are off.",
        {"count": 2, "five": 1, "real": 0, "every": 12, "ways": (True,)},
    ),
    "damage": Part(
        "benchmarks.soak.damage",
        "Damage",
        "Checkpoints of such a run are damaged. Verifying and loading must refuse; a run that is started again must "
        "pass the damaged one over with a reason and end equal to the bit, or refuse where nothing whole is left.",
        {"count": 30, "cut": 15, "runs": 1, "every": 300},
    ),
    "full_disk": Part(
        "benchmarks.soak.full_disk",
        "Full disk",
        "In the middle of a run files may not grow any more (RLIMIT_FSIZE), or a disk of two megabytes is filled up.",
        {"count": 2},
    ),
    "signals": Part(
        "benchmarks.soak.signals",
        "Signals",
        "A signal at a random moment after the run has its folder: small runs, with SIGTERM, SIGINT and SIGUSR1 in "
        "turn, which then go on to the end and are compared; and the demo recipe, with SIGTERM, as a process of its "
        "own.",
        {"count": 2, "real": 1},
    ),
    "fuzz": Part(
        "benchmarks.fuzz",
        "Fuzz and state machine",
        "Configurations and command lines nobody would write, and sequences of commands against a model.",
        {"count": 50},
    ),
    "mutants": Part(
        "benchmarks.mutants",
        "Mutants",
        "Deliberate mistakes in the loop, each of which the tests must catch.",
    ),
    "observers": Part(
        "benchmarks.soak.observers",
        "Observers",
        "Evaluating, sampling, logging and saving in the background after every step, and the spike guard's "
        "measurements of many a step, against none of it. AdamW fused and plain, Muon, dropout.",
        {"count": 1, "variants": ("gpt2", "llama")},
    ),
}
_ABOUT = """# Reliability

What a run survives, counted. This page is written by `make soak`; no figure in it is typed by hand.
`python -m benchmarks.soak --only kills damage` makes these parts again and leaves the others as they are; `--short` is
the form that `make test` runs, and writes nothing.
"""
_NOT_COVERED = """## What is not covered

- A power cut: SIGKILL ends the process, not the machine, so what the kernel holds still reaches the disk. That files
  and folders are forced to the disk in the right order is held by the tests of the checkpoint store, not by pulling a
  plug.
- Any device but a CPU, and more than one thread: equality to the bit is a promise of one machine, one number of
  threads, one torch.
- Damage to memory, and to `metrics.jsonl` elsewhere than in a torn last line: the latter is reported, not repaired.
- File systems that lose what was fsynced, or on which a rename is not atomic.
- Runs of hours. A run here lasts a second, so what comes with days (leaks, counters that overflow) is not seen.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for and print them; a long form also writes the page. 1 where a promise failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a little of everything, and no page")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    asked = parser.parse_args(arguments)
    results: dict[str, Result] = {}
    broken: list[str] = []
    for name in asked.only or PARTS:
        if asked.short and not PARTS[name].short:
            print(f"{PARTS[name].title}: no short form; its own test is one")
            continue
        try:
            results[name] = take(name, asked.seed, short=asked.short)
        except Exception:  # noqa: BLE001  one part that breaks down is not to cost the others their hours
            broken.append(name)
            print(f"{PARTS[name].title} broke down:\n{traceback.format_exc()}", flush=True)
            continue
        print(_spoken(name, results[name]), flush=True)
        if not asked.short:
            write(results)
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
    held = all(row["held"] for result in results.values() for row in result["rows"])
    return 0 if held and not broken else 1


def take(name: str, seed: int, *, short: bool) -> Result:
    """Run one part; its rows, and where they come from."""
    part, begin = PARTS[name], time.perf_counter()
    module = import_module(part.module)
    rows = _mutants(module.run()) if name == "mutants" else module.run(seed=seed, **part.short if short else {})["rows"]
    return {
        "rows": rows,
        "command": f"python -m benchmarks.soak --only {name} --seed {seed}{' --short' if short else ''}",
        "seed": seed,
        "seconds": round(time.perf_counter() - begin),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "trainwell")},
    }


def _mutants(found: Mapping[str, Any]) -> list[Row]:
    """The row of the mutants, which are the same for every seed."""
    alive = [f"{name} is not caught" for name in found["alive"]]
    figure = f"{found['caught']} of {found['tried']}"
    return [measured("a mistake in the loop is caught by the tests", figure, held=not alive, problems=alive)]


def write(results: Mapping[str, Result], file: Path = RESULTS, page_file: Path = PAGE) -> None:
    """Put the results beside those of other parts, and write the page of all of them."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    together = {name: {**before, **results}[name] for name in PARTS if name in before or name in results}
    file.write_text(json.dumps(together, indent=1) + "\n", encoding="utf-8")
    page_file.write_text(page(together), encoding="utf-8")


def page(results: Mapping[str, Result]) -> str:
    """The page of some results: each promise with its figure and the command that makes it, and what is not covered."""
    promises = ["| promise | figure | holds | command |", "|---|---|---|---|"]
    sources = ["| part | date | commit | seconds | machine | versions |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        promises += [
            f"| {row['promise']} | {row['figure']} | {'yes' if row['held'] else '**no**'} | `{result['command']}` |"
            for row in result["rows"]
        ]
        versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
        sources.append(
            f"| {PARTS[name].title} | {result['date']} | {result['commit']} | {result['seconds']} | "
            f"{result['machine']} | {versions} |"
        )
    about = [f"- **{part.title}.** {part.about}" for name, part in PARTS.items() if name in results]
    failed = [
        f"- {problem}"
        for result in results.values()
        for row in result["rows"]
        if not row["held"]
        for problem in row["problems"]
    ]
    blocks = [
        _ABOUT,
        "\n".join(promises),
        "\n## Where the figures come from\n",
        "\n".join(sources),
        "\n## What is done\n",
        "\n".join(about),
        *(["\n## What failed\n", "\n".join(failed)] if failed else []),
        "",
        _NOT_COVERED,
    ]
    return "\n".join(blocks)


def _spoken(name: str, result: Result) -> str:
    lines = [f"{PARTS[name].title}, {result['seconds']} s: {result['command']}"]
    for row in result["rows"]:
        lines += [f"  {'ok  ' if row['held'] else 'FAIL'} {row['figure']}: {row['promise']}"]
        lines += [f"       {problem}" for problem in row["problems"]]
    return "\n".join(lines)


def _commit() -> str:
    """The commit that was run, with a plus where files differ from it."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", "src"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}{'+' if changes else ''}"


def _machine() -> str:
    """Processor, cores and system."""
    processor = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        names = [
            line.partition(":")[2].strip() for line in about.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}"
