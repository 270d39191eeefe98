"""Modules that must not need torch do not load it, nor anything else that is slow, seen from a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
NEED_TORCH = (
    "trainwell.__main__",  # runs the command line when imported
    "trainwell.answers",
    "trainwell.book",
    "trainwell.build",
    "trainwell.calibration",
    "trainwell.checkpoint.shards",
    "trainwell.checkpoint.state",
    "trainwell.checkpoint.store",
    "trainwell.cli.ask",
    "trainwell.compiling",
    "trainwell.data.batches",
    "trainwell.distributed.meeting",
    "trainwell.distributed.parallel",
    "trainwell.distributed.sums",
    "trainwell.distributed.world",
    "trainwell.evaluate",
    "trainwell.export",
    "trainwell.fit",
    "trainwell.fitting",
    "trainwell.generate",
    "trainwell.given",
    "trainwell.gradients",
    "trainwell.harness",
    "trainwell.hellaswag",
    "trainwell.incidents",
    "trainwell.kernels",
    "trainwell.machine",
    "trainwell.model",
    "trainwell.models",
    "trainwell.optimizers",
    "trainwell.optim.clip",
    "trainwell.optim.groups",
    "trainwell.optim.guard",
    "trainwell.optim.together",
    "trainwell.parts",
    "trainwell.profiling",
    "trainwell.prove.checks",
    "trainwell.prove.loop",
    "trainwell.prove.order",
    "trainwell.prove.ranks",
    "trainwell.prove.rounding",
    "trainwell.prove.trace",
    "trainwell.prove.twins",
    "trainwell.recorder",
    "trainwell.reference",
    "trainwell.rehearsal",
    "trainwell.replay",
    "trainwell.restoring",
    "trainwell.run",
    "trainwell.saver",
    "trainwell.settings",
    "trainwell.stopping",
    "trainwell.telling",
    "trainwell.trainer",
)
HEAVY = ("torch", "matplotlib", "tokenizers", "tiktoken", "pooch")

IMPORT_ONE_BY_ONE = f"""
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    if loaded:
        sys.exit(f"importing {{module}} loads {{', '.join(loaded)}}")
"""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def needs_torch(module: str) -> bool:
    whole = {"trainwell.book", "trainwell.model"}
    return any(module == name or (name in whole and module.startswith(name + ".")) for name in NEED_TORCH)


def test_every_module_but_those_that_compute_loads_nothing_heavy() -> None:
    modules = sorted(module for path in SOURCE.rglob("*.py") if not needs_torch(module := module_of(path)))
    assert "trainwell.cli.app" in modules
    assert "trainwell.report.plots" in modules
    command = [sys.executable, "-c", IMPORT_ONE_BY_ONE, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0
