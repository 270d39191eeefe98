"""Which windows a step reads, and every derived random number: pure functions of the seed and an address.

Knows no text, file or batch. Nothing here has state, so a resumed run asks the same and is answered the same.
"""

from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["shuffled", "sequential"]

_ROUNDS = 6


def seed_for(seed: int, *address: str | int) -> int:
    """Derive the seed of one random event, such as `seed_for(1337, "dropout", step, index)`.

    Returns an integer in [0, 2**63), the same on every machine and for ever.
    """
    digest = blake2b("/".join(str(part) for part in (seed, *address)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def count_windows(num_tokens: int, seq_len: int, stride: int) -> int:
    """Count the windows in `num_tokens` tokens.

    Window i starts at token i * stride; its inputs are seq_len tokens and its targets are the same one token later,
    so it covers seq_len + 1.
    """
    return max(0, (num_tokens - seq_len - 1) // stride + 1)


def windows_at(start: int, size: int, count: int, seed: int, order: Order) -> NDArray[np.int64]:
    """Give the window indices, shape (size,), of the examples start, start + 1, ... of a run over `count` windows.

    Every epoch holds each window once: example i is number i % count of epoch i // count. "shuffled" deals every epoch
    in an order of its own.
    """
    assert count > 0, "there is no window to read; prepare() refuses such data"
    epochs, windows = np.divmod(np.arange(start, start + size, dtype=np.int64), count)
    if order == "shuffled":
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            windows[mine] = permute(windows[mine], count, seed_for(seed, "order", int(epoch)))
    return windows


def permute(indices: NDArray[np.int64], count: int, key: int) -> NDArray[np.int64]:
    """Map `indices`, each in [0, count), through the shuffle of range(count) that `key` selects.

    The work per index does not depend on `count`, and no table is kept. A balanced Feistel network (Luby and Rackoff,
    1988) permutes the numbers of the smallest even number of bits that holds `count`; whatever leaves the range is sent
    through again until it is back (cycle walking, Black and Rogaway, 2002), fewer than four times on average.
    """
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    round_keys = [seed_for(key, "round", number) for number in range(_ROUNDS)]
    places = np.array(indices, dtype=np.uint64)
    outside = np.ones(places.shape, dtype=np.bool_)
    while outside.any():
        places[outside] = _feistel(places[outside], half_bits, round_keys)
        outside = places >= count
    return places.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, round_keys: list[int]) -> NDArray[np.uint64]:
    """Permute the numbers of 2 * half_bits bits; a round keeps the half it reads, so it can be undone."""
    shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(round_key)) & mask)
    return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014); products wrap on purpose."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
