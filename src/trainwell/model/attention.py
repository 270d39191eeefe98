"""Causal self-attention over fresh or cached keys and values, and over several documents in a row; for all models."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from trainwell.model.cpu_kernels import CausalAttention

Kernel = Literal["sdpa", "products"]
"""What computes attention: torch's `scaled_dot_product_attention`, or `cpu_kernels.CausalAttention`."""

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class KVCache:
    """Keys and values of the tokens seen so far, per layer: generating a token then costs one token, not all."""

    def __init__(self, num_layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    @property
    def length(self) -> int:
        """Tokens held so far; read it before a forward pass."""
        first = self._layers[0]
        return 0 if first is None else first[0].shape[2]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D) of the new tokens to a layer; return those of all tokens so far."""
        past = self._layers[layer]
        if past is not None:
            keys, values = torch.cat((past[0], keys), dim=2), torch.cat((past[1], values), dim=2)
        self._layers[layer] = (keys, values)
        return keys, values


def place(ids: Tensor, cache: KVCache | None, documents: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Where the tokens `ids` (B, T) stand: their positions, and the mask for `attend`.

    Without `documents` they continue what the cache holds: positions (T,) and no mask, since causal is enough. With
    them, each token's document by number (B, T), never falling along a row, positions (B, T) count from the start of
    the document, and the mask (B, 1, T, T) is True where a token may look: at its own document, up to itself.
    """
    length = ids.shape[1]
    if documents is None:
        start = 0 if cache is None else cache.length
        return torch.arange(start, start + length, device=ids.device), None
    assert cache is None, "documents are for training and a cache is for generating"
    index = torch.arange(length, device=ids.device)
    documents = documents.contiguous()
    starts = torch.searchsorted(documents, documents)  # the numbers are sorted: the first token that has the same
    mask = documents[:, :, None] == documents[:, None, :]
    return index - starts, (mask & (index[:, None] >= index))[:, None]


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Each vector of `x` (..., D) over its root mean square, times the norm's weight (D,).

    The norm computes in its weight's type, under autocast too, since torch has no fused norm for two types; that of `x`
    stays. Of queries and keys, both normed, a product is at most D times their weights, however large the projections
    grow, so that attention cannot saturate: Henry et al., 2020 (vectors of length 1), Dehghani et al., 2023 (layer
    norms); as here Qwen3, and over all heads at once OLMo 2.
    """
    return norm(x.type_as(norm.weight)).type_as(x)  # type: ignore[no-any-return]


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    dropout: float,
    mask: Tensor | None = None,
    kernel: Kernel = "sdpa",
) -> Tensor:
    """Scaled dot-product attention of the last T of S tokens: causal, or as `mask` (B, 1, T, S) says.

    `queries` and the result are (B, H, T, D), `keys` and `values` (B, K, S, D) where K divides H: with fewer, each
    head of keys and values serves H / K heads of queries that follow each other. The `kernel` is for causal attention
    over fresh keys, which is what training does; the rest is torch's choice.
    """
    new, total = queries.shape[2], keys.shape[2]
    groups = queries.shape[1] // keys.shape[1]
    if mask is None and new == total:
        if kernel == "products":
            return _by_products(queries, keys, values, dropout, groups)
        return scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=True, enable_gqa=groups > 1
        )
    if mask is None:
        mask = torch.ones(new, total, dtype=torch.bool, device=queries.device).tril(total - new)
    if groups > 1:  # the kernels that take a mask want as many heads everywhere, or hold all scores in memory
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)


def _by_products(queries: Tensor, keys: Tensor, values: Tensor, dropout: float, groups: int) -> Tensor:
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    return CausalAttention.apply(queries, keys, values, dropout)  # type: ignore[no-any-return, no-untyped-call]


def preferring(backend: str) -> AbstractContextManager[object]:
    """Inside, torch's attention tries flash, efficient, cudnn or math first, then the others; any other name, nothing.

    Enter it once around a run: what is compiled inside keeps the choice. A CPU has flash and math, in this order
    whatever is preferred, so `math` leaves math alone.
    """
    if backend not in _BACKENDS:
        return nullcontext()
    first = _BACKENDS[backend]
    rest = [] if backend == "math" else [other for other in _BACKENDS.values() if other is not first]
    return sdpa_kernel([first, *rest], set_priority=True)


def chosen_backend(
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    seq_len: int,
    dropout: float = 0.0,
) -> str:
    """Which of its backends torch takes for causal attention of this shape in training: flash, cudnn, efficient, math.

    Asked as `scaled_dot_product_attention` asks itself: device, type, shape, layout and the preference in force decide.
    """

    def made(heads: int) -> Tensor:
        laid_out = torch.empty(1, seq_len, heads, head_dim, device=device, dtype=dtype, requires_grad=True)
        return laid_out.transpose(1, 2)  # by tokens, as a projection gives them

    keys = made(num_kv_heads)
    number = torch._fused_sdp_choice(
        made(num_heads), keys, keys, None, dropout, is_causal=True, enable_gqa=num_heads != num_kv_heads
    )
    names = {backend: name for name, backend in _BACKENDS.items()}
    return names.get(SDPBackend(number), SDPBackend(number).name.lower())
