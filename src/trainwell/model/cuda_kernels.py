"""Cross-entropy, z-loss and their gradient in one Triton kernel. Imported where there is a GPU and Triton only."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_WARPS = 4
"""The fastest of nine sizes on an H200 with 32,768 rows of 50,304 in bf16: 2.75 ms; a copy of them takes 1.6."""


@triton.jit  # type: ignore[untyped-decorator]
def _loss_and_gradient_of_a_row(  # type: ignore[no-untyped-def]
    logits,
    targets,
    entropies,
    squares,
    stride,
    z_weight,
    count: tl.constexpr,
    block: tl.constexpr,
):
    """One row of logits: its cross-entropy, its (log Z)^2, and the gradient of both in the logits' place.

    The row is read twice and written once.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    real = target >= 0
    at_target = tl.load(logits + target, mask=real, other=0.0).to(tl.float32)  # before anything is overwritten
    largest = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    for begin in range(0, count, block):
        columns = begin + tl.arange(0, block)
        x = tl.load(logits + columns, mask=columns < count, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, x)
        known = higher > float("-inf")
        total = tl.where(known, total * tl.exp(largest - higher) + tl.exp(x - higher), total)
        largest = higher
    top = tl.max(largest, 0)
    log_z = top + tl.log(tl.sum(tl.where(largest > float("-inf"), total * tl.exp(largest - top), 0.0), 0))
    tl.store(entropies + row, tl.where(real, log_z - at_target, 0.0))
    tl.store(squares + row, tl.where(real, log_z * log_z, 0.0))
    scale = tl.where(real, 1 + 2 * z_weight * log_z, 0.0)
    for begin in range(0, count, block):
        columns = begin + tl.arange(0, block)
        inside = columns < count
        x = tl.load(logits + columns, mask=inside).to(tl.float32)
        grad = tl.exp(x - log_z) * scale - tl.where(columns == target, 1.0, 0.0)
        tl.store(logits + columns, grad.to(logits.dtype.element_ty), mask=inside)


@torch.library.custom_op("trainwell::loss_and_gradient", mutates_args={"logits"})
def loss_and_gradient(logits: Tensor, targets: Tensor, z_weight: float) -> Tensor:
    """Cross-entropy and `z_weight` (log Z)^2 of `logits` (n, V), summed over `targets` (n,) from 0 on: (2,) float32.

    The logits become the gradient of both together; where the target is negative, zeros. One operation, so that
    torch.compile takes it into its graph.
    """
    entropies, squares = torch.empty(2, len(logits), device=logits.device)
    _loss_and_gradient_of_a_row[(len(logits),)](
        logits,
        targets,
        entropies,
        squares,
        logits.stride(0),
        z_weight,
        count=logits.shape[1],
        block=min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        num_warps=_WARPS,
    )
    return torch.stack((entropies.sum(), z_weight * squares.sum()))


@loss_and_gradient.register_fake
def _(logits: Tensor, targets: Tensor, z_weight: float) -> Tensor:
    return logits.new_empty(2, dtype=torch.float32)
