"""The observer effect, which is to be zero: everything that looks at a run, on, against all of it off.

Weights, moments, guard and every loss and norm must be equal to the bit.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.soak.figures import counted
from benchmarks.soak.kills import work_folder
from benchmarks.soak.tiny import settings

from trainwell.build import build
from trainwell.checkpoint.state import pack
from trainwell.fit import steps

_STEPS = 30
_ON: dict[str, Any] = {
    "eval": {"every": 1, "batches": 2},
    "sample": {"every": 1, "tokens": 4, "prompt": "the "},
    "checkpoint": {"every": 1, "keep": 3, "best": True, "asynchronous": True},
    "log": {"every": 1, "plots": False},
    "guard": {"policy": "log", "k": 0.01, "window": 8},
}
_OFF: dict[str, Any] = {
    "eval": {"every": None, "batches": 2},
    "sample": {"every": None},
    "checkpoint": {"every": None, "keep": 3, "best": False, "asynchronous": False},
    "log": {"every": 1_000_000, "plots": False},
    "guard": {"policy": "log", "k": 1e9, "window": 8},
}
"""A spike guard that sees a spike in many a step, and so measures it; and one that sees none."""
_MANY = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"model.arch": "gpt2"},
    "llama": {"model.arch": "llama"},
    "gpt2, muon": {"model.arch": "gpt2", "optim.name": "muon"},
    "gpt2, reference kernels": {"model.arch": "gpt2", "kernels": "reference"},
}
"""What is looked at; each with dropout."""


def _trained(folder: Path, seed: int, variant: Mapping[str, Any], observers: Mapping[str, Any]) -> dict[str, Any]:
    """Train it and give what must be equal, in a form whose `==` compares bits."""
    keys = settings(seed, duration=_STEPS, **variant) | {"data.path": str(folder.parent / "text.txt")}
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    with contextlib.redirect_stdout(io.StringIO()), build("demo", run_dir=folder, **nested | dict(observers)) as run:
        seen = [(result.step, _bits(result.loss), _bits(result.grad_norm), result.lr) for result in steps(run)]
        state = run.trainer.state_dict()
    incidents = len([*folder.glob("incidents/*.json")])
    if (incidents >= _MANY) != (observers is _ON):
        raise RuntimeError(f"{folder.name} has {incidents} incidents: the spike guard does not look when it should")
    found: dict[str, Any] = {"losses and norms": seen}
    for part in ("model", "optimizer"):
        plain, tensors = pack(state[part])
        found[part] = (json.dumps(plain), {name: _bits(tensor) for name, tensor in tensors.items()})
    return found


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def compared(folder: Path, seed: int, name: str) -> list[str]:
    """Train one variant with one seed in both ways; names of what differs."""
    on, off = (
        _trained(folder / f"{seed}-{number}-{how}", seed, VARIANTS[name], observers)
        for number, (how, observers) in enumerate((("on", _ON), ("off", _OFF)))
    )
    return [f"{name}, seed {seed}: {part} differ" for part in off if on[part] != off[part]]


def run(count: int = 5, seed: int = 0, *, variants: Sequence[str] = tuple(VARIANTS)) -> dict[str, Any]:
    """Compare every variant with `count` seeds, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for name in variants:
            with work_folder() as folder:
                trials = [compared(folder, number, name) for number in range(seed, seed + count)]
            rows.append(counted(f"{name}: everything on equals everything off, to the bit", trials))
    finally:
        torch.set_num_threads(threads)
    return {"rows": rows}
