"""A run folder as training leaves it, written in milliseconds: a made-up curve with the marks of a real one."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

FolderMaker = Callable[..., Path]

CONFIG = """\
name: demo
duration: {num_steps}
batch_size: 16
micro_batch: 16
data: {{corpus: python-docs, tokenizer: bytes, seq_len: 128}}
model: {{num_layers: 4, num_heads: 4, width: 128}}
optim: {{lr: 3.0e-3}}
schedule: {{warmup: 10%, decay: cosine, min_lr: 10%}}
eval: {{every: 200, batches: 20}}
"""

SAMPLES = """\
=== step 400 | prompt 'The ' ===
The whe of the sat
is a
=== step 800 | prompt 'The ' ===
The with statement is used
"""

COUNTS = {
    "train_tokens": 496_000,
    "val_tokens": 55_000,
    "train_bytes": 496_000,
    "val_bytes": 55_000,
    "vocab_size": 257,
    "fingerprint": "0123456789abcdef",
    "corpus": "python-docs",
    "corpus_sha256": "ab" * 32,
    "version": "CPython 3.11.7",
    "tokenizer": "bytes",
    "note": None,
    "num_texts": 1,
}


def rows(num_steps: int, taken: int) -> list[dict[str, Any]]:
    """Rows of a run of `num_steps` of which `taken` were taken: losses fall from 5.6 to about 1.3, norms settle."""
    dice = random.Random(7)
    warmup, windows = num_steps // 10, 3874
    out: list[dict[str, Any]] = []
    for step in range(taken):
        progress = (step + 1) / num_steps
        if step < warmup:
            lr = 3e-3 * (step + 1) / warmup
        else:
            lr = 3e-4 + 2.7e-3 * (1 + math.cos(math.pi * (step + 1 - warmup) / (num_steps - warmup))) / 2
        loss = 1.25 + 1.2 * math.exp(-6 * progress) + 3.1 * math.exp(-90 * progress) + dice.gauss(0, 0.05)
        norm = (0.45 + 2.2 * math.exp(-25 * progress)) * math.exp(dice.gauss(0, 0.18))
        if step % 200 == 0:
            out.append(
                {"step": step, "tokens": step * 2048, "val/loss": loss + 0.06, "val/bpb": (loss + 0.06) / 0.6931}
            )
        out.append(
            {
                "step": step,
                "tokens": (step + 1) * 2048,
                "epoch": (step + 1) * 16 / windows,
                "time": 0.1 * step,
                "train/loss": loss,
                "train/lr": lr,
                "train/grad_norm": norm,
                "train/clipped": norm > 1,
                "train/skipped": 0,
                "train/tokens_per_sec": 20_480.0,
                "train/step_ms": 100.0,
            }
        )
    if taken == num_steps:
        out.append({"step": taken, "tokens": taken * 2048, "val/loss": 1.33, "val/bpb": 1.92})
    return out


@pytest.fixture
def make_run(tmp_path: Path) -> FolderMaker:
    """Write a run folder and return its path."""

    def make(num_steps: int = 1200, taken: int | None = None, *, name: str = "demo") -> Path:
        folder = RunDir(tmp_path / name)
        folder.create()
        folder.config_yaml.write_text(CONFIG.format(num_steps=num_steps))
        folder.env_json.write_text(json.dumps({"device": "cpu", "precision": "fp32", "counts": COUNTS}))
        MetricsFile(folder.metrics_jsonl).append(*rows(num_steps, num_steps if taken is None else taken))
        folder.samples_txt.write_text(SAMPLES)
        checkpoint = folder.checkpoints / "step-400"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
        (folder.checkpoints / "step-800").mkdir()
        return folder.path

    return make
