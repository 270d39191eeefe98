"""Clip by global norm and update, or leave everything as it was: one function, two paths with one meaning.

Where the optimizer offers `grad_scale` and `found_inf` (fused AdamW), the clip factor and the skip ride along with the
update: no extra pass over the gradients, no wait for the device. Elsewhere plain torch does it, reading the norm once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def folds(optimizer: Any) -> bool:
    """Whether an optimizer takes the clip factor and the skip itself."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and getattr(optimizer, "_step_supports_amp_scaling", False)


def clip_and_update(
    optimizer: Any, parameters: Sequence[Tensor], loss: Tensor, max_norm: float | None, loss_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Update unless `loss` or the global L2 norm is not finite; return the norm before clipping, and what was skipped.

    Gradients are those of `loss * loss_scale`; the norm is that of `loss`. The factor is torch's own,
    min(1, max_norm / (norm + 1e-6)); None never clips. Both results are scalars on the device, the second boolean. A
    skipped update leaves weights, moments and counters bit for bit as they were.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients) if gradients else torch.zeros_like(loss)
    if loss_scale is not None:
        norm = norm / loss_scale
    skip = ~(norm.isfinite() & loss.isfinite())
    if norm.dtype == torch.float32 and folds(optimizer):  # the fused kernels read both as float32, whatever the weights
        _update_folded(optimizer, norm, skip, max_norm, loss_scale)
    elif not skip:
        if loss_scale is not None:
            torch._foreach_div_(gradients, loss_scale)
        if max_norm is not None:
            clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()
    return norm, skip


def _update_folded(
    optimizer: Any, norm: Tensor, skip: Tensor, max_norm: float | None, loss_scale: Tensor | None
) -> None:
    divisor = torch.ones_like(norm) if max_norm is None else ((norm + 1e-6) / max_norm).clamp(min=1.0)
    optimizer.grad_scale = divisor if loss_scale is None else divisor * loss_scale
    optimizer.found_inf = skip.to(norm.dtype)
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf
