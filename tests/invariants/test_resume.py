"""A run that was stopped and resumed, at any step and in fresh processes, equals one that never stopped: to the bit."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DRIVER = """
import json, os, signal, sys
import torch
from torch.optim.swa_utils import AveragedModel
import trainwell as tw

class Counting:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        ids = [(index * 7 + place * place) % 257 for place in range(17)]
        return ids[:-1], ids[1:]

assert torch.get_num_threads() == 2
codes = []
for job in json.loads(sys.argv[1]):
    given = {"data": Counting()} if job["given"] else {}
    run = tw.build("demo", run_dir=job["run"], **given, **job["keys"])
    average = AveragedModel(run.model)
    run.keep("average", average)
    signal.signal(signal.SIGTERM, lambda number, frame: run.stop())
    with run:
        for result in tw.steps(run):
            average.update_parameters(run.model)
            if result.step + 1 == job["stop"]:
                os.kill(os.getpid(), signal.SIGTERM)
    codes.append(75 if run.trainer.step < run.num_steps else 0)
    assert run.trainer.step == job["stop"]
print(json.dumps(codes))
"""

STEPS = 12
TINY: dict[str, Any] = {
    "duration": STEPS,
    "batch_size": 4,
    "micro_batch": 2,
    "eval": {"every": 4, "batches": 2},
    "sample": {"every": None},
    "checkpoint": {"every": 4},
}
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "fp32": ({"precision": "fp32", "dropout": 0.0}, [3, 5]),  # twice within the first epoch of eight steps
    "fp32-dropout": ({"precision": "fp32", "dropout": 0.1}, [5, 8]),  # inside it, and at its end
    "bf16": ({"precision": "bf16", "dropout": 0.0}, [8, 9]),
    "bf16-dropout": ({"precision": "bf16", "dropout": 0.1}, [1, 11]),
    "compiled": ({"precision": "fp32", "dropout": 0.1, "compile": True}, [5]),
}


def job(case: str, kind: str, stop: int) -> dict[str, Any]:
    keys = dict(CASES[case][0])
    model = {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": keys.pop("dropout")}
    given = case == "compiled"  # without validation, so that half as much is compiled
    data = {} if given else {"data": {"path": "text.txt", "seq_len": 16, "val_fraction": 0.25}}
    return {"run": f"{kind}/{case}", "given": given, "stop": stop, "keys": TINY | data | keys | {"model": model}}


def test_stopping_and_resuming_is_bitwise_never_having_stopped(
    start: Callable[..., subprocess.Popen[str]],
    end: Callable[..., str],
    outcome_of: Callable[[Path, int], Any],
    tmp_path: Path,
) -> None:
    eager = [case for case in CASES if case != "compiled"]

    def process(*jobs: dict[str, Any]) -> subprocess.Popen[str]:
        return start("-c", DRIVER, json.dumps(jobs))

    def codes(started: subprocess.Popen[str]) -> list[int]:
        found: list[int] = json.loads(end(started).splitlines()[-1])
        return found

    compiling = process(job("compiled", "resumed", CASES["compiled"][1][0]))  # the slow one, while the others run
    assert codes(process(*[job(case, "straight", STEPS) for case in eager])) == [0] * 4
    for turn in range(2):
        assert codes(process(*[job(case, "resumed", CASES[case][1][turn]) for case in eager])) == [75] * 4
    assert codes(compiling) == [75]
    resuming = process(job("compiled", "resumed", STEPS))
    last = process(*[job(case, "resumed", STEPS) for case in eager], job("compiled", "straight", STEPS))
    assert codes(resuming) == [0]
    assert codes(last) == [0] * 5
    for case in CASES:
        ours, theirs = (outcome_of(tmp_path / kind / case, STEPS) for kind in ("straight", "resumed"))
        for part, (one, other) in zip(("tensors", "state", "losses"), zip(ours, theirs, strict=True), strict=True):
            assert one == other, f"{case}: {part} differ"
    ends = [outcome_of(tmp_path / "straight" / case, STEPS)[0]["tensors.safetensors"] for case in CASES]
    assert len(set(ends)) == len(ends), "the cases are different runs"
