"""The numbers of a step over ranks: their sums, and what happens when ranks have parts of different names."""

from pathlib import Path
from typing import Any

import pytest

from trainwell.distributed.local import run_distributed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)


def sums_of_steps(rank: int, world_size: int, steps: list[Any], behind: int) -> list[Any]:
    """What each step comes to on this rank: loss, parts and who asks to stop; the message of the error that ends it.

    A step is, for each rank, a dictionary of parts; `behind` stands for a GPU that is as many steps late.
    """
    import torch

    from trainwell.distributed.sums import StepSums
    from trainwell.distributed.world import current
    from trainwell.errors import ConfigError

    sums, found = StepSums(current(), torch.device("cpu")), list[Any]()
    sums._behind = behind
    for number, step in enumerate(steps):
        parts = {name: torch.tensor(float(value)) for name, value in step[rank].items()}
        try:
            total, parts, stop = sums(torch.tensor(1.0 + rank), parts, asked=rank == number)
        except ConfigError as error:
            return [*found, str(error)]
        found.append((float(total), {name: float(value) for name, value in parts.items()}, float(stop)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("behind", [0, 4])
def test_parts_are_added_up_by_their_names_in_whatever_order_ranks_have_them(behind: int) -> None:
    steps = [({"a": 1, "b": 2}, {"b": 20, "a": 10}), ({"b": 3, "a": 4}, {"a": 40, "b": 30}), ({"a": 0, "b": 0},) * 2]
    first, second = run_distributed(sums_of_steps, 2, steps, behind)
    expected = [
        (3.0, {"a": 11.0, "b": 22.0}, 1.0),
        (3.0, {"a": 44.0, "b": 33.0}, 1.0),
        (3.0, {"a": 0.0, "b": 0.0}, 0.0),
    ]
    assert first == second == expected


@pytest.mark.slow
def test_names_may_change_when_they_do_on_all_ranks_and_a_gpu_hears_of_it_later() -> None:
    steps = [({},) * 2, ({"a": 1},) * 2, ({"a": 1},) * 2, ({"b": 1},) * 2]
    for behind, names in ((0, ["", "a", "a", "b"]), (1, ["", "", "a", ""])):
        first, second = run_distributed(sums_of_steps, 2, steps, behind)
        assert first == second
        assert ["".join(parts) for _, parts, _ in first][: len(names) - behind] == names[: len(names) - behind]
        assert all(value == 2.0 for _, parts, _ in first[:3] for value in parts.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "behind", "taken"),
    [
        ([({"ce": 1, "z": 1}, {"ce": 1})], 0, 0),
        ([({"ce": 1},) * 2, ({"ce": 1, "z": 1}, {"ce": 1}), ({"ce": 1},) * 2], 0, 1),
        ([({"ce": 1},) * 2, ({"ce": 1, "z": 1}, {"ce": 1}), ({"ce": 1},) * 2, ({"ce": 1},) * 2], 1, 2),
    ],
)
def test_parts_of_other_names_on_one_rank_are_an_error_on_all_that_says_who_has_which(
    steps: list[Any], behind: int, taken: int
) -> None:
    first, second = run_distributed(sums_of_steps, 2, steps, behind)
    assert first == second
    assert len(first) == taken + 1
    assert first[-1].startswith("loss: the names of its parts are ce, z on rank 0 and ce on rank 1; give the same")


def evaluation_of_other_names(rank: int, world_size: int) -> str:
    """The error of an evaluation whose loss has a part on one rank only."""
    import torch

    from trainwell.distributed.world import current
    from trainwell.errors import ConfigError
    from trainwell.evaluate import evaluate

    def loss(model: Any, batch: Any) -> Any:
        return torch.tensor(1.0), {"only": torch.tensor(1.0)} if rank == 1 else {}

    class Batch:
        targets = torch.zeros(1, dtype=torch.int64)

    batches: Any = lambda: [Batch()]  # noqa: E731
    try:
        evaluate(torch.nn.Linear(1, 1), batches, loss, world=current())
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_an_evaluation_says_so_too() -> None:
    first, second = run_distributed(evaluation_of_other_names, 2)
    assert first == second
    assert "are none on rank 0 and only on rank 1" in first
