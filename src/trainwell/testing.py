"""For your own tests: a tiny run, faults at named places, several processes on one machine. Public.

Imports torch only when a run is made or processes are started.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwell.faults import POINTS, at

if TYPE_CHECKING:
    from trainwell.run import Run

__all__ = ["POINTS", "TINY", "at", "run_distributed", "tiny_corpus", "tiny_run"]

TINY: dict[str, Any] = {
    "duration": 12,
    "batch_size": 4,
    "micro_batch": 2,
    "data": {"seq_len": 16, "val_fraction": 0.25},
    "model": {"num_layers": 1, "num_heads": 2, "width": 16},
    "optim": {"lr": 3e-3},
    "schedule": {"warmup": 1},
    "eval": {"every": None, "batches": 2},
    "sample": {"every": None},
    "checkpoint": {"every": 4},
    "log": {"plots": False},
}
"""The keys of `tiny_run`: 12 steps of 4 x 16 tokens, 7,680 weights, a checkpoint every 4 steps, nothing drawn."""

_WORDS = ("the", "tide", "turns", "and", "every", "boat", "knows")


def tiny_corpus(folder: str | Path, *, characters: int = 900, seed: int = 7) -> Path:
    """Write `corpus.txt`, words drawn from a few, the same for the same `seed`, into `folder`; return its path.

    900 characters are 42 windows of 16 for training and 14 for validation, with the keys of `TINY`.
    """
    dice, path = random.Random(seed), Path(folder) / "corpus.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = dice.choices(_WORDS, k=characters)
    path.write_text(" ".join(words)[:characters], encoding="utf-8")
    return path


def tiny_run(folder: str | Path, **keys: Any) -> "Run":
    """Build a run that trains in well under a second, in `folder`/run, on a corpus written into `folder`.

    Args:
        folder: the test's own, such as pytest's `tmp_path`; one that holds the run already goes on with it.
        keys: parts, keys and sections of `trainwell.build`; keys of a section are added to those of `TINY`.

    Raises:
        ConfigError: as `build` does.

    Example:
        >>> with at("after_update@5"):          # the process dies there, as in a power cut
        ...     fit(tiny_run(tmp_path))
        >>> fit(tiny_run(tmp_path))             # goes on from step 4
    """
    from trainwell.build import build

    corpus = Path(folder) / "corpus.txt"
    data: dict[str, Any] = {"data": TINY["data"] | {"path": corpus if corpus.is_file() else tiny_corpus(folder)}}
    merged = TINY | data | keys
    for name, value in keys.items():
        if isinstance(value, Mapping) and isinstance(TINY.get(name), Mapping):
            merged[name] = (data if name == "data" else TINY)[name] | dict(value)
    return build("demo", run_dir=Path(folder) / "run", **merged)


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `fn(rank, world_size, *args)` in `world_size` processes joined by gloo; return what each returned.

    `fn` is defined at the top level of a module; it, its arguments and its results can be sent to another process.
    It fails with the traceback of the rank that failed first, or after `timeout_s` seconds.
    """
    from trainwell.distributed.local import run_distributed as run

    return run(fn, world_size, *args, timeout_s=timeout_s)
