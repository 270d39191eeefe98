"""How ranks share a model: every one has all of it (ddp), or a part of each tensor (fsdp). Torch's own engines.

A loss is wrapped, and stays a loss; gradients end as the SUM over ranks of what each found, because the trainer divides
by the targets of all of them. Knows no optimizer, no step and no configuration.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from trainwell.distributed.world import World
from trainwell.errors import ConfigError

How = Literal["none", "ddp", "fsdp"]

_Loss = Callable[[nn.Module, Any], Any]


class Shared:
    """A loss of one model whose gradients are those of all ranks; of another model, or without gradients, as it was.

    With `ddp` the model stays as it is, and so do its names. With `fsdp` its parameters become DTensors, so this comes
    before the optimizer is made: what each rank keeps of one are some of its rows.

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
        self._model = model
        self._engine: Any = None
        self._settled = world.size <= 2  # a sum of two has one order
        if how == "fsdp":
            self._engine = _shard(model, world, autocast)
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


def _shard(model: nn.Module, world: World, autocast: torch.dtype | None) -> Any:
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
    mesh = init_device_mesh(device, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root = fully_shard(model, mesh=mesh, mp_policy=policy)
    if hasattr(model, "hidden"):
        register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def whole(tensor: Any) -> Any:
    """All of a tensor of which this rank has a part, gathered from all ranks; anything else as it is. Collective."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Any) -> Any:
    """This rank's part of a tensor, in the memory it has; a tensor that is whole as it is."""
    own = getattr(tensor, "to_local", None)
    return tensor if own is None else own()


def norm_over_shards(norm: Tensor, of: Any) -> Tensor:
    """The L2 norm of tensors like `of`, given that of this rank's parts of them; collective where they are in parts."""
    if not _is_sharded(of):
        return norm
    squared = norm.double().square()
    distributed.all_reduce(squared, group=of.device_mesh.get_group())
    return squared.sqrt().to(norm.dtype)


def model_state(model: nn.Module) -> dict[str, Any]:
    """A model's state_dict with every tensor whole, as one process would have it; collective where it is in parts."""
    if not any(map(_is_sharded, model.parameters())):
        return model.state_dict()
    with torch.no_grad():  # a weight of two names is one object there, and gathered once
        return _whole_everywhere(model.state_dict(keep_vars=True), {})  # type: ignore[no-any-return]


def load_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Restore what `model_state` gave, on any number of ranks: each takes its part of the whole."""
    if any(map(_is_sharded, model.parameters())):
        own = model.state_dict()
        state = {name: _part(value, own.get(name)) for name, value in state.items()}
    model.load_state_dict(state)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """An optimizer's state_dict with every tensor whole; collective where its parameters are in parts."""
    state: dict[str, Any] = optimizer.state_dict()
    if not any(map(_is_sharded, _parameters(optimizer))):
        return state
    return _whole_everywhere(state, {})  # type: ignore[no-any-return]


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Restore what `optimizer_state` gave, on any number of ranks."""
    parameters = _parameters(optimizer)
    if any(map(_is_sharded, parameters)):
        kept = {
            place: {key: _part(value, parameters[place]) for key, value in about.items()}
            for place, about in state["state"].items()
        }
        state = state | {"state": kept}
    optimizer.load_state_dict(state)


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh")


def _parameters(optimizer: Any) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _whole_everywhere(state: Any, seen: dict[int, Tensor]) -> Any:
    """The state with tensors that are in parts gathered, to the CPU; `seen` are those that were."""
    if isinstance(state, dict):
        return {key: _whole_everywhere(value, seen) for key, value in state.items()}
    if not isinstance(state, Tensor):
        return state
    if not _is_sharded(state):
        return state.detach()
    if id(state) not in seen:
        seen[id(state)] = whole(state).detach().cpu()
    return seen[id(state)]


def _part(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor, cut as `like` is; where that is whole, or of another shape, the value."""
    if not isinstance(value, Tensor) or not _is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    cut = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return cut.clone()  # in memory of its own, so that the whole can go
