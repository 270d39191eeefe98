"""The run that the soak kills, damages and interrupts: a second long, and with everything in it that a run can do.

Its configuration is drawn from a seed, so that a hundred seeds are a hundred different runs.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainwell.checkpoint.layout import read_manifest, saved_steps
from trainwell.errors import StorageError
from trainwell.runs.metrics import MetricsFile

_CLOCK = {"time", "train/tokens_per_sec", "train/step_ms", "train/data_ms", "train/mfu"}
_OF_A_RESTART = {"attempts", "plots", "log.txt"}
_WORDS = ["the", "tide", "turns", "and", "every", "boat", "knows", "its", "way", "home"]


def write_text(folder: Path) -> None:
    """Put `text.txt`, 1,500 characters that are always the same, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(" ".join(random.Random(7).choices(_WORDS, k=400))[:1500])


def settings(seed: int, **changes: object) -> dict[str, Any]:
    """Keys of a run of 40 to 90 steps with dropout, evaluations and samples, no plots; `changes` has the last word."""
    dice = random.Random(seed)
    drawn = {
        "seed": seed,
        "duration": dice.randint(40, 90),
        "batch_size": 4,
        "micro_batch": dice.choice([2, 4]),
        "precision": "fp32",
        "data.path": "text.txt",
        "data.seq_len": 16,
        "data.val_fraction": 0.25,
        "data.tokenizer": dice.choice(["bytes", "chars"]),
        "model.arch": dice.choice(["gpt2", "llama"]),
        "model.num_layers": 1,
        "model.num_heads": 2,
        "model.width": 16,
        "model.dropout": 0.1,
        "optim.lr": 3e-3,
        "eval.every": dice.randint(7, 25),
        "eval.batches": 2,
        "sample.every": dice.randint(7, 25),
        "sample.prompt": "the ",
        "sample.tokens": 8,
        "checkpoint.every": dice.randint(3, 12),
        "checkpoint.keep": dice.randint(2, 4),
        "checkpoint.asynchronous": dice.random() < 0.5,
        "log.every": dice.choice([1, 10]),
        "log.plots": False,
    }
    return drawn | changes


def train(run: str, keys: Mapping[str, object]) -> list[str]:
    """The command line that starts or continues it in `runs/RUN`."""
    flags = [text for key, value in keys.items() for text in (f"--{key.replace('_', '-')}", _word(value))]
    return ["train", "demo", "--run", f"runs/{run}", *flags]


def _word(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def outcome(run: Path, step: int) -> dict[str, Any]:
    """What must be equal to the bit: the last checkpoint, every logged value, every sample, what describes the run."""
    directory = run / "checkpoints" / f"step-{step}"
    manifest = read_manifest(directory)
    records = MetricsFile(run / "metrics.jsonl").read()
    samples = run / "samples.txt"
    return {
        "tensors": {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))},
        "state": json.dumps(manifest.state),
        "steps": [_without_clock(row) for row in records.train],
        "evaluations": [_without_clock(row) for row in records.val],
        "samples": samples.read_text() if samples.exists() else "",
        "config": (run / "config.yaml").read_text(),
        "facts": json.dumps(_facts(run / "env.json")),
        "files": sorted(path.name for path in run.iterdir() if path.name not in _OF_A_RESTART),
    }


def _facts(env: Path) -> dict[str, Any]:
    """What env.json says of the data; what is wrong with the file where it cannot be read."""
    try:
        return {"data": json.loads(env.read_text())["data"]}
    except (OSError, ValueError, KeyError) as error:
        return {"env.json": str(error)}


def _without_clock(row: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in _CLOCK}, sort_keys=True)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the parts of two outcomes that differ, with the first place where lists do."""
    found = []
    for name in one:
        if one[name] == other[name]:
            continue
        pairs = zip(one[name], other[name], strict=False) if isinstance(one[name], list) else ()
        place = next(
            (f" at {index}: {ours} and {theirs}" for index, (ours, theirs) in enumerate(pairs) if ours != theirs), ""
        )
        found.append(f"{name} differ{place}")
    return found


def newest_good(run: Path) -> int | None:
    """The newest step whose checkpoint verifies, judged without the run; None where there is none."""
    for step in reversed(saved_steps(run / "checkpoints")):
        try:
            read_manifest(run / "checkpoints" / f"step-{step}")
        except StorageError:
            continue
        return step
    return None


def on_record(run: Path) -> int:
    """Steps that the metrics file has on record; a torn last line does not count."""
    rows = MetricsFile(run / "metrics.jsonl").read().train
    return int(rows[-1]["step"]) + 1 if rows else 0
