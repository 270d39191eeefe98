"""Several ranks that share a model, for real: processes joined by gloo that come to the numbers of one process."""

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainwell.distributed.local import run_distributed

ROOT = Path(__file__).parents[2]
VOCABULARY, LENGTH = 19, 8

pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("how", ["ddp", "fsdp"])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)


def made(arch: str, dtype: Any = None, dropout: float = 0.0, num_labels: int | None = None) -> Any:
    """A model of two blocks and a few thousand weights, the same each time."""
    import torch

    from trainwell.model import gpt2, llama

    torch.set_num_threads(1)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "seq_len": 12, "num_layers": 2, "num_heads": 2, "width": 16}
    shape |= {"dropout": dropout, "num_labels": num_labels}
    generator = torch.Generator().manual_seed(0)
    if arch == "gpt2":
        model: Any = gpt2.GPT2(**shape, qkv_bias=False)  # softmax ignores a bias of keys: its gradient is noise
        gpt2.init_gpt2(model, generator)
    else:
        model = llama.Llama(**shape, num_kv_heads=1, head_dim=8, mlp_width=24)
        llama.init_llama_gpt2(model, generator)
    return model.to(dtype or torch.float32).train()


def drawn(sizes: list[int], seed: int = 0) -> list[Any]:
    """The rows of a step for each of `sizes`, all of whose tokens are targets."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randint(VOCABULARY, (size, LENGTH + 1), generator=generator) for size in sizes]
    return [(ids[:, :-1].contiguous(), ids[:, 1:].clone()) for ids in steps]


def source(data: list[Any], micro_batch: int, world: Any) -> Any:
    """A rank's micro-batches of the rows of each step."""
    import torch

    from trainwell.data.batches import Batch, cut

    def batch(step: int) -> Batch:
        inputs, targets = data[step]
        parts = cut(inputs, targets, micro_batch, torch.device("cpu"), rank=world.rank, world_size=world.size)
        return Batch(parts, inputs.numel(), 0.0)

    return batch


def adamw(model: Any, **options: Any) -> Any:
    import torch

    from trainwell.optim.groups import parameter_groups

    return torch.optim.AdamW(parameter_groups(model.parameters(), 0.1), lr=1e-2, betas=(0.9, 0.95), **options)


def trainer_of(model: Any, how: str, world: Any, batches: Any, loss: Any, optimizer: Any = None, **more: Any) -> Any:
    """A trainer on these ranks; `how` none is one process alone."""
    from trainwell.distributed.parallel import Shared
    from trainwell.distributed.world import ALONE
    from trainwell.trainer import Trainer

    shared = loss if how == "none" else Shared(model, loss, how, world)  # type: ignore[arg-type]
    schedules = {"lr": lambda step: 1e-2 / (1 + step / 10)}
    optimizer = (optimizer or partial(adamw, fused=True))(model)
    world = ALONE if how == "none" else world
    return Trainer(model, optimizer, batches, schedules=schedules, loss=shared, world=world, **more)


