"""Proofs on runs that take milliseconds, of loops as they are and of broken ones."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainwell.given import Given
from trainwell.planning.target import Start, find_start
from trainwell.prove.checks import prove
from trainwell.prove.verdict import Verdict

TINY: dict[str, Any] = {
    "duration": 40,
    "batch_size": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "data.seq_len": 16,
    "data.val_fraction": 0.25,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.width": 16,
    "optim.lr": 3e-3,
    "schedule.warmup": 8,
    "eval.every": None,
    "sample.every": None,
}


@pytest.fixture
def start_of(own_folders: Path, one_thread: None, text: Path) -> Callable[..., Start]:
    """Where a tiny run would start, with keys changed."""

    def make(**changes: Any) -> Start:
        keys = {key.replace("__", "."): value for key, value in changes.items()}
        return find_start("demo", flags={**TINY, "data.path": str(text), **keys}, run=own_folders / "mine")

    return make


@pytest.fixture
def proved(start_of: Callable[..., Start]) -> Callable[..., dict[str, Verdict]]:
    """Verdicts by name, of a tiny run with keys changed; `make` says how twins are put together."""

    def make(
        *only: str, make: Any = None, given: Given | None = None, small: bool = False, **changes: Any
    ) -> Mapping[str, Verdict]:
        found = prove(start_of(**changes), given, make=make, only=only, small=small)
        return {verdict.name: verdict for verdict in found}

    return make  # type: ignore[return-value]


@pytest.fixture
def failing() -> Callable[[Mapping[str, Verdict]], list[str]]:
    """The names of the promises that do not hold."""
    return lambda verdicts: [name for name, verdict in verdicts.items() if not verdict.passed]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started must find the modules of these tests, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    assert sys.path
