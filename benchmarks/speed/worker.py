"""One contestant in a process: `python -m benchmarks.speed.worker NAME --case C ...` prints one line of JSON.

Whatever a contestant prints itself goes to stderr.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import ours, peers
from benchmarks.speed.cases import CASES, prepare
from benchmarks.speed.clock import Clock, Job, NotMeasuredError

CONTESTANTS: Mapping[str, Callable[[Job, Clock], None]] = {
    "ours": ours.ours,
    "ours-compiled": ours.ours_compiled,
    "ours-reference": ours.ours_reference,
    "ours-saves": ours.ours_saves,
    "ours-evaluations": ours.ours_evaluations,
    "raw-ours-model": ours.raw_ours_model,
    "raw": peers.raw,
    "raw-compiled": peers.raw_compiled,
    "book": peers.book,
    "trainer": peers.trainer,
    "lightning": peers.lightning,
    "accelerate": peers.accelerate,
    "litgpt": peers.litgpt,
    "litgpt-eager": peers.litgpt_eager,
    "nanogpt": peers.nanogpt,
}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step; False where there is no glibc to ask."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def measure(name: str, job: Job, clock: Clock) -> dict[str, Any]:
    """Run a contestant and say what it took."""
    with contextlib.redirect_stdout(sys.stderr):
        CONTESTANTS[name](job, clock)
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
    parser.add_argument("name", choices=sorted(CONTESTANTS))
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
