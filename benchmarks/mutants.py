"""Deliberate mistakes in the loop, one at a time, and whether the tests notice: `python benchmarks/mutants.py`.

Each mutant is a copy of the source with one line changed, the kind of mistake that trains and looks healthy. It counts
as caught when the tests that mirror the changed file fail on it, and pass without it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider")
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Mutant:
    """One mistake: in `file` the text `right`, which occurs once, becomes `wrong`; `tests` should notice."""

    name: str
    kind: str
    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = (
    Mutant(
        "a mean of means",
        "loss scaling",
        "trainer.py",
        "loss = loss / divisor",
        "loss = loss / (micro.targets != IGNORED).sum().clamp(min=1) / len(micro_batches)",
        "tests/test_trainer.py",
    ),
    Mutant(
        "gradients of the step before are still there",
        "loop",
        "trainer.py",
        "        self.optimizer.zero_grad()\n",
        "",
        "tests/test_trainer.py",
    ),
    Mutant(
        "the batch of the step before",
        "loop",
        "trainer.py",
        "self.batches(self.step).micro_batches",
        "self.batches(max(self.step - 1, 0)).micro_batches",
        "tests/test_trainer.py",
    ),
    Mutant(
        "dropout that does not depend on the step",
        "loop",
        "trainer.py",
        'seed_for(self.seed, "dropout", self.step, micro.index)',
        'seed_for(self.seed, "dropout", micro.index)',
        "tests/test_trainer.py",
    ),
    Mutant(
        "a rate that is one step late",
        "schedule",
        "trainer.py",
        "self._set(key, schedule(self.step))",
        "self._set(key, schedule(max(self.step - 1, 0)))",
        "tests/test_trainer.py",
    ),
    Mutant(
        "evaluation with dropout on",
        "loop",
        "evaluate.py",
        "    model.eval()\n",
        "",
        "tests/test_evaluate.py",
    ),
    Mutant(
        "saved one step late",
        "loop",
        "planning/due.py",
        "    state = step + 1\n    last",
        "    state = step\n    last",
        "tests/test_run.py",
    ),
    Mutant(
        "the norm of scaled gradients",
        "loss scaling",
        "optim/clip.py",
        "norm = norm / loss_scale",
        "norm = norm * 1",
        "tests/optim/test_clip.py",
    ),
    Mutant(
        "a loss scale that never falls",
        "loss scaling",
        "optim/guard.py",
        "(self.value / 2).clamp(min=1)",
        "self.value.clamp(min=1)",
        "tests/optim/test_guard.py",
    ),
    Mutant(
        "every epoch in the same order",
        "order",
        "data/order.py",
        'seed_for(seed, "order", int(epoch))',
        'seed_for(seed, "order")',
        "tests/data/test_order.py",
    ),
    Mutant(
        "a shuffle that repeats windows",
        "order",
        "data/order.py",
        "        outside = places >= count\n",
        "        places = places % np.uint64(count)\n        outside = places >= count\n",
        "tests/data/test_order.py",
    ),
    Mutant(
        "a window without its last target",
        "order",
        "data/order.py",
        "(num_tokens - seq_len - 1) // stride + 1",
        "(num_tokens - seq_len - 2) // stride + 1",
        "tests/data/test_order.py",
    ),
    Mutant(
        "a warmup that starts at nothing",
        "schedule",
        "optim/schedule.py",
        "return lambda step: peak * ((step + 1) / warmup)",
        "return lambda step: peak * (step / warmup)",
        "tests/optim/test_schedule.py",
    ),
    Mutant(
        "a decay that never arrives",
        "schedule",
        "optim/schedule.py",
        "curve((step + 1 - start) / (horizon - start), peak, min_lr)",
        "curve((step - start) / (horizon - start), peak, min_lr)",
        "tests/optim/test_schedule.py",
    ),
    Mutant(
        "a resume without the optimizer's moments",
        "resume",
        "trainer.py",
        '        load_optimizer_state(self.optimizer, state["optimizer"])\n',
        "",
        "tests/test_fit.py",
    ),
    Mutant(
        "a resume that forgets how many updates were skipped",
        "resume",
        "trainer.py",
        '        self.guard.load_state_dict(state["guard"])\n',
        "",
        "tests/test_trainer.py",
    ),
    Mutant(
        "a resume without what the user kept",
        "resume",
        "saver.py",
        '            self.kept[name].load_state_dict(state["kept"][name])\n',
        "            pass\n",
        "tests/test_run.py",
    ),
    Mutant(
        "metrics that go on after the restored step",
        "resume",
        "runs/metrics.py",
        '(row["step"] <= step if _is_evaluation(row) else row["step"] < step)',
        'row["step"] <= step',
        "tests/runs/test_metrics.py",
    ),
    Mutant(
        "a checkpoint that is read without being verified",
        "resume",
        "checkpoint/store.py",
        "        self.verify(step)\n        directory = directory_of(self.folder, step)\n",
        "        directory = directory_of(self.folder, step)\n",
        "tests/checkpoint/test_store.py",
    ),
    Mutant(
        "old checkpoints go whether the new ones are good or not",
        "resume",
        "checkpoint/store.py",
        "good += self.problem(step) is None",
        "good += 1",
        "tests/checkpoint/test_store.py",
    ),
    Mutant(
        "clipping that makes small gradients large",
        "clip",
        "optim/clip.py",
        "((norm + 1e-6) / max_norm).clamp(min=1.0)",
        "((norm + 1e-6) / max_norm)",
        "tests/optim/test_clip.py",
    ),
    Mutant(
        "biases and norms decay too",
        "clip",
        "optim/groups.py",
        'decayed = [parameter for parameter in trained if decay == "all" or parameter.dim() >= 2]\n'
        '    plain = [parameter for parameter in trained if not (decay == "all" or parameter.dim() >= 2)]',
        "decayed = list(trained)\n    plain: list[Tensor] = []",
        "tests/optim/test_groups.py",
    ),
    Mutant(
        "padding counts as a target",
        "loss scaling",
        "trainer.py",
        "(micro.targets != IGNORED).sum() for micro in micro_batches",
        "(micro.targets != IGNORED - 1).sum() for micro in micro_batches",
        "tests/test_trainer.py",
    ),
)


def misplaced() -> list[str]:
    """Mutants whose text does not occur exactly once in their file: the code has moved on without them."""
    return [mutant.name for mutant in MUTANTS if _source(mutant).count(mutant.right) != 1]


def _source(mutant: Mutant) -> str:
    return (ROOT / "src" / "trainwell" / mutant.file).read_text("utf-8")


def run(names: Sequence[str] = (), processes: int = 2, seed: int = 0) -> dict[str, Any]:
    """Try the mutants of these names, or all of them; which were caught, which lived, and the seconds it took.

    `rows` are those of the scoreboard. The `seed` is for hypothesis, which some of the tests ask.
    """
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    begin = time.monotonic()
    healthy = _fails(ROOT / "src", sorted({mutant.tests for mutant in chosen}), seed)
    if healthy:
        raise SystemExit(f"the tests fail without a mutant, so they would catch anything: {healthy}")
    with ThreadPoolExecutor(processes) as pool:
        caught = list(pool.map(lambda mutant: _is_caught(mutant, seed), chosen))
    alive = [mutant.name for mutant, dead in zip(chosen, caught, strict=True) if not dead]
    row = {
        "promise": "a deliberate mistake in the loop makes a test fail",
        "figure": f"{sum(caught)} of {len(chosen)}",
        "held": bool(chosen) and not alive,
        "problems": [f"no test failed with: {name}" for name in alive],
    }
    return {
        "tried": len(chosen),
        "caught": sum(caught),
        "alive": alive,
        "seconds": round(time.monotonic() - begin, 1),
        "rows": [row],
    }


def _is_caught(mutant: Mutant, seed: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        wrong = _source(mutant).replace(mutant.right, mutant.wrong)
        (source / "trainwell" / mutant.file).write_text(wrong, "utf-8")
        first = _fails(source, [mutant.tests], seed)
    print(f"{'caught' if first else 'ALIVE '}  {mutant.kind:13} {mutant.name}  {first[:100]}", flush=True)
    return bool(first)


def _fails(source: Path, tests: Sequence[str], seed: int) -> str:
    """The first test that fails on this source; empty where all pass."""
    try:
        outcome = subprocess.run(
            [*_PYTEST, f"--hypothesis-seed={seed}", *tests],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {_TIMEOUT_S} s"
    if outcome.returncode == 0:
        return ""
    named = [line for line in outcome.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return next(iter(named), f"pytest ended with {outcome.returncode}: {outcome.stderr[-200:]}")


def main() -> None:
    """Try all mutants, or those named; exit with 1 when one lives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these mutants")
    parser.add_argument("--processes", type=int, default=2, help="tried at a time")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON at the end")
    options = parser.parse_args()
    if wrong := misplaced():
        sys.exit(f"no longer in the source, or there twice: {', '.join(wrong)}")
    outcome = run(options.names, options.processes)
    print(json.dumps(outcome) if options.json else f"{outcome['caught']} of {outcome['tried']} caught")
    sys.exit(bool(outcome["alive"]))


if __name__ == "__main__":
    main()
