"""How ranks share a model: every one has all of it (ddp), or a part of each tensor (fsdp). Torch's own engines.

On several nodes fsdp is hybrid: each node has all of the model, and its ranks have parts.

A loss is wrapped, and stays a loss; gradients end as the SUM over ranks of what each found, because the trainer divides
by the targets of all of them. Knows no optimizer, no step and no configuration.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn

from trainwell.distributed.world import World
from trainwell.errors import ConfigError

How = Literal["none", "ddp", "fsdp"]

_Loss = Callable[[nn.Module, Any], Any]

_BYTES = 16
"""Of a parameter: weight, gradient and both moments of AdamW, in float32."""
_SHARE = 0.5
"""So much of a rank's memory those may take; activations and what is gathered want the rest."""


class Place(NamedTuple):
    """Where a rank is, and what it has."""

    local_rank: int
    local_size: int
    memory: int
    """Bytes of its GPU; of a CPU it is not asked for, and is without bounds."""


class Shared:
    """A loss of one model whose gradients are those of all ranks; of another model, or without gradients, as it was.

    With `ddp` the model stays as it is, and so do its names. With `fsdp` its parameters become DTensors, so this comes
    before the optimizer is made: what each rank keeps of one are some of its rows. Ranks of several nodes share them
    out within each node where `shards` says so. Made by all ranks together.

    Args:
        model: the model; all ranks start from the weights of rank 0. For fsdp it is made of `blocks`.
        loss: the sum over a micro-batch's targets, compiled or not.
        how: see above; `none` is the loss itself.
        world: the ranks.
        autocast: what the forward pass computes in; on a GPU, fsdp gathers the parameters in bf16 where it is that.
    """

    def __init__(
        self, model: nn.Module, loss: _Loss, how: How, world: World, autocast: torch.dtype | None = None
    ) -> None:
        self.eager = loss
        self.how = how
        self.copies = 1
        """How many nodes have all weights, with fsdp."""
        self._model = model
        self._engine: Any = None
        self._settled = world.size <= 2  # a sum of two has one order
        if how == "fsdp":
            self._engine, self.copies = _shard(model, world, autocast)
        elif how == "ddp":
            self._engine = _replicate(model, loss)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The loss of a micro-batch."""
        if self.how != "ddp" or model is not self._model or not model.training or not torch.is_grad_enabled():
            return self.eager(model, batch)
        if not self._settled:
            self._settle(batch)
        return self._engine(batch)

    def _settle(self, batch: Any) -> None:
        """Pass a micro-batch for nothing, before the first that counts; gradients, buffers and generators stay.

        After its first pass ddp sorts gradients into other buckets, in the order they came, and what several ranks add
        up is rounded by its place in one: a run that goes on would differ from one that never stopped.
        """
        self._settled = True
        parameters, device = list(self._model.parameters()), next(self._model.parameters()).device
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        before = [parameter.grad for parameter in parameters], self._engine.require_backward_grad_sync
        self._engine.require_backward_grad_sync = True
        for parameter in parameters:
            parameter.grad = None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            value = self._engine(batch)
            (value[0] if isinstance(value, tuple) else value).backward()
        for parameter, gradient in zip(parameters, before[0], strict=True):
            parameter.grad = gradient
        for buffer, kept in buffers:
            buffer.copy_(kept)
        self._engine.require_backward_grad_sync = before[1]

    def sync(self, enabled: bool) -> None:
        """See `gradient_sync`."""
        if self.how == "ddp":
            self._engine.require_backward_grad_sync = enabled
        elif self.how == "fsdp":
            self._engine.set_requires_gradient_sync(enabled)


def gradient_sync(loss: Any, enabled: bool) -> None:
    """Say whether the gradients of the next backward pass travel: they are added up over ranks once a step.

    The one place that decides it. Before each forward pass of a loss; of one that is not Shared nothing travels.
    """
    if isinstance(loss, Shared):
        loss.sync(enabled)


class _WithLoss(nn.Module):
    """A model and its loss as the module that ddp wants: one whose forward pass is all that is differentiated."""

    def __init__(self, model: nn.Module, loss: _Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Any:
        return self._loss(self.model, batch)


def _replicate(model: nn.Module, loss: _Loss) -> Any:
    engine = nn.parallel.DistributedDataParallel(
        _WithLoss(model, loss),
        gradient_as_bucket_view=True,
        find_unused_parameters=not hasattr(model, "blocks"),  # our own models use all of theirs
    )

    engine.broadcast_buffers = False  # a rank's buffers follow from its weights

    def summed(_state: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        """The sum over ranks; ddp by itself takes the mean, which rounds once more."""
        work = distributed.all_reduce(bucket.buffer(), async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return future

    engine.register_comm_hook(None, summed)
    return engine


def _shard(model: nn.Module, world: World, autocast: torch.dtype | None) -> tuple[Any, int]:
    """The model, sharded, and how many copies of its weights there are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(
            f"parallel: fsdp shards trainwell's own models block by block, and {type(model).__name__} has no `blocks`; "
            "give ddp"
        )
    device = next(model.parameters()).device.type
    narrow = device == "cuda" and autocast == torch.bfloat16
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if narrow else MixedPrecisionPolicy()
    needed = _BYTES * sum(tensor.numel() for tensor in model.parameters())
    here = shards(world.collect(Place(world.local_rank, world.local_size, _memory(device))), needed)
    nodes = world.size // here
    if nodes == 1:
        mesh = init_device_mesh(device, (world.size,))
    else:  # fully_shard takes the first dimension for copies
        mesh = init_device_mesh(device, (nodes, here), mesh_dim_names=("nodes", "ranks"))
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root = fully_shard(model, mesh=mesh, mp_policy=policy)
    if hasattr(model, "hidden"):
        register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root, nodes