def gap(ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the largest value; infinite where one is not finite."""
    largest = float(theirs.abs().max())
    difference = float((ours.to(theirs) - theirs).abs().max()) / (largest or 1.0)
    return difference if math.isfinite(difference) else math.inf


def ragged(rows: int, micro_batch: int, world_size: int) -> Any:
    """Rows of which rank 0 has a single target and rank 1 none, where there are so many; others have some or all."""
    inputs, targets = drawn([rows], seed=rows)[0]
    for row in range(rows):
        rank = row // micro_batch % world_size
        if rank == 1:
            targets[row] = -100
        elif rank == 0:
            targets[row] = targets[row] if row == 0 else -100
            targets[row, 1:] = -100
        targets[row, 2 : 2 + row % 4] = -100
    return inputs, targets


def losses() -> dict[str, tuple[str, Any]]:
    from trainwell.model.loss import head_loss, label_loss, token_loss, z_loss

    return {
        "head": ("gpt2", head_loss),
        "head of llama": ("llama", head_loss),
        "tokens": ("gpt2", token_loss),
        "z in chunks": ("llama", z_loss(0.01, chunk=60)),
        "labels": ("gpt2", label_loss(["ham", "spam"])),
    }


def backward_of_one_and_all(rank: int, world_size: int, how: str) -> list[tuple[str, float]]:
    """For batches of several sizes and losses: how far loss, parts, norm and gradients are from one process's."""
    import torch

    from trainwell.distributed.parallel import whole
    from trainwell.distributed.world import current
    from trainwell.optim.clip import global_norm

    found = []
    for name, (arch, loss) in losses().items():
        labels = 2 if name == "labels" else None
        for rows in (1, 2 * world_size, 4 * world_size + 1):
            inputs, targets = ragged(rows, 2, world_size)
            if labels:
                targets = torch.where(targets >= 0, targets % 2, targets)
            one, ours = (made(arch, torch.float64, num_labels=labels) for _ in range(2))
            of_one, of_all = (
                trainer_of(model, kind, current(), source([(inputs, targets)], 2, world), loss)
                for model, kind, world in ((one, "none", alone()), (ours, how, current()))
            )
            expected, told = of_one.backward(), of_all.backward()
            worst = gap(told, expected)
            assert of_all._targets.item() == (targets >= 0).sum().item()
            assert of_all._parts.keys() == of_one._parts.keys()
            for key, part in of_one._parts.items():
                difference = gap(of_all._parts[key], part)
                worst = max(worst, difference if key != "accuracy" else difference * 1e-6)  # a share in float32
            for fused in (True, False):
                norms = (global_norm(each.parameters, fused=fused) for each in (of_all, of_one))
                worst = max(worst, gap(*norms))
            for (name_of_one, weight), (name_here, part) in zip(
                one.named_parameters(), ours.named_parameters(), strict=True
            ):
                assert name_of_one == name_here
                worst = max(worst, gap(whole(part.grad), weight.grad))
            found.append((f"{name}, {rows} rows", worst))
    return found


def alone() -> Any:
    from trainwell.distributed.world import ALONE

    return ALONE


@both
@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_losses_and_norms_are_those_of_one_process_whatever_is_masked(how: str, world_size: int) -> None:
    for found in run_distributed(backward_of_one_and_all, world_size, how):
        assert max(found, key=lambda case: case[1])[1] < 1e-12, found


def ramp(micro_batch: int, world: Any) -> Any:
    """Batches of a text that grow from 3 to 10 rows, which divide evenly by nothing for long."""
    import numpy as np
    import torch

    from trainwell.data.batches import Batches, Windows
    from trainwell.optim.batch_plan import BatchPlan, Ramp

    text = np.random.default_rng(5).integers(0, VOCABULARY, 700).astype(np.uint16)
    plan = BatchPlan(10, LENGTH, Ramp(3 * LENGTH, 10 * LENGTH, 150 * LENGTH))
    return Batches(
        Windows(text, LENGTH, LENGTH),
        plan,
        micro_batch=micro_batch,
        seed=3,
        device=torch.device("cpu"),
        rank=world.rank,
        world_size=world.size,
    )


def fifty_steps(rank: int, world_size: int, how: str, arch: str, optimizer: Any) -> dict[str, Any]:
    """Losses and norms of all ranks and of one process, and the windows that each saw."""
    from trainwell.distributed.world import current
    from trainwell.model.loss import head_loss

    found: dict[str, Any] = {"ours": [], "one": [], "sizes": [], "same windows": True}
    world = current()
    for key, kind, group in (("one", "none", alone()), ("ours", how, world)):
        trainer = trainer_of(made(arch, dropout=0.1), kind, world, ramp(2, group), head_loss, optimizer, seed=11)
        trainer.measure_every = 7
        for result in trainer.steps(until=50):
            numbers = [result.loss, result.grad_norm, result.targets]
            numbers += [] if result.update_norm is None else [result.update_norm, result.weight_norm]
            found[key].append([float(number) for number in numbers])
    for step in range(50):
        found["sizes"].append(ramp(2, alone()).plan.size(step))
        mine = [(part.index, part.inputs.tolist()) for part in ramp(2, world)(step).micro_batches]
        together = sorted(part for rank in world.collect(mine) for part in rank)
        expected = [(part.index, part.inputs.tolist()) for part in ramp(2, alone())(step).micro_batches]
        found["same windows"] &= together[: len(expected)] == expected
    return found


@both
@pytest.mark.parametrize(
    ("arch", "world_size", "optimizer"),
    [
        ("gpt2", 2, partial(adamw, fused=True)),
        ("llama", 2, partial(adamw, fused=False, foreach=False)),
        ("gpt2", 3, partial(adamw, fused=True)),
    ],
)
def test_fifty_steps_with_dropout_and_a_growing_batch_have_the_losses_of_one_process(
    how: str, arch: str, world_size: int, optimizer: Callable[[Any], Any]
) -> None:
    found = run_distributed(fifty_steps, world_size, how, arch, optimizer)
    assert len(set(found[0]["sizes"])) > 4
    assert all(each["ours"] == found[0]["ours"] for each in found), "ranks differ"
    assert all(each["same windows"] for each in found)
    for step, (ours, one) in enumerate(zip(found[0]["ours"], found[0]["one"], strict=True)):
        assert ours[0] == pytest.approx(one[0], rel=2e-6)
        assert ours[1] == pytest.approx(one[1], rel=2e-6 if step < 3 else 1e-3)  # norms drift sooner than losses do
        assert ours[2] == one[2]
        assert ours[3:] == pytest.approx(one[3:], rel=1e-3)


def poisoned(rank: int, world_size: int, how: str, optimizer: Any, policy: str) -> dict[str, Any]:
    """Steps of which one is NaN on the last rank alone."""
    import torch

    from trainwell.distributed.parallel import local, whole
    from trainwell.distributed.world import current
    from trainwell.model.loss import token_loss
    from trainwell.optim.guard import Guard

    def loss(model: Any, batch: Any) -> Any:
        here = rank == world_size - 1 and trainer.step == 2
        return token_loss(model, batch) * (math.nan if here else 1.0)

    model = made("gpt2")
    guard = Guard(torch.device("cpu"), policy=policy)  # type: ignore[arg-type]
    batches = source(drawn([4] * 5), 2, current())
    trainer = trainer_of(model, how, current(), batches, loss, optimizer, guard=guard)
    trainer.asked = lambda: rank == 1 and trainer.step == 3
    found: dict[str, Any] = {"skipped": [], "stop": [], "unchanged": [], "why": [], "finite": True}
    for _ in range(5):
        before = [local(weight).detach().clone() for weight in trainer.parameters]
        result = trainer.take_step()
        found["skipped"].append(bool(result.skipped))
        found["stop"].append(int(result.stop))
        found["why"].append(trainer.why_skipped(result))
        pairs = zip(before, trainer.parameters, strict=True)
        found["unchanged"].append(all(torch.equal(old, local(new)) for old, new in pairs))
    found["finite"] = all(bool(whole(weight).isfinite().all()) for weight in trainer.parameters)
    return found


@both
@pytest.mark.parametrize("fused", [True, False])
def test_a_nan_on_one_rank_leaves_out_the_same_step_on_all_of_them(how: str, fused: bool) -> None:
    for found in run_distributed(poisoned, 2, how, partial(adamw, fused=fused, foreach=False), "log"):
        assert found["skipped"] == found["unchanged"] == [False, False, True, False, False]
        assert found["why"] == ["", "", "loss is nan", "", ""]
        assert found["stop"] == [0, 0, 0, 1, 0]
        assert found["finite"]


def gradient_gone(rank: int, world_size: int, how: str) -> list[str]:
    """What ranks say of a gradient that is NaN in the rows of one of them, the loss being fine."""
    from trainwell.distributed.parallel import local
    from trainwell.distributed.world import current
    from trainwell.model.loss import token_loss

    trainer = trainer_of(made("gpt2"), how, current(), source(drawn([4]), 2, current()), token_loss)
    loss = trainer.backward()
    if rank == 1:
        local(trainer.parameters[2].grad)[0] = math.nan
    result = trainer.update(loss)
    return [str(bool(result.skipped)), trainer.why_skipped(result)]


def test_a_gradient_that_is_nan_in_the_part_of_one_rank_is_skipped_by_all_and_named_by_that_one() -> None:
    found = run_distributed(gradient_gone, 2, "fsdp")
    assert found[0] == ["True", "the norm of the gradients is nan: by a part that another rank has, or too large"]
    assert found[1][0] == "True"
    assert found[1][1].startswith("gradient of ")
    assert found[1][1].endswith(" is nan")


def some_steps(rank: int, world_size: int, how: str, arch: str, state: Any, until: int) -> tuple[list[float], Any]:
    """Steps from a state (None: the beginning), with an evaluation between them; their losses, and the state after."""
    from trainwell.checkpoint.state import pack, unpack
    from trainwell.distributed.parallel import whole
    from trainwell.distributed.world import current
    from trainwell.evaluate import evaluate
    from trainwell.model.loss import head_loss

    batches = ramp(2, current())
    trainer = trainer_of(made(arch, dropout=0.1), how, current(), batches, head_loss, seed=11)
    if state is not None:
        trainer.load_state_dict(copy.deepcopy(unpack(*state)))  # it came in memory that the ranks share
    seen = []
    for result in trainer.steps(until=until):
        seen.append(float(result.loss))
        evaluate(trainer.model, lambda: batches(0).micro_batches, head_loss)
    plain, tensors = pack(trainer.state_dict())
    return seen, (plain, {name: whole(tensor).clone() for name, tensor in tensors.items()})


@both
def test_a_state_saved_on_two_ranks_is_that_of_one_and_goes_on_on_one_and_on_three(how: str) -> None:
    import torch

    straight, (plain, tensors) = run_distributed(some_steps, 1, "none", "gpt2", None, 8)[0]
    first, state = run_distributed(some_steps, 2, how, "gpt2", None, 4)[0]
    assert first == pytest.approx(straight[:4], rel=2e-6)
    for world_size, kind in ((1, "none"), (3, how), (2, "ddp"), (2, "fsdp")):
        rest, (plain_here, tensors_here) = run_distributed(some_steps, world_size, kind, "gpt2", state, 8)[-1]
        assert rest == pytest.approx(straight[4:], rel=2e-6)
        assert set(tensors_here) == set(tensors)
        assert plain_here.keys() == plain.keys()
        for name, tensor in tensors_here.items():
            assert type(tensor) is type(tensors[name])
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-5, msg=name)


def straight_and_resumed(rank: int, world_size: int, how: str) -> list[tuple[list[float], Any]]:
    """Six steps at once, and three steps, then three from their state: losses, and the state after."""
    straight = some_steps(rank, world_size, how, "llama", None, 6)
    first, state = some_steps(rank, world_size, how, "llama", None, 3)
    rest, after = some_steps(rank, world_size, how, "llama", state, 6)
    return [straight, (first + rest, after)]


@both
@pytest.mark.parametrize("world_size", [2, 3])
def test_on_as_many_ranks_a_restored_state_goes_on_bit_for_bit(how: str, world_size: int) -> None:
    for straight, resumed in run_distributed(straight_and_resumed, world_size, how):
        assert resumed[0] == straight[0]
        (plain_here, tensors_here), (plain, tensors) = resumed[1], straight[1]
        assert plain_here == plain
        for name, tensor in tensors.items():
            assert tensor.equal(tensors_here[name]), name
