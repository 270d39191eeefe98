"""Ranks that are started again meet each other, and not what dead ones left in the store."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import FileStore, HashStore

from trainwell.distributed.meeting import meeting_store, own_corner

SHORT = timedelta(seconds=20)


def attempt(store: Any, size: int, *, last_first: bool = False) -> list[Any]:
    """What each rank of an attempt gets, all of them threads of this process."""
    found: list[Any] = [None] * size

    def meet(rank: int) -> None:
        found[rank] = own_corner(store, rank, size, SHORT)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(size)]
    for thread in reversed(threads) if last_first else threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("last_first", [False, True])
def test_ranks_of_one_attempt_share_a_corner_in_which_nothing_of_the_attempts_before_is_left(last_first: bool) -> None:
    store = HashStore()
    for number in range(4):
        corners = attempt(store, 3, last_first=last_first)
        assert not any(corner.check(["address"]) for corner in corners)
        corners[number % 3].set("address", str(number))
        assert [corner.get("address") for corner in corners] == [str(number).encode()] * 3


def test_a_rank_is_not_answered_by_a_rank_0_that_is_dead() -> None:
    store = HashStore()
    attempt(store, 2)
    with pytest.raises(RuntimeError, match=r"rank 0 did not answer within 0\.2 s"):
        own_corner(store, 1, 2, timedelta(seconds=0.2))


def test_a_rank_0_that_nobody_joins_gives_up(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        own_corner(FileStore(str(tmp_path / "store"), 2), 0, 2, timedelta(seconds=0.2))


def test_where_torchrun_shares_no_store_torch_joins_by_itself() -> None:
    assert meeting_store(0, 2, SHORT, {}) is None
    assert meeting_store(0, 2, SHORT, {"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None
