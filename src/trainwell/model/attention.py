"""Causal self-attention over fresh or cached keys and values; shared by the architectures."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float) -> Tensor:
    """Causal scaled dot-product attention of the last T of S tokens.

    `queries` and the result are (B, H, T, D), `keys` and `values` (B, H, S, D).
    """
    new, total = queries.shape[2], keys.shape[2]
    if new == total:
        return scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
    mask = torch.ones(new, total, dtype=torch.bool, device=queries.device).tril(total - new)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
