"""The order of windows: a fresh, complete shuffle every epoch, as a function of the step alone."""

from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from trainwell.data.order import Order, count_windows, permute, seed_for, windows_at

COUNTS = st.integers(1, 3000)
KEYS = st.integers(0, 2**63 - 1)


def test_seeds_are_the_same_for_ever() -> None:
    assert seed_for(1337) == 8761435244890686201
    assert seed_for(1337, "order", 0) == 4632144111565391499
    assert seed_for(1337, "dropout", 12, 3) == 5894364673985892324


@given(st.integers(0, 2**64), st.lists(st.integers() | st.text(st.characters(codec="ascii"))))
def test_a_seed_fits_every_generator(seed: int, address: list[int | str]) -> None:
    assert 0 <= seed_for(seed, *address) < 2**63


def test_neighbouring_addresses_have_unrelated_seeds() -> None:
    seeds = {seed_for(seed, "dropout", step, index) for seed in range(5) for step in range(20) for index in range(20)}
    assert len(seeds) == 2000
    ones = sum(seed.bit_count() for seed in seeds) / (2000 * 63)
    assert abs(ones - 0.5) < 0.01


@given(COUNTS, KEYS)
@example(1, 0)
@example(2, 0)
@example(4096, 7)
@example(4097, 7)
def test_a_shuffle_holds_every_index_once(count: int, key: int) -> None:
    shuffled = permute(np.arange(count), count, key)
    assert shuffled.dtype == np.int64
    assert np.array_equal(np.sort(shuffled), np.arange(count))


@given(COUNTS, KEYS, st.data())
def test_an_index_lands_where_it_would_in_any_company(count: int, key: int, data: st.DataObject) -> None:
    some = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=8)), dtype=np.int64)
    assert np.array_equal(permute(some, count, key), permute(np.arange(count), count, key)[some])


def test_a_shuffle_of_a_trillion_costs_no_more_than_one_of_ten() -> None:
    far = permute(np.arange(10**12 - 5, 10**12), 10**12, 3)
    assert len(set(far.tolist())) == 5
    assert far.min() >= 0
    assert far.max() < 10**12


def test_all_orders_of_four_windows_are_about_equally_likely() -> None:
    epochs = 2400
    seen = Counter(tuple(permute(np.arange(4), 4, seed_for(1, epoch)).tolist()) for epoch in range(epochs))
    assert set(seen) == set(permutations(range(4)))
    expected = epochs / 24
    chi_square = sum((number - expected) ** 2 / expected for number in seen.values())
    assert chi_square < 49.7  # 23 degrees of freedom, one in a thousand


def test_the_shuffle_is_the_same_for_ever() -> None:
    assert permute(np.arange(10), 10, seed_for(1337, "order", 0)).tolist() == [6, 3, 2, 0, 7, 9, 8, 5, 4, 1]


@given(st.integers(0, 90), st.integers(0, 60), st.integers(1, 40), KEYS, st.sampled_from(["shuffled", "sequential"]))
def test_a_batch_is_a_slice_of_the_epochs_laid_end_to_end(
    start: int, size: int, count: int, seed: int, order: Order
) -> None:
    epochs = range((start + size) // count + 1)
    stream = np.concatenate([windows_at(epoch * count, count, count, seed, order) for epoch in epochs])
    assert np.array_equal(windows_at(start, size, count, seed, order), stream[start : start + size])


@given(st.integers(0, 50), COUNTS, KEYS)
def test_every_epoch_reads_every_window_once(epoch: int, count: int, seed: int) -> None:
    windows = windows_at(epoch * count, count, count, seed, "shuffled")
    assert np.array_equal(np.sort(windows), np.arange(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(windows_at(epoch * 50, 50, 50, seed, "shuffled")) for epoch in range(10) for seed in range(10)}
    assert len(orders) == 100


def test_sequential_order_is_file_order_again_and_again() -> None:
    assert windows_at(4, 5, 6, 1, "sequential").tolist() == [4, 5, 0, 1, 2]


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 50))
def test_windows_are_counted_as_they_fit(num_tokens: int, seq_len: int, stride: int) -> None:
    fitting = [start for start in range(0, num_tokens, stride) if start + seq_len + 1 <= num_tokens]
    assert count_windows(num_tokens, seq_len, stride) == len(fitting)


def test_the_books_windows_are_counted_as_in_the_book() -> None:
    assert count_windows(4612, 256, 256) == 18
