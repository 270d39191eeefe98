"""Plans of recipes over texts of given sizes, without any text."""

from typing import Protocol

import pytest

from trainwell.config.load import load
from trainwell.data.prepare import StoreInfo
from trainwell.planning.resolve import Plan, resolve

BASE: dict[str, object] = {
    "duration": 1200,
    "batch_size": 16,
    "micro_batch": 16,
    "data.seq_len": 128,
    "model.num_layers": 4,
    "model.num_heads": 4,
    "model.width": 128,
    "optim.lr": 3e-3,
    "schedule.warmup": "10%",
    "schedule.decay": "cosine",
    "schedule.min_lr": "10%",
    "eval.every": 200,
    "eval.batches": 20,
    "sample.every": 400,
    "checkpoint.every": 400,
}
"""The numbers the tests reason with, laid over the recipe `demo`, so that tuning it changes no test."""


class PlanOf(Protocol):
    """Plans a recipe with flags over so many tokens; without tokens, over no data.

    The recipe `demo` stands on BASE, below the flags, unless it is asked for as shipped.
    """

    def __call__(
        self,
        recipe: str = "demo",
        flags: dict[str, object] | None = None,
        tokens: int = 0,
        note: str | None = None,
        *,
        as_shipped: bool = False,
    ) -> Plan: ...


def info_of(train_tokens: int, vocab_size: int, note: str | None) -> StoreInfo:
    return StoreInfo(
        train_tokens=train_tokens,
        val_tokens=train_tokens // 8,
        train_bytes=train_tokens,
        val_bytes=train_tokens // 8,
        vocab_size=vocab_size,
        fingerprint="f",
        corpus="c",
        corpus_sha256="0" * 64,
        version=None,
        tokenizer="t",
        note=note,
        num_texts=1,
    )


@pytest.fixture
def plan_of() -> PlanOf:
    def plan(
        recipe: str = "demo",
        flags: dict[str, object] | None = None,
        tokens: int = 0,
        note: str | None = None,
        *,
        as_shipped: bool = False,
    ) -> Plan:
        below = BASE if recipe == "demo" and not as_shipped else {}
        config = load(recipe, flags=below | (flags or {}))
        vocab_size = {"bytes": 257, "chars": 65, "gpt2": 50257}[config.data.tokenizer]
        return resolve(config, info_of(tokens, vocab_size, note) if tokens else None)

    return plan
