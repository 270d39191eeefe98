"""Around the engines: fsdp whose nodes have copies, a group of one, and what is refused."""

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_parallel import (
    adamw,
    backward_of_one_and_all,
    drawn,
    fifty_steps,
    made,
    some_steps,
    source,
    straight_and_resumed,
    trainer_of,
)

from trainwell.distributed.local import RankError, run_distributed
from trainwell.distributed.parallel import Place, shards

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)


def nodes(*sizes: int, memory: int = 80 * GIB) -> list[Place]:
    """The places of ranks on nodes of these sizes."""
    return [Place(rank, size, memory) for size in sizes for rank in range(size)]


CUTS: dict[str, tuple[list[Place], int, int]] = {
    "one machine": (nodes(8), GIB, 8),
    "two nodes": (nodes(8, 8), GIB, 8),
    "four nodes of two": (nodes(2, 2, 2, 2), GIB, 2),
    "nodes of one rank each": (nodes(1, 1, 1, 1), GIB, 4),
    "nodes of several sizes": (nodes(2, 4), GIB, 6),
    "the same with a node that is like the first": (nodes(2, 4, 2), GIB, 8),
    "ranks numbered across nodes": ([Place(rank, 2, GIB) for rank in (0, 0, 1, 1)], 1, 4),
    "a part that takes just half of a GPU": (nodes(8, 8), 8 * 40 * GIB, 8),
    "a part that takes more": (nodes(8, 8), 8 * 40 * GIB + 8, 16),
    "one GPU that is smaller": ([*nodes(2), *nodes(2, memory=GIB)], 2 * GIB, 4),
    "half of a node": (nodes(2, 2)[:3], GIB, 3),
}


@pytest.mark.parametrize("what", CUTS)
def test_weights_are_cut_within_a_node_where_nodes_are_alike_and_have_room_else_over_all_ranks(what: str) -> None:
    places, needed, parts = CUTS[what]
    assert shards(places, needed) == parts


def test_the_package_itself_can_be_sent_to_another_process_as_ray_does() -> None:
    import trainwell

    assert pickle.loads(pickle.dumps(trainwell)) is trainwell


def on_two_nodes(rank: int, world_size: int, work: Callable[..., Any], *args: Any) -> Any:
    """Call `work` as a rank of one of two nodes, as torchrun would say it."""
    here = world_size // 2
    os.environ |= {"LOCAL_RANK": str(rank % here), "LOCAL_WORLD_SIZE": str(here)}
    return work(rank, world_size, *args)


def rows_of_the_embedding(rank: int, world_size: int) -> tuple[int, int, float, float]:
    """Copies of the weights, and of the first weight: rows here, their sum, and the sum of all."""
    from trainwell.distributed.parallel import Shared, local, whole
    from trainwell.distributed.world import current
    from trainwell.model.loss import token_loss

    model = made("gpt2")
    copies = Shared(model, token_loss, "fsdp", current()).copies
    weight = next(model.parameters()).detach()
    return copies, len(local(weight)), float(local(weight).sum()), float(whole(weight).sum())


@pytest.mark.slow
def test_each_of_two_nodes_has_all_rows_in_parts_on_its_ranks() -> None:
    first, second, *others = run_distributed(on_two_nodes, 4, rows_of_the_embedding)
    assert others == [first, second]
    assert first[:2] == (2, 10)  # of 19 rows
    assert second[:2] == (2, 9)
    assert first[2] + second[2] == pytest.approx(first[3], abs=1e-5)
    assert first[3] == second[3] == pytest.approx(float(next(made("gpt2").parameters()).detach().sum()), abs=1e-5)


@pytest.mark.slow
def test_gradients_losses_and_norms_of_two_nodes_are_those_of_one_process() -> None:
    for found in run_distributed(on_two_nodes, 4, backward_of_one_and_all, "fsdp"):
        assert max(found, key=lambda case: case[1])[1] < 1e-12, found


@pytest.mark.slow
def test_fifty_steps_of_two_nodes_have_the_losses_of_one_process() -> None:
    found = run_distributed(on_two_nodes, 4, fifty_steps, "fsdp", "llama", partial(adamw, fused=True))
    assert all(each["ours"] == found[0]["ours"] for each in found), "ranks differ"
    assert all(each["same windows"] for each in found)
    for ours, one in zip(found[0]["ours"], found[0]["one"], strict=True):
        assert ours[0] == pytest.approx(one[0], rel=2e-6)
        assert ours[1:] == pytest.approx(one[1:], rel=1e-3)


