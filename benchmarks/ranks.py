"""What several processes cost and what they survive: `python benchmarks/ranks.py [--parts ...] [--kill SEEDS]`.

efficiency: two processes of one thread each, with ddp, against one process of two threads, on the same global batches.
wrapping: one process whose loss is wrapped as ddp or fsdp wants it, against the bare one, step by step in turn.
--kill: a random rank is killed at a random moment; whether the weights end the same, and how soon steps go on.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("efficiency", "wrapping")
GOAL_EFFICIENCY, GOAL_WRAPPING = 0.9, 0.01
_QUIET: dict[str, Any] = {part: {"every": None} for part in ("eval", "sample", "checkpoint")} | {
    "log": {"plots": False}
}
_WARM_UP = 3


class Case(NamedTuple):
    """A run whose steps are timed, and how many of them in each process."""

    target: str
    keys: Mapping[str, Any]
    steps: int
    rounds: int = 1
    """How many times it is one two two one: what takes milliseconds depends on what else the machine does."""


_21M: dict[str, Any] = {
    "micro_batch": 8,
    "data": {"seq_len": 256},
    "model": {"num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "width": 512},
}
CASES = {
    "demo": Case("demo", {}, 60, rounds=4),
    "llama-tiny": Case("llama-tiny", {}, 60, rounds=4),
    "llama, 21M, 16 x 256": Case("llama-tiny", _21M | {"batch_size": 16}, 8),
    "llama, 21M, 64 x 256": Case("llama-tiny", _21M | {"batch_size": 64}, 3),
    "gpt2-124m, 2 x 256": Case(
        "demo",
        {
            "batch_size": 2,
            "micro_batch": 2,
            "data": {"seq_len": 256},
            "model": {"num_layers": 12, "num_heads": 12, "width": 768, "pad_vocab_to": 50304},
        },
        6,
    ),
}
"""Models of several sizes on the text of the demo, in fp32 as their recipes have it."""


def seconds_of_steps(rank: int, size: int, case: Case, folder: str) -> list[float]:
    """Train as one of `size` ranks, as `tw.fit` does; the seconds of each later step, as this rank has it.

    Threads are those that a run takes by itself: the cores, shared out.
    """
    import trainwell as tw

    ends = []
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run = tw.build(
            case.target,
            run_dir=f"{folder}/{size}-{time.time_ns() if size == 1 else 'ranks'}",
            duration=_WARM_UP + case.steps,
            **_QUIET,
            **case.keys,
        )
        with run:
            for _ in tw.steps(run):
                ends.append(time.perf_counter())
    return [end - begin for begin, end in pairwise(ends)][_WARM_UP - 1 :]


def efficiency(case: Case) -> dict[str, Any]:
    """Tokens a second of two processes over those of one, by the median of all steps; and the ratio of each pair."""
    from trainwell.distributed.local import run_distributed

    found: dict[int, list[list[float]]] = {1: [], 2: []}
    for size in case.rounds * (1, 2, 2, 1):
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            found[size].append(run_distributed(seconds_of_steps, size, case, folder, timeout_s=600)[0])
    step_s = {size: statistics.median(second for half in halves for second in half) for size, halves in found.items()}
    pairs = [statistics.median(one) / statistics.median(two) for one, two in zip(found[1], found[2], strict=True)]
    return {
        "one process, ms a step": 1e3 * step_s[1],
        "two processes, ms a step": 1e3 * step_s[2],
        "efficiency": step_s[1] / step_s[2],
        "of each pair": pairs,
        "quartiles, ms": {
            size: _quartiles([1e3 * each for half in halves for each in half]) for size, halves in found.items()
        },
    }


def wrapped_and_bare(rank: int, size: int, case: Case, how: str, folder: str) -> list[tuple[float, float]]:
    """Seconds of a step of the bare trainer and of the one that is wrapped, both over the same batches, in turn.

    Which of the two comes first changes from step to step.
    """
    trainers = [_trainer(case, kind, f"{folder}/{kind}") for kind in ("none", how)]
    pairs = []
    for step in range(_WARM_UP + case.steps):
        took = [0.0, 0.0]
        for which in (0, 1) if step % 2 else (1, 0):
            begin = time.perf_counter()
            trainers[which].take_step()
            took[which] = time.perf_counter() - begin
        pairs.append((took[0], took[1]))
    return pairs[_WARM_UP:]


def _trainer(case: Case, how: Any, folder: str) -> Any:
    """The trainer of a run as `build` makes it; with its loss wrapped, as `build` does it for several ranks."""
    import trainwell as tw
    from trainwell.distributed.parallel import Shared
    from trainwell.distributed.world import current
    from trainwell.optimizers import make_optimizer
    from trainwell.trainer import Trainer

    run = tw.build(case.target, run_dir=folder, duration=10_000, **_QUIET, **case.keys)
    run.trainer.model.train()
    if how == "none":
        return run.trainer
    shared = Shared(run.model, run.loss, how, current(), run.settings.autocast)
    outputs = run.plan.vocab_size or 0
    return Trainer(
        run.model,
        make_optimizer(run.config.optim, run.model, outputs, fused=run.settings.fused),
        run.batches,
        schedules=run.plan.schedules,
        loss=shared,
        max_grad_norm=run.config.optim.max_grad_norm,
        autocast=run.settings.autocast,
        guard=type(run.trainer.guard)(run.trainer.device),
    )


def wrapping(case: Case, how: str) -> dict[str, Any]:
    """By what share of the bare step the wrapped one is longer: the median over pairs of steps, and its quartiles."""
    from trainwell.distributed.local import run_distributed

    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        (pairs,) = run_distributed(wrapped_and_bare, 1, case, how, folder, timeout_s=600)
    shares = [wrapped / bare - 1 for bare, wrapped in pairs]
    return {
        "bare, ms a step": 1e3 * statistics.median(bare for bare, _ in pairs),
        "wrapped, ms a step": 1e3 * statistics.median(wrapped for _, wrapped in pairs),
        "overhead": statistics.median(shares),
        "quartiles": _quartiles(shares),
        "pairs": len(pairs),
    }


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """The result as a page."""
    lines = ["# Several processes on one machine", "", *(f"- {key}: {value}" for key, value in result["about"].items())]
    for part, (title, about, head, cells) in TABLES.items():
        if part in result:
            rows = result[part]["summary"] if part == "kills" else result[part]
            lines += ["", f"## {title}", "", about, "", f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
            lines += [f"| {name} | {' | '.join(cells(row))} |" for name, row in rows.items()]
    return lines


def _efficiency_cells(row: Mapping[str, Any]) -> list[str]:
    times = [f"{row[f'{size}, ms a step']:.1f}" for size in ("one process", "two processes")]
    return [*times, f"{row['efficiency']:.2f}", ", ".join(f"{each:.2f}" for each in row["of each pair"])]


def _wrapping_cells(row: Mapping[str, Any]) -> list[str]:
    times = [f"{row[f'{kind}, ms a step']:.1f}" for kind in ("bare", "wrapped")]
    return [*times, f"{row['overhead']:+.2%}", " to ".join(f"{each:+.2%}" for each in row["quartiles"])]


def _kill_cells(row: Mapping[str, Any]) -> list[str]:
    times = [row["median, s"], row["95th percentile, s"]]
    return [str(row["kills"]), str(row["same weights"]), *("" if each is None else f"{each:.1f} s" for each in times)]


TABLES: dict[str, tuple[str, str, Sequence[str], Callable[[Mapping[str, Any]], list[str]]]] = {
    "efficiency": (
        "Two processes of one thread over one of two",
        f"Tokens a second on the same global batches, ddp, in the order one two two one; goal {GOAL_EFFICIENCY}.",
        ("run", "one, ms a step", "two, ms a step", "efficiency", "of each pair"),
        _efficiency_cells,
    ),
    "wrapping": (
        "Wrapped over bare, one process",
        f"Medians over pairs of steps in one process, and quartiles; the goal for ddp is {GOAL_WRAPPING:.0%}.",
        ("run", "bare, ms a step", "wrapped, ms a step", "overhead", "quartiles"),
        _wrapping_cells,
    ),
    "kills": (
        "A rank killed",
        "A random rank of two gets SIGKILL at a random moment of a run of some seconds.",
        ("launcher", "kills", "same weights", "next step after: median", "95th percentile"),
        _kill_cells,
    ),
}


def _free(wanted: Path) -> Path:
    """The name, or with a number where there is such a result already."""
    number, found = 2, wanted
    while found.with_name(f"{found.name}.json").exists():
        number, found = number + 1, wanted.with_name(f"{wanted.name}-{number}")
    return found


def measure(asked: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All that was asked for."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    from benchmarks.soak import rank_kills
    from benchmarks.speed.machine import describe

    facts = describe()
    about = {
        name: facts[name] for name in ("processor", "cores", "memory", "system", "load", "python", "torch", "commit")
    }
    result: dict[str, Any] = {"about": about | {"command": " ".join(["python benchmarks/ranks.py", *sys.argv[1:]])}}
    cases = {
        name: case._replace(steps=asked.steps or case.steps) for name, case in CASES.items() if name in asked.cases
    }
    if "efficiency" in asked.parts:
        result["efficiency"] = {}
        for name, case in cases.items():
            result["efficiency"][name] = efficiency(case)
            say(f"efficiency, {name}: {result['efficiency'][name]['efficiency']:.3f}")
    if "wrapping" in asked.parts:
        result["wrapping"] = {}
        for name, how in ((name, how) for name in list(cases)[:3] for how in ("ddp", "fsdp")):
            result["wrapping"][f"{name}, {how}"] = wrapping(cases[name], how)
            say(f"wrapping, {name}, {how}: {result['wrapping'][f'{name}, {how}']['overhead']:+.2%}")
    if asked.kill:
        found = rank_kills.kills(asked.kill, say)
        groups = {name: [one for one in found if one.launcher == name] for name in rank_kills.LAUNCHERS}
        summaries = {name: rank_kills.summary(ones) for name, ones in (groups | {"all": found}).items() if ones}
        result["kills"] = {"summary": summaries, "each": [one._asdict() for one in found]}
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the page, and write it with its numbers as JSON beside it."""
    parser = argparse.ArgumentParser(description="What several processes cost, and what they survive.")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--steps", type=int, help="timed steps of each process; default: as the case has it")
    parser.add_argument("--kill", type=int, default=0, metavar="SEEDS", help="kill so many runs; default: none")
    parser.add_argument("--out", type=Path, help="without its ending; default benchmarks/results/DATE-ranks")
    asked = parser.parse_args(arguments)
    begin = time.monotonic()
    result = measure(asked, partial(print, flush=True))
    out = asked.out or _free(RESULTS / time.strftime("%Y-%m-%d-ranks"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.with_name(f"{out.name}.md").write_text("\n".join(lines_of(result)) + "\n", encoding="utf-8")
    print("\n".join(["", *lines_of(result)]))
    print(f"\n{time.monotonic() - begin:.0f} s; written to {out}.md and .json")


if __name__ == "__main__":
    main()
