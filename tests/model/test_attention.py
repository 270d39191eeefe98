"""Attention against softmax and a mask written out, and the cache against concatenation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor

from trainwell.model.attention import KVCache, attend

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def written_out(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The new tokens are the last ones: query i sees the keys up to its own place among all tokens."""
    new, total = queries.shape[2], keys.shape[2]
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
    for i in range(new):
        scores[:, :, i, total - new + i + 1 :] = -math.inf
    return torch.softmax(scores, dim=3) @ values


@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    past=st.integers(0, 6),
    new=st.integers(1, 6),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@examples(max_examples=30)
def test_attention_is_softmax_of_what_came_before(
    rows: int, heads: int, past: int, new: int, size: int, seed: int
) -> None:
    queries = drawn(seed, rows, heads, new, size)
    keys, values = drawn(seed + 1, 2, rows, heads, past + new, size)
    mixed = attend(queries, keys, values, dropout=0.0)
    torch.testing.assert_close(mixed, written_out(queries, keys, values), rtol=1e-12, atol=1e-12)


def test_the_first_token_attends_to_itself_alone() -> None:
    queries, keys, values = drawn(0, 3, 2, 2, 5, 4)
    torch.testing.assert_close(attend(queries, keys, values, dropout=0.0)[:, :, 0], values[:, :, 0])


def test_dropout_drops_attention_weights_and_keeps_their_expectation() -> None:
    torch.manual_seed(0)
    for new in (64, 32):  # both paths: all tokens new, and some in a cache
        queries, keys = drawn(1, 1, 8, new, 4), drawn(2, 1, 8, 64, 4)
        ones = torch.ones_like(keys)
        torch.testing.assert_close(attend(queries, keys, ones, dropout=0.0), torch.ones_like(queries))
        dropped = attend(queries, keys, ones, dropout=0.5)
        assert dropped.std() > 0.05
        assert abs(dropped.mean() - 1) < 0.1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 99))
@examples(max_examples=30)
def test_a_cache_gives_back_everything_it_was_given_layer_by_layer(pieces: list[int], seed: int) -> None:
    keys, values = drawn(seed, 2, 2, 3, sum(pieces), 4)
    cache = KVCache(num_layers=2)
    assert cache.length == 0
    for new_keys, new_values in zip(keys.split(pieces, dim=2), values.split(pieces, dim=2), strict=True):
        all_keys, all_values = cache.extend(0, new_keys, new_values)
        other, _ = cache.extend(1, -new_keys, new_values)
    assert torch.equal(all_keys, keys)
    assert torch.equal(all_values, values)
    assert torch.equal(other, -keys)
    assert cache.length == sum(pieces)
