"""Estimates against reality: bytes that ranks of torch hold and send, and those of a thousand that are not there."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.distributed.local import run_distributed
from trainwell.planning.cluster import cluster, device_memory
from trainwell.planning.hardware import gpu_named
from trainwell.planning.memory import memory
from trainwell.planning.resolve import resolve
from trainwell.planning.sharding import Layout, layout, traffic

ROOT = Path(__file__).parents[2]
VOCABULARY, LENGTH = 101, 16
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "gpt2", "num_layers": 3, "num_heads": 2, "width": 18},
    "llama": {"arch": "llama", "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "width": 24, "tie_head": False},
}

pytestmark = pytest.mark.slow
shapes = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)


def layout_of(shape: str) -> Layout:
    return layout(RunConfig.model_validate({"model": SHAPES[shape]}).model, VOCABULARY, LENGTH)


def model_of(keys: dict[str, Any], vocab_size: int, seq_len: int) -> Any:
    from trainwell.model.gpt2 import GPT2
    from trainwell.model.llama import Llama

    shape = RunConfig.model_validate({"model": keys}).model
    outer: dict[str, Any] = {"vocab_size": vocab_size, "seq_len": seq_len, "num_layers": shape.num_layers}
    outer |= {"num_heads": shape.num_heads, "width": shape.width, "tie_head": shape.tie_head}
    if shape.arch == "gpt2":
        return GPT2(**outer)
    return Llama(num_kv_heads=shape.kv_heads, head_dim=shape.size_of_head, mlp_width=shape.width_of_mlp, **outer)


def counting(world_size: int) -> Any:
    """A mode of torch in which every collective adds what a ring of `world_size` sends for it to `sent`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        sent = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            if "_allgather_base_" in name:
                self.sent += (world_size - 1) * args[1].nbytes
            elif "_reduce_scatter_base_" in name:
                self.sent += (world_size - 1) * args[0].nbytes
            elif "allreduce_" in name:
                self.sent += 2 * (world_size - 1) * sum(tensor.nbytes for tensor in args[0]) // world_size
            return func(*args, **(kwargs or {}))

    mode: Any = Counting
    return mode()


def step_of(rank: int, world_size: int, keys: dict[str, Any], how: Any, micro_batches: int) -> dict[str, int]:
    """Bytes of a rank after one step, and those it sent in a second one."""
    import torch

    from trainwell.data.batches import MicroBatch
    from trainwell.distributed.parallel import Shared, gradient_sync, local
    from trainwell.distributed.world import current
    from trainwell.model.loss import token_loss

    torch.set_num_threads(1)
    model = model_of(keys, VOCABULARY, LENGTH).train()
    loss = Shared(model, token_loss, how, current())
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(rank))

    def backward() -> None:
        for place in range(micro_batches):
            gradient_sync(loss, place == micro_batches - 1)
            value = loss(model, MicroBatch(ids, ids, ids.numel()))
            (value[0] if isinstance(value, tuple) else value).backward()

    backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    held = {
        "parameters": sum(local(each).nbytes for each in model.parameters()),
        "gradients": sum(local(each.grad).nbytes for each in model.parameters()),
        "optimizer": sum(local(each).nbytes for each in moments),
    }
    optimizer.zero_grad()
    with counting(world_size) as count:
        backward()
    return held | {"sent": count.sent}


@shapes
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_ddp_holds_everything_and_sends_what_was_estimated(shape: str, micro_batches: int) -> None:
    whole = layout_of(shape)
    sent = traffic(whole, "ddp", 2, 8, 4, whole.total).total(micro_batches)
    expected = {"parameters": 4 * whole.total, "gradients": 4 * whole.total, "optimizer": 8 * whole.total, "sent": sent}
    assert run_distributed(step_of, 2, SHAPES[shape], "ddp", micro_batches) == [expected, expected]


@shapes
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (2, 3), (3, 2)])
def test_fsdp_holds_and_sends_what_was_estimated_to_the_byte_with_rows_that_do_not_divide(
    shape: str, ranks: int, micro_batches: int
) -> None:
    whole = layout_of(shape)
    sent = traffic(whole, "fsdp", ranks, 8, 4, whole.total).total(micro_batches)
    assert whole.held(ranks, ranks - 1) < whole.padded(ranks)  # 101 tokens leave the last rank fewer
    for rank, found in enumerate(run_distributed(step_of, ranks, SHAPES[shape], "fsdp", micro_batches)):
        mine = whole.held(ranks, rank)
        assert found == {"parameters": 4 * mine, "gradients": 4 * mine, "optimizer": 8 * mine, "sent": sent}


