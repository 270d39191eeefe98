"""Attention and dropout as a CPU does them fastest: matrix products, and random bits sixteen at a time.

Eager only: a compiler has its own. Measured against torch's kernels in docs/performance.md.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

_ROWS = 256
"""Queries whose weights are held at a time: causal blocks skip most of what they may not see."""


def keep(shape: torch.Size, dropout: float, dtype: torch.dtype) -> Tensor:
    """Ones where a value is kept and zeros where it is dropped, of the given shape and type, from the CPU's generator.

    Sixteen random bits decide each, so the probability is `dropout` rounded to a multiple of 2^-16; drawing a float for
    each, as `bernoulli_` does, takes seven times as long.
    """
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return torch.ge(bits.view(torch.int16)[:count], _threshold(dropout), out=torch.empty(count, dtype=dtype)).view(
        shape
    )


def _threshold(dropout: float) -> int:
    return round(dropout * 2**16) - 2**15


def _kept_share(dropout: float) -> float:
    return 1 - round(dropout * 2**16) / 2**16


class Dropout(nn.Dropout):
    """`nn.Dropout` with the bits of `keep`."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `p` of `x`, and divide the rest by what is kept; nothing outside of training."""
        if not self.training or _threshold(self.p) == -(2**15):
            return x
        return x * keep(x.shape, self.p, x.dtype).mul_(1 / _kept_share(self.p))


class CausalAttention(torch.autograd.Function):
    """Causal attention of T queries over T keys, (B, H, T, D) each; its weights are computed again when going back.

    Without dropout the forward pass is torch's own flash kernel: of the CPU's it is the backward one that is slow in
    16 bits. With it, the weights of a block of rows are a product, a softmax, and a mask of the same type.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
        """The mixture of values, (B, H, T, D)."""
        ctx.kept = []
        with torch.autocast("cpu", enabled=False):
            ctx.save_for_backward(queries, keys, values)
            ctx.dropout = dropout if _threshold(dropout) > -(2**15) else 0.0
            if not ctx.dropout:
                return scaled_dot_product_attention(queries, keys, values, is_causal=True)
            heads = _Heads(queries, keys, values)
            mixed = torch.empty_like(heads.queries)
            for start, end in heads.blocks():
                weights = heads.weights(start, end)
                ctx.kept.append(keep(weights.shape, ctx.dropout, weights.dtype))
                mixed[:, start:end] = torch.bmm(weights.mul_(ctx.kept[-1]), heads.values[:, :end])
            return mixed.div_(_kept_share(ctx.dropout)).view(queries.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mixed: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        queries, keys, values = ctx.saved_tensors
        heads = _Heads(queries, keys, values)
        grad = grad_mixed.flatten(0, 1)
        grad = grad / _kept_share(ctx.dropout) if ctx.dropout else grad
        of_queries = torch.empty_like(heads.queries)
        of_keys = of_values = torch.empty(0)
        for number, (start, end) in reversed(list(enumerate(heads.blocks()))):  # the last rows see all keys
            weights, rows = heads.weights(start, end), grad[:, start:end]
            of_weights = torch.bmm(rows, heads.values[:, :end].transpose(1, 2))
            used = weights
            if ctx.dropout:
                of_weights.mul_(ctx.kept[number])
                used = weights * ctx.kept[number]
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_queries[:, start:end] = torch.bmm(of_scores, heads.keys[:, :end])
            to_values = torch.bmm(used.transpose(1, 2), rows)
            to_keys = torch.bmm(of_scores.transpose(1, 2), heads.queries[:, start:end])
            if end == grad.shape[1]:
                of_values, of_keys = to_values, to_keys
            else:
                of_values[:, :end] += to_values
                of_keys[:, :end] += to_keys
        of_queries *= heads.scale
        of_keys *= heads.scale
        return *(part.view(queries.shape) for part in (of_queries, of_keys, of_values)), None


class _Heads:
    """Queries, keys and values of all heads as one batch, (B H, T, D), and the weights of some rows of them."""

    def __init__(self, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        self.queries, self.keys, self.values = (part.flatten(0, 1) for part in (queries, keys, values))
        self.scale = queries.shape[-1] ** -0.5

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and end of each block."""
        length = self.queries.shape[1]
        for start in range(0, length, _ROWS):
            yield start, min(start + _ROWS, length)

    def weights(self, start: int, end: int) -> Tensor:
        """The weights of queries `start` to `end` over the keys up to `end`: (B H, rows, end)."""
        unseen = self.queries.new_full((end - start, end), -torch.inf).triu_(start + 1)
        rows, keys = self.queries[:, start:end], self.keys[:, :end]
        return torch.baddbmm(unseen, rows, keys.transpose(1, 2), alpha=self.scale).softmax(dim=-1)
