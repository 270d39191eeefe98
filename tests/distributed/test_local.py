"""Several processes: what each returns, what is heard of one that fails, and that none stays behind."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from trainwell.distributed.local import CannotSendError, RankError, run_distributed

ROOT = Path(__file__).parents[2]


def add_up(rank: int, world_size: int, number: float) -> tuple[int, int, float, Any]:
    import torch
    from torch import distributed

    total = torch.tensor(number * (rank + 1))
    distributed.all_reduce(total)
    return rank, world_size, float(total), torch.full((1000,), float(rank))


def fail_on_one(rank: int, world_size: int) -> None:
    from torch import distributed

    if rank == 1:
        raise ValueError("the second one has had enough")
    distributed.barrier()


def end_at_once(rank: int, world_size: int) -> None:
    os._exit(9)


def sleep(rank: int, world_size: int) -> None:
    time.sleep(600)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.slow
def test_each_rank_returns_its_result_in_order() -> None:
    results = run_distributed(add_up, 2, 1.5)
    assert [result[:3] for result in results] == [(0, 2, 4.5), (1, 2, 4.5)]
    assert [float(result[3].mean()) for result in results] == [0.0, 1.0]


@pytest.mark.slow
def test_the_traceback_of_the_rank_that_fails_is_in_the_error_and_no_process_stays() -> None:
    with pytest.raises(RankError, match=r"rank 1 failed:\n(.*\n)*.*in fail_on_one\n(.*\n)*.*had enough"):
        run_distributed(fail_on_one, 2)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_rank_that_ends_without_a_word_is_named_with_its_exit_code() -> None:
    with pytest.raises(RankError, match="rank 0 ended without an answer, exit code 9"):
        run_distributed(end_at_once, 1)


@pytest.mark.slow
def test_ranks_that_take_too_long_are_ended() -> None:
    with pytest.raises(RankError, match="after 1 s there is no answer from rank 0, 1"):
        run_distributed(sleep, 2, timeout_s=1)
    assert multiprocessing.active_children() == []


def test_what_cannot_be_sent_to_a_process_is_said_before_one_starts() -> None:
    with pytest.raises(CannotSendError, match=r"add_up or an argument .* top level of a module"):
        run_distributed(add_up, 2, lambda: None)
    with pytest.raises(CannotSendError, match="cannot be sent"):
        run_distributed(lambda _rank, _size: None, 2)
    assert multiprocessing.active_children() == []


def test_there_is_at_least_one_process() -> None:
    with pytest.raises(ValueError, match="give at least 1"):
        run_distributed(add_up, 0)