def shards(places: Sequence[Place], needed: int) -> int:
    """Into how many parts fsdp cuts the weights: one for each rank of a node, which has all of them, or for each rank.

    Nodes have copies where all have as many ranks, several, numbered one node after another, and where a rank's part
    of the `needed` bytes takes at most half of its memory. Then little has to travel between nodes.
    """
    size, here = len(places), max(1, places[0].local_size)
    alike = all(place[:2] == (rank % here, here) for rank, place in enumerate(places))
    fits = needed / here <= _SHARE * min(place.memory for place in places)
    return here if alike and fits and 1 < here < size and size % here == 0 else size


def _memory(device: str) -> int:
    if device != "cuda":
        return sys.maxsize
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def whole(tensor: Any) -> Any:
    """All of a tensor of which this rank has a part, gathered from all ranks; anything else as it is. Collective."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Any) -> Any:
    """This rank's part of a tensor, in the memory it has; a tensor that is whole as it is."""
    own = getattr(tensor, "to_local", None)
    return tensor if own is None else own()


def is_sharded(tensor: Any) -> bool:
    """Whether this rank has a part of a tensor, a DTensor, and not all of it."""
    return hasattr(tensor, "device_mesh")


def rows_here(tensor: Any) -> tuple[int, int]:
    """Of a tensor in parts the rows that this rank has: from the first, up to the last and not with it.

    FSDP2 cuts as torch.chunk does: as many rows for each rank, and for the last ones what is left, or none.
    """
    rows, place = tensor.shape[0], _sharded_along(tensor)
    if place is None:
        return 0, rows
    chunk = -(-rows // tensor.device_mesh.size(place))
    start = min(tensor.device_mesh.get_coordinate()[place] * chunk, rows)
    return start, min(start + chunk, rows)


def is_copy(tensor: Any) -> bool:
    """Whether a rank before this one has the same rows, as in hybrid sharding."""
    along = _sharded_along(tensor)
    return any(place != 0 for axis, place in enumerate(tensor.device_mesh.get_coordinate()) if axis != along)


def _sharded_along(tensor: Any) -> int | None:
    """The axis of the mesh along which ranks have different rows."""
    return next((axis for axis, placement in enumerate(tensor.placements) if placement.is_shard()), None)


def norm_over_shards(norm: Tensor, of: Any) -> Tensor:
    """The L2 norm of tensors like `of`, given that of this rank's parts of them; collective where they are in parts."""
    along = _sharded_along(of) if is_sharded(of) else None
    if along is None:
        return norm
    squared = norm.double().square()
    distributed.all_reduce(squared, group=of.device_mesh.get_group(along))
    return squared.sqrt().to(norm.dtype)


def load_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Restore a model's state_dict from whole tensors, or from what can be read of those on disk.

    Where ranks have parts, each takes its own; the state may come of any number of ranks.
    """
    own = model.state_dict()
    model.load_state_dict(_read({name: _part(value, own.get(name)) for name, value in state.items()}))


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Restore an optimizer's state_dict, as `load_model_state` does."""
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    if any(map(is_sharded, parameters)):
        kept = {
            place: {key: _part(value, parameters[place]) for key, value in about.items()}
            for place, about in state["state"].items()
        }
        state = state | {"state": kept}
    optimizer.load_state_dict(_read(state))


def _part(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor, cut as `like` is; where that is whole, or of another shape, the value."""
    if is_sharded(value) or not is_sharded(like) or getattr(value, "shape", None) != like.shape:
        return value
    from torch.distributed.tensor import DTensor

    start, stop = rows_here(like)
    mine = value.rows(start, stop) if _is_on_disk(value) else value[start:stop].clone()  # so that the whole can go
    return DTensor.from_local(
        mine.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _read(state: Any) -> Any:
    """A state with what lies on disk read."""
    if isinstance(state, dict):
        return {key: _read(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_read, state))
    return state.whole() if _is_on_disk(state) else state


def _is_on_disk(value: Any) -> bool:
    """Whether a value is a tensor that can be read, whole or by rows: a `checkpoint.shards.Stored`."""
    return hasattr(value, "rows")
