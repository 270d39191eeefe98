"""The head and the loss of what it gives as one operation, which never holds the logits of a batch in float32."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, log_softmax

_by_triton: Callable[[Tensor, Tensor, float], Tensor] | None = None
if torch.cuda.is_available() and find_spec("triton") is not None:
    from trainwell.model.cuda_kernels import loss_and_gradient as _by_triton

_SLICE = 1 << 20
"""Logits that a CPU turns into probabilities at a time: 4 MiB, which its caches hold between the passes."""

_COLUMNS = 8192
"""Columns of the logits that a CPU multiplies at a time: in bf16, all at once takes a third longer."""


class HeadLoss(torch.autograd.Function):
    """Head, cross-entropy and z-loss in one: the logits of a chunk of rows become their own gradient, in place.

    Of `hidden` (N, C) the rows `counted` (M,), or where it is None all, with their targets (M,), negative where there
    is none, go through `weight` (V, C) `size` at a time, multiplied in `dtype`. With p the softmax of a row's logits,
    their gradient is p - onehot(target), and the z-loss, `z_weight` (log Z)^2, adds 2 `z_weight` log Z p. Gives the
    loss and, to be looked at only, its two parts.

    A single chunk waits, in `dtype`, for the backward pass to multiply it further. Of several, which together are what
    must not be held, the products are taken at once and summed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        counted: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        size: int,
        z_weight: float,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, its cross-entropy and its weighted z-loss: scalars in float32 or wider."""
        ctx.wanted = tuple(differentiable and needed for needed in ctx.needs_input_grad[:2])
        ctx.types = hidden.dtype, weight.dtype
        ctx.waits = len(targets) <= size
        wide = torch.promote_types(dtype, torch.float32)
        sums = torch.zeros(2, dtype=wide, device=hidden.device)
        of_hidden = torch.zeros_like(hidden) if ctx.wanted[0] and not ctx.waits else None
        of_weight = torch.zeros_like(weight, dtype=wide) if ctx.wanted[1] and not ctx.waits else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for rows, asked in zip(_rows(counted, len(targets), size), targets.split(size), strict=True):
                seen = hidden[rows].to(dtype)
                logits = _logits(seen, head)
                if _by_triton is not None and logits.is_cuda and logits.dtype != torch.float64:
                    sums += _by_triton(logits, asked, z_weight)
                else:
                    sums += _loss_and_gradient(
                        logits, asked, wide, z_weight, wanted=any(ctx.wanted), all_real=counted is not None
                    )
                if of_hidden is not None:
                    of_hidden[rows] = (logits @ head).to(hidden.dtype)
                if of_weight is not None:
                    of_weight += logits.T @ seen
        if ctx.waits and any(ctx.wanted):
            ctx.rows = len(hidden)
            ctx.save_for_backward(counted, seen, logits, head)
        elif any(ctx.wanted):
            ctx.save_for_backward(of_hidden, None if of_weight is None else of_weight.to(weight.dtype))
        entropy, z = sums.unbind()
        ctx.mark_non_differentiable(entropy, z)
        return sums.sum(), entropy, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_of_parts: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `hidden` and `weight`, in their types."""
        if not ctx.waits:
            return *(None if grad is None else grad * grad_loss for grad in ctx.saved_tensors), *[None] * 6
        counted, seen, grad_logits, head = ctx.saved_tensors
        of_hidden = of_weight = None
        if ctx.wanted[0]:
            of_hidden = _scaled(grad_logits @ head, grad_loss, ctx.types[0])
            if counted is not None:
                of_hidden = of_hidden.new_zeros((ctx.rows, head.shape[1])).index_copy_(0, counted, of_hidden)
        if ctx.wanted[1]:
            of_weight = _scaled(grad_logits.T @ seen, grad_loss, ctx.types[1])
        return of_hidden, of_weight, *[None] * 6


def _rows(counted: Tensor | None, count: int, size: int) -> Iterator[Tensor | slice]:
    """`size` rows at a time, of those `counted` or else of all `count`."""
    if counted is not None:
        yield from counted.split(size)
    else:
        yield from (slice(begin, begin + size) for begin in range(0, count, size))


def _logits(seen: Tensor, head: Tensor) -> Tensor:
    """The product of `seen` (n, C) and `head` (V, C): (n, V)."""
    if seen.device.type != "cpu" or torch.compiler.is_compiling():
        return linear(seen, head)
    logits = seen.new_empty(len(seen), len(head))
    for part, weight in zip(logits.split(_COLUMNS, dim=1), head.split(_COLUMNS), strict=True):
        torch.mm(seen, weight.T, out=part)
    return logits


def _scaled(product: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`product` times a scalar, in `dtype`; in one pass, since a factor with dimensions is not narrowed first."""
    return product.mul_(factor) if product.dtype == dtype else (product * factor.view(1, 1)).to(dtype)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, wide: torch.dtype, z_weight: float, *, wanted: bool, all_real: bool
) -> Tensor:
    """Cross-entropy and weighted z-loss of `logits` (n, V), (2,); where `wanted`, the logits become the gradient."""
    rows = max(1, _SLICE // logits.shape[1] if logits.device.type == "cpu" else len(logits))
    sums = torch.zeros(2, dtype=wide, device=logits.device)
    for part, asked in zip(logits.split(rows), targets.split(rows), strict=True):
        real = (asked >= 0).to(wide)  # rows without a target weigh nothing
        at_target = torch.arange(len(asked), device=asked.device), asked.clamp(min=0)
        grad = log_softmax(part, dim=1, dtype=wide)
        surprise = grad[at_target]
        log_z = part[at_target].to(wide) - surprise
        sums[0] -= (real * surprise).sum()
        sums[1] += z_weight * (real * log_z.square()).sum()
        if wanted:
            grad.exp_()
            if z_weight or not all_real:
                grad *= (real * (1 + 2 * z_weight * log_z))[:, None]
            grad[at_target] -= real
            part.copy_(grad)
    return sums