def hybrid_step(rank: int, world_size: int, keys: dict[str, Any]) -> tuple[int, int]:
    """Bytes of a rank's weights, and those it sent in a step, sharded in pairs of which there are two."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    model = model_of(keys, VOCABULARY, LENGTH).train()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("across", "within"))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ids = torch.randint(VOCABULARY, (2, LENGTH))
    with counting(2) as count:  # each collective is one of two ranks
        model(ids).sum().backward()
    return sum(each.to_local().nbytes for each in model.parameters()), count.sent


@shapes
def test_hybrid_sharding_holds_and_sends_what_was_estimated_to_the_byte(shape: str) -> None:
    whole = layout_of(shape)
    sent = traffic(whole, "hybrid", 4, 2, 4, whole.total).total(1)
    expected = [(4 * whole.held(2, rank % 2), sent) for rank in range(4)]
    assert run_distributed(hybrid_step, 4, SHAPES[shape]) == expected


THOUSAND = """
import json
import sys

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainwell.model.gpt2 import GPT2

ranks, rank = 1024, int(sys.argv[1])
distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
with torch.device("meta"):
    model = GPT2(vocab_size=50304, seq_len=2048, num_layers=96, num_heads=96, width=12288)
whole = sum(each.nbytes for each in model.parameters())
mesh = init_device_mesh("cpu", (ranks,))
policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
for block in model.blocks:
    fully_shard(block, mesh=mesh, mp_policy=policy)
fully_shard(model, mesh=mesh, mp_policy=policy)
local = [each.to_local() for each in model.parameters()]
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
for each in model.parameters():
    each.grad = torch.zeros_like(each)
optimizer.step()
states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
print(json.dumps({
    "whole": whole,
    "parameters": sum(each.nbytes for each in local),
    "gradients": sum(each.grad.to_local().nbytes for each in model.parameters()),
    "optimizer": sum(each.to_local().nbytes for each in states),
}))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("rank", [0, 1023])
def test_gpt3_175b_sharded_over_a_thousand_ranks_has_the_estimated_bytes_on_each(rank: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", THOUSAND, str(rank)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    model = layout(load("gpt3-175b").model, 50304, 2048)
    mine = model.held(1024, rank)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "whole": 4 * model.total,
        "parameters": 4 * mine,
        "gradients": 4 * mine,
        "optimizer": 8 * mine,
    }
    assert mine <= model.held(1024) == model.padded(1024)


SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "small": ({"num_layers": 2, "num_heads": 4, "width": 64}, 64),
    "middle": ({"num_layers": 4, "num_heads": 4, "width": 128}, 128),
    "large": ({"arch": "llama", "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "width": 256}, 256),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", SIZES)
def test_activations_of_a_run_on_a_cpu_are_what_was_estimated_within_ten_per_cent(size: str) -> None:
    import torch

    keys, seq_len = SIZES[size]
    config = RunConfig.model_validate({"model": keys})
    model = model_of(keys, VOCABULARY, seq_len).train()
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(torch.randint(VOCABULARY, (4, seq_len)))
    hidden.sum().backward()
    expected = memory(config, VOCABULARY, seq_len, 4, "fp32").activations
    assert expected == pytest.approx(sum(kept.values()), rel=0.1)


TRACKED = """
import json
import sys

import torch
from torch import distributed
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainwell.data.batches import MicroBatch
from trainwell.model.gpt2 import GPT2
from trainwell.model.loss import token_loss

ranks, vocab, length, layers, width, size = json.loads(sys.argv[1])
distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
model = GPT2(vocab_size=vocab, seq_len=length, num_layers=layers, num_heads=4, width=width)
mesh = init_device_mesh("cpu", (ranks,))
for block in model.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
ids = torch.randint(vocab, (size, length + 1))
batch = MicroBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), 0)
tracker = FSDPMemTracker(model, optimizer)
for number in range(2):
    if number:
        tracker.reset_mod_stats()
    with tracker:
        token_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
print(json.dumps({getattr(kind, "name", kind): size for kind, size in found.items()}))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("vocab", "length", "layers", "width", "size", "most"),
    [(5000, 128, 6, 256, 4, 1.1), (1000, 256, 8, 128, 2, 1.1), (300, 64, 6, 256, 2, 1.2)],
    ids=["vocabulary", "activations", "weights"],
)
def test_memory_of_a_rank_of_fsdp_is_what_torch_tracks_and_at_most_as_much_more_as_is_gathered(
    vocab: int, length: int, layers: int, width: int, size: int, most: float
) -> None:
    """The estimate counts what is gathered in a block beside what is kept when the backward pass begins."""
    ranks = 8
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRACKED, json.dumps([ranks, vocab, length, layers, width, size])],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    flags: dict[str, object] = {"precision": "fp32", "batch_size": ranks * size, "micro_batch": size}
    flags |= {"data.seq_len": length, "model.num_layers": layers, "model.num_heads": 4, "model.width": width}
    plan = resolve(load("demo", flags=flags | {"model.pad_vocab_to": vocab}))
    expected = device_memory(cluster(plan, replace(gpu_named("h100-80gb"), runs_on="cpu"), ranks), "fsdp", size)
    assert found["SHARDED_PARAM"] == expected.parameters
    assert found["OPT"] == pytest.approx(expected.optimizer, rel=1e-3)  # and the number of its step in each tensor
    assert found["Total"] <= expected.total <= most * found["Total"]