@pytest.mark.slow
def test_a_state_of_two_nodes_goes_on_on_them_bit_for_bit_and_on_one_process() -> None:
    for straight, resumed in run_distributed(on_two_nodes, 4, straight_and_resumed, "fsdp"):
        assert resumed[0] == straight[0]
        assert resumed[1][0] == straight[1][0]
        assert all(tensor.equal(resumed[1][1][name]) for name, tensor in straight[1][1].items())
    _, state = run_distributed(on_two_nodes, 4, some_steps, "fsdp", "llama", None, 3)[0]
    rest, _ = run_distributed(some_steps, 1, "none", "llama", state, 6)[0]
    assert rest == pytest.approx(straight[0][3:], rel=2e-6)


def shard_what_has_no_blocks(rank: int, world_size: int) -> str:
    from torch import nn

    from trainwell.distributed.parallel import Shared
    from trainwell.distributed.world import current
    from trainwell.errors import ConfigError
    from trainwell.model.loss import token_loss

    try:
        Shared(nn.Linear(2, 2), token_loss, "fsdp", current())
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_fsdp_of_a_model_without_blocks_is_an_error_that_says_what_to_give() -> None:
    (message,) = run_distributed(shard_what_has_no_blocks, 1)
    assert "Linear has no `blocks`; give ddp" in message


def wrapped_alone(rank: int, world_size: int, how: str) -> list[bool]:
    """One step wrapped in a group of one, against one not wrapped: loss, norm, weights to the bit."""
    import torch

    from trainwell.distributed.parallel import whole
    from trainwell.distributed.world import current
    from trainwell.model.loss import head_loss

    trainers = [
        trainer_of(made("gpt2"), kind, current(), source(drawn([4] * 3), 2, current()), head_loss)
        for kind in ("none", how)
    ]
    for _ in range(3):
        one, other = (trainer.take_step() for trainer in trainers)
    weights = zip(*(trainer.parameters for trainer in trainers), strict=True)
    return [
        torch.equal(one.loss, other.loss),
        torch.equal(one.grad_norm, other.grad_norm),
        all(torch.equal(mine, whole(theirs)) for mine, theirs in weights),
        other.stop is None,
    ]


@pytest.mark.slow
def test_ddp_in_a_group_of_one_changes_no_bit() -> None:
    assert run_distributed(wrapped_alone, 1, "ddp") == [[True] * 4]


def in_blocks(rank: int, world_size: int, fails: bool) -> tuple[list[Any], list[Any], int, list[str]]:
    """Losses and norms of fsdp, then of fsdp with compiled blocks; how many graphs those were, and what was said."""
    from trainwell.compiling import CompiledLoss
    from trainwell.distributed.world import current
    from trainwell.model.loss import head_loss

    graphs, said = [], list[str]()

    def backend(graph: Any, _inputs: Any) -> Any:
        if fails:
            raise RuntimeError("no compiler here")
        graphs.append(graph)
        return graph

    plain, model = made("llama"), made("llama")
    compiled = CompiledLoss(head_loss, model, "blocks", one_graph=False, say=said.append, backend=backend)
    found = []
    for each, loss in ((plain, head_loss), (model, compiled)):
        trainer = trainer_of(each, "fsdp", current(), source(drawn([6] * 3), 2, current()), loss)
        found.append([(float(step.loss), float(step.grad_norm)) for step in trainer.steps(3)])
    return found[0], found[1], len(graphs), said


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_blocks_of_fsdp_share_one_graph_and_train_as_without_also_where_none_can_be_made(fails: bool) -> None:
    for plain, compiled, graphs, said in run_distributed(in_blocks, 2, fails):
        assert compiled == plain
        assert graphs == (0 if fails else 1)
        assert [line.split(":")[0] for line in said] == fails * [
            "torch could not compile the model, which is trained without"
        ]


def a_plain_loss_of_two(rank: int, world_size: int) -> None:
    from trainwell.distributed.world import current
    from trainwell.model.loss import token_loss

    trainer = trainer_of(made("gpt2"), "ddp", current(), source(drawn([4]), 2, current()), token_loss)
    trainer.loss = token_loss
    trainer.take_step()


@pytest.mark.slow
def test_ranks_whose_gradients_would_not_be_added_up_train_nothing() -> None:
    with pytest.raises(RankError, match="gradients of several ranks come of a Shared loss"):
        run_distributed(a_plain_loss_of_two, 2)
