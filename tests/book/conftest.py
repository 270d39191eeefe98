"""The book's own functions as the oracle, and trainings small enough to take a step in milliseconds."""

import random
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

ALPHABET = "abcdefghijklmnopqrstuvwxyz ."


class Letters:
    """A tokenizer with tiktoken's two methods: a letter is a token."""

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        return [ALPHABET.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(ALPHABET[index] for index in ids)


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()


@pytest.fixture(scope="session")
def theirs() -> SimpleNamespace:
    """The functions of the package that accompanies the book, under their own names."""
    found: dict[str, Any] = {}
    for module in ("ch02", "ch04", "ch05", "appendix_d"):
        found |= vars(import_module(f"llms_from_scratch.{module}"))
    return SimpleNamespace(**found)


@pytest.fixture(scope="session")
def ours() -> SimpleNamespace:
    """trainwell's functions of the same names."""
    return SimpleNamespace(**vars(import_module("trainwell.book")))


SMALL = {
    "vocab_size": len(ALPHABET),
    "context_length": 12,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


@pytest.fixture(scope="session")
def notebook(letters: Letters) -> Callable[..., dict[str, Any]]:
    """What the book's notebook has before it calls `train_model`, made with the functions of `book`.

    11 training windows and 3 validation windows, two a batch; seed 123 before the loaders and again before the model.
    """

    def prepare(book: Any, *, drop_last: bool = True, lr: float = 1e-2, **cfg: Any) -> dict[str, Any]:
        words = random.Random(3).choices(["the", "tide", "turns", "every", "boat", "knows."], k=60)
        text = " ".join(words)
        torch.manual_seed(123)

        def loader(part: str, **how: Any) -> Any:
            return DataLoader(book.GPTDatasetV1(part, letters, 12, 12), batch_size=2, **how)

        train_loader = loader(text[:140], shuffle=True, drop_last=drop_last)
        val_loader = loader(text[140:180], shuffle=False, drop_last=False)
        torch.manual_seed(123)
        model = book.GPTModel(SMALL | cfg)
        return {
            "model": model,
            "train_loader": train_loader,
            "val_loader": val_loader,
            "optimizer": torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1),
            "device": torch.device("cpu"),
            "start_context": "every boat",
            "tokenizer": letters,
        }

    return prepare
