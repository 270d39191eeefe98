"""Plans of recipes over texts of given sizes, without any text."""

from typing import Protocol

import pytest

from trainwell.config.load import load
from trainwell.data.prepare import StoreInfo
from trainwell.planning.resolve import Plan, resolve


class PlanOf(Protocol):
    """Plans a recipe with flags over so many tokens; without tokens, over no data."""

    def __call__(
        self, recipe: str = "demo", flags: dict[str, object] | None = None, tokens: int = 0, note: str | None = None
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
        recipe: str = "demo", flags: dict[str, object] | None = None, tokens: int = 0, note: str | None = None
    ) -> Plan:
        config = load(recipe, flags=flags)
        vocab_size = {"bytes": 257, "chars": 65, "gpt2": 50257}[config.data.tokenizer]
        return resolve(config, info_of(tokens, vocab_size, note) if tokens else None)

    return plan
