"""Attention by products against softmax written out, and dropout against the probability it was asked for."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainwell.model.attention import attend
from trainwell.model.cpu_kernels import CausalAttention, Dropout, keep

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed)).to(dtype)


def parts(length: int, dtype: torch.dtype = torch.float64, size: int = 4) -> list[Tensor]:
    return [drawn(seed, 2, 3, length, size, dtype=dtype).requires_grad_() for seed in range(3)]


def gradients(mixed: Tensor, of: list[Tensor], seed: int = 9) -> list[Tensor]:
    return list(torch.autograd.grad(mixed, of, drawn(seed, *mixed.shape).to(mixed.dtype)))


def products(queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float) -> Tensor:
    mixed: Any = CausalAttention.apply(queries, keys, values, dropout)  # type: ignore[no-untyped-call]
    return mixed  # type: ignore[no-any-return]


def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return scaled_dot_product_attention(queries, keys, values, is_causal=True)


@pytest.mark.parametrize("length", [1, 5, 64, 256, 257, 600])
def test_without_dropout_it_is_torch_s_attention_with_the_same_gradients(length: int) -> None:
    given = parts(length)
    theirs = causal(*given)
    ours = products(*given, dropout=0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for own, oracle in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(own, oracle, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [3, 300])
def test_with_dropout_it_is_softmax_times_the_drawn_mask(length: int) -> None:
    """The oracle draws the same bits block by block, and leaves the gradient to autograd."""
    given, dropout = parts(length), 0.25
    torch.manual_seed(4)
    ours = products(*given, dropout=dropout)
    torch.manual_seed(4)
    queries, keys, values = (part.flatten(0, 1) for part in given)
    rows = []
    for start in range(0, length, 256):
        end = min(start + 256, length)
        scores = queries[:, start:end] @ keys[:, :end].transpose(1, 2) / math.sqrt(queries.shape[2])
        unseen = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        weights = scores.masked_fill(unseen, -math.inf).softmax(dim=2)
        rows.append(weights * keep(weights.shape, dropout, weights.dtype) / (1 - dropout) @ values[:, :end])
    theirs = torch.cat(rows, dim=1).view(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for own, oracle in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(own, oracle, rtol=1e-10, atol=1e-12)


def test_in_bf16_its_gradients_are_as_near_to_float64_as_those_of_torch() -> None:
    given = parts(192, torch.bfloat16, size=32)
    exact = [part.detach().double().requires_grad_() for part in given]
    oracle = gradients(causal(*exact), exact)

    def error(mixed: Tensor) -> float:
        found = gradients(mixed, given)
        return max(float((own - true).norm() / true.norm()) for own, true in zip(found, oracle, strict=True))

    assert error(products(*given, dropout=0.0)) < 1.5 * error(causal(*given)) < 0.01


def test_heads_that_share_keys_get_the_gradients_of_all_their_queries() -> None:
    queries, keys, values = drawn(0, 2, 6, 9, 4), drawn(1, 2, 2, 9, 4), drawn(2, 2, 2, 9, 4)
    given = [part.requires_grad_() for part in (queries, keys, values)]
    theirs = attend(queries, keys, values, dropout=0.0)
    ours = attend(queries, keys, values, dropout=0.0, kernel="products")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for own, oracle in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(own, oracle, rtol=1e-10, atol=1e-12)


@examples(max_examples=30, deadline=None)
@given(dropout=st.floats(0.0, 0.95), rows=st.integers(1, 7), seed=st.integers(0, 99))
def test_the_share_that_is_kept_is_the_one_asked_for(dropout: float, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    kept = keep(torch.Size((rows, 4001)), dropout, torch.float32)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    spread = math.sqrt(dropout * (1 - dropout) / kept.numel())
    assert abs(float(kept.mean()) - (1 - dropout)) <= 6 * spread + 2**-17


def test_masks_of_neighbours_are_independent() -> None:
    """Four values share a random word: their masks must not know of each other."""
    torch.manual_seed(0)
    kept = keep(torch.Size((100_000, 4)), 0.5, torch.float32)
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.02


def test_dropout_keeps_the_mean_and_passes_the_gradient_where_it_kept_the_value() -> None:
    layer, x = Dropout(0.1), torch.ones(200, 500, requires_grad=True)
    torch.manual_seed(1)
    y = layer(x)
    assert abs(float(y.detach().mean()) - 1) < 0.01
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())


def test_the_mask_is_a_function_of_the_seed() -> None:
    layer, x = Dropout(0.3), torch.ones(7, 9)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)


def test_nothing_is_dropped_outside_of_training_or_at_no_probability() -> None:
    x = torch.ones(3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
