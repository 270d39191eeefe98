"""One contestant in a process: `python -m benchmarks.speed.worker NAME --case C ...` prints one line of JSON.

Whatever a contestant prints itself goes to stderr.
"""

import argparse
import contextlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.cases import CASES, prepare
from benchmarks.speed.clock import Clock, Job, NotMeasuredError

from trainwell.machine import keep_freed_memory, use_huge_pages

CONTESTANTS = {
    "ours": ("ours", "ours-compiled", "ours-reference", "ours-saves", "ours-evaluations", "raw-ours-model"),
    "peers": ("raw", "raw-compiled", "book", "trainer", "lightning", "accelerate", "litgpt", "litgpt-eager", "nanogpt"),
}
"""By the module that has them; only that is imported, so that nobody's memory and start are another's."""


def measure(name: str, job: Job, clock: Clock) -> dict[str, Any]:
    """Run a contestant and say what it took."""
    with contextlib.redirect_stdout(sys.stderr):
        module = next(module for module, names in CONTESTANTS.items() if name in names)
        contestant = getattr(importlib.import_module(f"benchmarks.speed.{module}"), name.replace("-", "_"))
        contestant(job, clock)
    return {
        "seconds": clock.seconds(job.case.warm_up),
        "losses": clock.losses,
        "grad_norms": clock.norms,
        "data_wait_s": clock.waits[job.case.warm_up :],
        "first_step_s": clock.first_step_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "notes": clock.notes,
    }


def main() -> None:
    """Measure what the command line asks for."""
    now = time.time()
    parser = argparse.ArgumentParser(description="one contestant, measured")
    parser.add_argument("name", choices=[*CONTESTANTS["ours"], *CONTESTANTS["peers"]])
    parser.add_argument("--case", choices=sorted(CASES), default="tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--settings", choices=("documented", "ours"), default="documented")
    parser.add_argument("--steps", type=int, help="steps, warm-up included")
    parser.add_argument("--folder", type=Path, help="where tokens and weights are; made anew without it")
    parser.add_argument("--matmul", choices=("highest", "high", "medium"), help="of our settings: products in fp32")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--started", type=float, default=now, help="Unix time at which this process was asked for")
    asked = parser.parse_args()
    if asked.settings == "ours":
        keep_freed_memory()
        use_huge_pages()
        torch.set_float32_matmul_precision(asked.matmul or "highest")
    case = CASES[asked.case]
    with tempfile.TemporaryDirectory() as made:
        folder = asked.folder or Path(made)
        if asked.folder is None:
            prepare(case, folder)
        steps = asked.steps or case.steps
        job = Job(case, asked.precision, asked.settings == "ours", steps, folder.resolve(), asked.nanogpt)
        os.chdir(made)  # some peers write where they stand
        print(json.dumps(_outcome(asked.name, job, Clock(asked.started))), flush=True)


def _outcome(name: str, job: Job, clock: Clock) -> dict[str, Any]:
    try:
        return measure(name, job, clock)
    except ModuleNotFoundError as error:
        return {"left_out": f"not installed ({error.name}): pip install '.[bench]'"}
    except NotMeasuredError as error:
        return {"left_out": str(error)}


if __name__ == "__main__":
    main()
