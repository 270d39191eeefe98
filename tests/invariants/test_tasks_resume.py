"""A run that was killed in the middle and started again equals one that was not, for every task and architecture."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DRIVER = """
import json, os, signal, sys
import trainwell as tw

for job in json.loads(sys.argv[1]):
    with tw.build("demo", run_dir=job["run"], **job["keys"]) as run:
        for result in tw.steps(run):
            if result.step + 1 == job["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
    assert run.trainer.step == run.num_steps
"""

STEPS, SAVED, KILLED = 12, 4, 6
LLAMA = {"arch": "llama", "num_kv_heads": 1, "qk_norm": True}
CASES: dict[str, dict[str, Any]] = {
    "llama-pretrain": {"model": LLAMA, "data": {"path": "text.txt"}},
    "gpt2-instruct": {"task": "instruct", "data": {"path": "questions.jsonl", "template": "template.txt"}},
    "gpt2-classify": {"task": "classify", "data": {"path": "labelled.csv"}, "optim": {"train": "last-block"}},
    "llama-instruct-packed": {
        "task": "instruct",
        "model": LLAMA,
        "data": {"path": "questions.jsonl", "template": "template.txt", "rows": "packed"},
    },
    "llama-classify": {"task": "classify", "model": LLAMA, "data": {"path": "labelled.csv"}},
}
ALL: dict[str, Any] = {
    "duration": STEPS,
    "batch_size": 6,
    "micro_batch": 2,
    "eval": {"every": 3, "batches": 1},
    "sample": {"every": None},
    "checkpoint": {"every": SAVED},
}
MODEL: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.1}
DATA: dict[str, Any] = {"seq_len": 48, "val_fraction": 0.25}


def job(case: str, kind: str, kill: int | None = None) -> dict[str, Any]:
    keys = ALL | CASES[case]
    keys = keys | {"model": MODEL | keys.get("model", {}), "data": DATA | keys["data"]}
    return {"run": f"{kind}/{case}", "kill": kill, "keys": keys}


def write_sets(folder: Path) -> None:
    """Sums to answer, and texts of two classes; of different lengths."""
    questions = [{"instruction": f"{a} + {b}", "output": str(a + b) * (a % 3 + 1)} for a in range(9) for b in range(5)]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(each) for each in questions))
    (folder / "template.txt").write_text("Q: {instruction}\nA: {output}")
    labelled = [
        f"{'even' if n % 2 == 0 else 'odd'} {'x' * (n % 7)} {n},{'even' if n % 2 == 0 else 'odd'}" for n in range(60)
    ]
    (folder / "labelled.csv").write_text("\n".join(["text,label", *labelled]))


def test_killed_and_started_again_is_bitwise_never_having_been_killed(
    start: Callable[..., subprocess.Popen[str]],
    end: Callable[..., str],
    outcome_of: Callable[[Path, int], Any],
    tmp_path: Path,
) -> None:
    write_sets(tmp_path)
    straight = start("-c", DRIVER, json.dumps([job(case, "straight") for case in CASES]))
    for case in CASES:
        end(start("-c", DRIVER, json.dumps([job(case, "killed", KILLED)])), code=-signal.SIGKILL)
        assert (tmp_path / "killed" / case / "checkpoints" / f"step-{SAVED}").is_dir()
    end(straight)
    end(start("-c", DRIVER, json.dumps([job(case, "killed") for case in CASES])))
    for case in CASES:
        ours, theirs = (outcome_of(tmp_path / kind / case, STEPS) for kind in ("straight", "killed"))
        for part, (one, other) in zip(("tensors", "state", "losses"), zip(ours, theirs, strict=True), strict=True):
            assert one == other, f"{case}: {part} differ"
