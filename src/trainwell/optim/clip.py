"""Clip by global norm and update, or leave everything as it was: one function, two paths with one meaning.

Where the optimizer offers `grad_scale` and `found_inf` (fused AdamW), the clip factor and the skip ride along with the
update: no extra pass over the gradients, no wait for the device. Elsewhere plain torch does it, reading the skip once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainwell.distributed.parallel import local, norm_over_shards

_LARGE = 1 << 20
"""Values from which on a product of vectors gives a gradient's norm sooner and better than torch's kernel."""


def folds(optimizer: Any) -> bool:
    """Whether an optimizer takes the clip factor and the skip itself."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and getattr(optimizer, "_step_supports_amp_scaling", False)


def global_norm(parameters: Sequence[Tensor], loss_scale: Tensor | None = None, *, fused: bool = False) -> Tensor:
    """The L2 norm over all gradients together, a scalar on the device; those of `loss * loss_scale` give the loss's.

    Where the update is `fused`, so may the norm of a large gradient be; else it is torch's own to the last bit. Of
    gradients that ranks have in parts it is that of the whole, to the same bits on all of them.
    """
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norms = [_norm(gradient) for gradient in gradients] if fused else gradients
    norm = get_total_norm(norms) if norms else torch.zeros((), device=parameters[0].device)
    norm = norm_over_shards(norm, parameters[0])
    if loss_scale is not None:
        norm = norm / loss_scale
    return norm


def _norm(gradient: Tensor) -> Tensor:
    """Something of the same norm: the gradient itself, or, large and on a CPU, its norm by a product of vectors.

    torch's kernel adds a CPU's squares in float32 one after another, and is off by 1e-3 for the embedding of GPT-2;
    the product is exact to 1e-5 and takes two thirds of the time.
    """
    small = gradient.numel() < _LARGE
    if small or type(gradient) is not Tensor or gradient.device.type != "cpu" or gradient.dtype.itemsize < 4:
        return gradient
    flat = gradient.flatten()
    return torch.dot(flat, flat).sqrt()


def clip_and_update(
    optimizer: Any,
    parameters: Sequence[Tensor],
    norm: Tensor,
    skip: Tensor,
    max_norm: float | None,
    loss_scale: Tensor | None = None,
) -> None:
    """Update by the gradients, clipped to `max_norm`, unless `skip`, a boolean scalar on the device.

    Gradients are those of `loss * loss_scale`; `norm` is their `global_norm`. The factor is torch's own,
    min(1, max_norm / (norm + 1e-6)); None never clips. A skipped update leaves weights, moments and counters bit for
    bit as they were.
    """
    if norm.dtype == torch.float32 and folds(optimizer):  # the fused kernels read both as float32, whatever the weights
        _update_folded(optimizer, norm, skip, max_norm, loss_scale)
    elif not skip:
        if loss_scale is not None:
            torch._foreach_div_([each.grad for each in parameters if each.grad is not None], loss_scale)
        if max_norm is not None:
            clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()


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
