"""What ranks say to each other, alone and in real processes: sums, words, votes, and errors that all of them hear."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwell.distributed.local import run_distributed
from trainwell.distributed.world import ALONE, World, current, joined
from trainwell.errors import ConfigError, DataError, RunBusyError, StorageError, TrainwellError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_by_itself_is_alone_and_hears_itself() -> None:
    assert current() is ALONE
    assert ALONE.main
    tensor = torch.arange(3.0)
    assert ALONE.sum_(tensor) is tensor
    assert tensor.tolist() == [0, 1, 2]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    assert ALONE.collect({"step": 3}) == [{"step": 3}]
    assert ALONE.from_main(lambda: 5) == ALONE.together(lambda: 5) == 5
    ALONE.barrier()


def test_without_torchruns_variables_nothing_is_joined() -> None:
    with joined() as world:
        assert world is ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("WORLD_SIZE", "-2"), ("TRAINWELL_TIMEOUT_S", "soon")])
def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for key, number in {"RANK": "0", "WORLD_SIZE": "2", name: value}.items():
        monkeypatch.setenv(key, number)
    with pytest.raises(ConfigError, match=f"{name}: '{value}'"), joined("cpu"):
        pass


def test_an_error_of_the_main_rank_is_raised_alone_as_it_is() -> None:
    error = DataError("no text")
    for ask in (ALONE.from_main, ALONE.together):
        with pytest.raises(DataError) as caught:
            ask(lambda: fail(error))
        assert caught.value is error


def fail(error: Exception) -> Any:
    raise error


def asked(call: Any) -> tuple[str, str]:
    """What a call returns, or raises, as text."""
    try:
        return "fine", repr(call())
    except Exception as error:  # noqa: BLE001  whatever it was, the test looks at it
        return type(error).__name__, str(error)


def talk(rank: int, size: int) -> dict[str, Any]:
    """Every method once, with what it gave."""
    world = current()
    assert world == World(rank, size, rank, size)
    with joined() as again:
        assert again == world  # a group that is there is used, and left there
    summed = torch.tensor([0.1 * (rank + 1), 1.0], dtype=torch.float64)
    busy = RunBusyError("runs/x is busy")
    return {
        "sum": world.sum_(summed).tolist(),
        "any": [world.any(rank == size - 1), world.any(False)],
        "collect": world.collect({"rank": rank}),
        "made": world.from_main(lambda: rank + 7),
        "none": world.from_main(lambda: None),
        "busy": asked(lambda: world.from_main(lambda: fail(busy))),
        "bug": asked(lambda: world.from_main(lambda: fail(KeyError("gone")))),
        "vote": asked(lambda: world.together(lambda: rank)),
        "one fails": asked(lambda: world.together(lambda: fail(StorageError("disk full")) if rank == 1 else rank)),
        "all fail": asked(lambda: world.together(lambda: fail(DataError(f"mine is {rank}")))),
        "after": world.collect(rank),
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_say_the_same_and_fail_with_the_same_error(size: int) -> None:
    for rank, told in enumerate(run_distributed(talk, size)):
        assert told["sum"] == [pytest.approx(0.1 * sum(range(1, size + 1))), size]
        assert told["any"] == [True, False]
        assert told["collect"] == [{"rank": each} for each in range(size)]
        assert (told["made"], told["none"]) == (7, None)
        assert told["busy"] == ("RunBusyError", "runs/x is busy")
        assert told["bug"] == (("KeyError", "'gone'") if rank == 0 else ("TrainwellError", "rank 0: KeyError: 'gone'"))
        assert told["vote"] == ("fine", str(rank))
        assert told["one fails"] == ("StorageError", "disk full" if rank == 1 else "rank 1: disk full")
        assert told["all fail"] == ("DataError", f"mine is {rank}")
        assert told["after"] == list(range(size))


JOIN = """
import torch
from trainwell.distributed.world import current, joined
with joined("cpu") as world:
    total = world.sum_(torch.ones(2))
    print(world.rank, world.size, world.local_rank, world.local_size, total.tolist(), world.collect(world.rank))
assert current().size == 1 and not torch.distributed.is_initialized()
"""


LEAVE = """
import os, time
from trainwell.distributed.world import joined
with joined("cpu") as world:
    world.barrier()
    if world.rank == 1:
        os._exit(9)
    begin = time.monotonic()
    try:
        world.from_main(lambda: 1), world.collect(2)
    except RuntimeError:
        print("noticed", time.monotonic() - begin < 10)
    os._exit(0)
"""


def start(code: str, size: int) -> list[tuple[str, int]]:
    """Run the code in so many processes with torchrun's variables; what each printed, and its exit code."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [(process.communicate(timeout=60)[0].strip(), process.returncode) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_processes_with_torchruns_variables_join_and_part(size: int) -> None:
    assert start(JOIN, size) == [
        (f"{rank} {size} {rank} {size} {[float(size)] * 2} {list(range(size))}", 0) for rank in range(size)
    ]


@pytest.mark.slow
def test_a_rank_that_dies_is_noticed_at_once_by_one_that_waits_for_it() -> None:
    assert start(LEAVE, 2) == [("noticed True", 0), ("", 9)]


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_say_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in (variables | {"TRAINWELL_TIMEOUT_S": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainwellError, match="rank 1: the 2 processes did not find each other"), joined("cpu"):
        pass


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
