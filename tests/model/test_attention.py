"""Attention against softmax written out, the cache against concatenation, packed rows against single ones."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor

from trainwell.model.attention import KVCache, attend, place

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def written_out(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The new tokens are the last ones: query i sees the keys up to its own place among all tokens.

    Where keys have fewer heads, each serves as many heads of queries that follow each other.
    """
    keys, values = (
        torch.stack([heads[:, head * keys.shape[1] // queries.shape[1]] for head in range(queries.shape[1])], dim=1)
        for heads in (keys, values)
    )
    new, total = queries.shape[2], keys.shape[2]
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
    for i in range(new):
        scores[:, :, i, total - new + i + 1 :] = -math.inf
    return torch.softmax(scores, dim=3) @ values


@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    past=st.integers(0, 6),
    new=st.integers(1, 6),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@examples(max_examples=30)
def test_attention_is_softmax_of_what_came_before(
    rows: int, heads: int, groups: int, past: int, new: int, size: int, seed: int
) -> None:
    queries = drawn(seed, rows, heads * groups, new, size)
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


@st.composite
def packed(draw: st.DrawFn) -> list[list[list[int]]]:
    """Rows of documents of ids below 19, each row 12 ids long; a row may be one document or twelve."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, 11), max_size=11)))
        ids = draw(st.lists(st.integers(0, 18), min_size=12, max_size=12))
        rows.append([ids[start:end] for start, end in zip([0, *cuts], [*cuts, 12], strict=True)])
    return rows


def ids_and_documents(rows: list[list[list[int]]], first: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[token for document in row for token in document] for row in rows])
    numbers = [[first + number for number, document in enumerate(row) for _ in document] for row in rows]
    return ids, torch.tensor(numbers)


@given(packed(), st.integers(0, 5))
@examples(max_examples=30)
def test_a_token_may_look_at_the_start_of_its_document_up_to_itself(rows: list[list[list[int]]], first: int) -> None:
    ids, documents = ids_and_documents(rows, first)
    positions, mask = place(ids, None, documents)
    assert positions.tolist() == [[place for document in row for place in range(len(document))] for row in rows]
    assert mask is not None
    assert mask.shape == (len(rows), 1, 12, 12)
    for row, numbers in enumerate(documents.tolist()):
        for token in range(12):
            looked_at = [other for other in range(token + 1) if numbers[other] == numbers[token]]
            assert mask[row, 0, token].nonzero().flatten().tolist() == looked_at


def test_without_documents_positions_continue_the_cache_and_causal_is_enough() -> None:
    cache = KVCache(num_layers=1)
    cache.extend(0, *drawn(0, 2, 1, 1, 5, 4))
    positions, mask = place(torch.zeros((1, 3), dtype=torch.int64), cache, None)
    assert positions.tolist() == [5, 6, 7]
    assert mask is None


def surprise_and_gradients(model: Any, rows: list[Tensor], documents: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """A loss of all logits with weights that differ from token to token, and its gradients."""
    model.zero_grad()
    logits = torch.cat([model(row, documents=documents).flatten(0, 1) for row in rows])
    (logits.log_softmax(dim=1) * drawn(5, *logits.shape)).sum().backward()
    return logits.detach(), [weight.grad for weight in model.parameters()]


@given(packed(), st.integers(0, 9))
@examples(max_examples=15)
def test_packed_documents_are_read_as_if_each_had_a_row_of_its_own(
    either_of: Callable[..., Any], rows: list[list[list[int]]], seed: int
) -> None:
    model = either_of(dtype=torch.float64, seed=seed)
    ids, documents = ids_and_documents(rows)
    together, gradients = surprise_and_gradients(model, [ids], documents)
    single = [torch.tensor([document]) for row in rows for document in row]
    alone, gradients_alone = surprise_and_gradients(model, single, None)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, gradients_alone, rtol=1e-12, atol=1e-12)


def test_nothing_leaks_from_one_document_into_another(either_of: Callable[..., Any]) -> None:
    model = either_of(dtype=torch.float64)
    ids, documents = ids_and_documents([[[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11, 12]]])
    with torch.no_grad():
        whole = model(ids, documents=documents)
        for position in range(12):
            changed = ids.clone()
            changed[0, position] = 18
            touched = (model(changed, documents=documents) != whole).any(dim=2)[0]
            own = documents[0] == documents[0, position]
            assert not touched[~own].any()
            assert touched[own].tolist() == [token >= position for token in own.nonzero().flatten().tolist()]


def test_one_document_to_a_row_changes_nothing(either_of: Callable[..., Any]) -> None:
    model = either_of(dtype=torch.float64)
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, documents=torch.full((1, 12), 3)), model(ids), rtol=1e-12, atol=1e-12)
