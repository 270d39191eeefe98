"""Encoding, windows, loaders and samples, against the book's own and tiktoken's interface."""

from typing import Any

import pytest
import tiktoken
import torch

from trainwell.book import (
    GPTModel,
    create_dataloader_v1,
    generate_and_print_sample,
    generate_text_simple,
    get_encoding,
    text_to_token_ids,
    token_ids_to_text,
)
from trainwell.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "Every effort moves you. " * 40
CFG: dict[str, Any] = {
    "vocab_size": 28,
    "context_length": 6,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the encoding where tiktoken keeps those that it has fetched: the oracle asks it for one by name."""
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", get_encoding("gpt2"))


def test_the_encoding_is_tiktokens_own() -> None:
    encoding = get_encoding("gpt2")
    assert isinstance(encoding, tiktoken.Encoding)
    assert (encoding.name, encoding.n_vocab, encoding.eot_token) == ("gpt2", 50257, 50256)
    ids = encoding.encode("Hello, world<|endoftext|>", allowed_special={"<|endoftext|>"})
    assert ids == [15496, 11, 995, 50256]
    assert encoding.decode(ids) == "Hello, world<|endoftext|>"
    assert get_encoding("gpt2") is encoding


def test_another_encoding_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cl100k_base' does not come with trainwell; the one that does is gpt2"):
        get_encoding("cl100k_base")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "how",
    [
        {"max_length": 16},
        {"batch_size": 2, "max_length": 16, "stride": 16, "drop_last": False},
        {"batch_size": 3, "max_length": 8, "stride": 5, "shuffle": False, "num_workers": 0},
    ],
)
def test_a_loader_gives_the_books_batches_and_draws_what_it_draws(theirs: Any, how: dict[str, Any]) -> None:
    outcomes = []
    for create in (theirs.create_dataloader_v1, create_dataloader_v1):
        torch.manual_seed(123)
        loader: Any = create(TEXT, **how)
        seen = [(inputs.tolist(), targets.tolist()) for _ in range(2) for inputs, targets in loader]
        outcomes.append((seen, len(loader), len(loader.dataset), torch.rand(()).item()))
    assert outcomes[0] == outcomes[1]


def test_a_text_too_short_for_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="txt: 960 characters are too few tokens for a window of max_length 5000"):
        create_dataloader_v1(TEXT, max_length=5000)


def test_text_becomes_ids_and_comes_back(theirs: Any) -> None:
    encoding = get_encoding("gpt2")
    ids = text_to_token_ids(TEXT, encoding)
    assert torch.equal(ids, theirs.text_to_token_ids(TEXT, encoding))
    assert ids.shape[0] == 1
    assert token_ids_to_text(ids, encoding) == theirs.token_ids_to_text(ids, encoding) == TEXT


def test_generated_ids_are_the_books(theirs: Any) -> None:
    torch.manual_seed(1)
    model = GPTModel(CFG).eval()
    prompts = torch.randint(28, (2, 4))
    found = generate_text_simple(model=model, idx=prompts, max_new_tokens=9, context_size=6)
    assert torch.equal(found, theirs.generate_text_simple(model, prompts, 9, 6))
    assert found.shape == (2, 13)


def test_a_printed_sample_is_the_books_and_leaves_the_model_training(
    theirs: Any, letters: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    model = GPTModel(CFG).eval()
    theirs.generate_and_print_sample(model, letters, "cpu", "every boat")
    expected = capsys.readouterr().out
    model.eval()
    generate_and_print_sample(model, letters, "cpu", "every boat")
    assert capsys.readouterr().out == expected
    assert len(expected) == len("every boat") + 50 + 1
    assert model.training


def test_a_sample_is_printed_on_one_line(gpt2_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Lines:
        def encode(self, text: str, **_: Any) -> list[int]:
            return [1, 2]

        def decode(self, ids: list[int]) -> str:
            return "\n".join(map(str, ids))

    generate_and_print_sample(gpt2_of(), Lines(), torch.device("cpu"), "any")
    assert capsys.readouterr().out.count("\n") == 1
