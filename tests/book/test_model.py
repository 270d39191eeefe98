"""The book's model: its names, its draws and its rounding."""

from typing import Any

import pytest
import torch

from trainwell.book import GPTModel
from trainwell.model.gpt2 import GPT2, init_torch

pytestmark = pytest.mark.usefixtures("one_thread")

CFG: dict[str, Any] = {
    "vocab_size": 19,
    "context_length": 12,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def made(kind: Any, **changes: Any) -> Any:
    torch.manual_seed(123)
    return kind(CFG | changes)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_names_order_and_initial_weights_are_the_books(theirs: Any, qkv_bias: bool) -> None:
    their_state, our_state = (made(kind, qkv_bias=qkv_bias).state_dict() for kind in (theirs.GPTModel, GPTModel))
    assert list(our_state) == list(their_state)
    assert all(torch.equal(our_state[name], their_state[name]) for name in their_state)
    drawn = [(made(kind), torch.rand(()).item())[1] for kind in (theirs.GPTModel, GPTModel)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
def test_logits_gradients_and_draws_are_the_books_bit_for_bit(theirs: Any, length: int, drop_rate: float) -> None:
    ids = torch.randint(19, (3, length), generator=torch.Generator().manual_seed(1))
    outcomes = []
    for kind in (theirs.GPTModel, GPTModel):
        model = made(kind, drop_rate=drop_rate)
        logits = model(ids)
        logits.logsumexp(-1).sum().backward()
        gradients = [tensor.grad.tolist() for tensor in model.parameters()]
        outcomes.append((logits.tolist(), gradients, torch.rand(()).item()))
    assert outcomes[0] == outcomes[1]


def test_weights_saved_by_the_book_fit(theirs: Any) -> None:
    model = GPTModel(CFG)
    model.load_state_dict(made(theirs.GPTModel).state_dict())
    assert torch.equal(model.out_head.weight, made(theirs.GPTModel).out_head.weight)


def test_it_is_the_function_that_trainwells_gpt2_is() -> None:
    model = made(GPTModel).eval()
    same = GPT2(vocab_size=19, seq_len=12, num_layers=2, num_heads=2, width=16, tie_head=False, qkv_bias=False)
    init_torch(same, torch.Generator().manual_seed(123))
    ids = torch.randint(19, (3, 12), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(ids), same.eval()(ids), atol=1e-5)


def test_the_books_124m_has_162_million_parameters() -> None:
    large = {"vocab_size": 50257, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
    with torch.device("meta"):
        model = GPTModel(CFG | large)
    assert sum(tensor.numel() for tensor in model.parameters()) == 162_419_712
