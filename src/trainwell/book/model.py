"""The book's GPT-2, operation for operation: same parameter names, initial draws, dropout draws and rounding.

`trainwell.model.gpt2` is the same function with the same initial weights, but it fuses query, key and value, and its
attention kernel rounds differently. Parity to the last digit needs the plain operations in the book's order: backward
adds up the gradients that return to a tensor in the reverse of the order in which it was used.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Norm(nn.Module):
    """Layer norm over the last dimension, from mean and biased variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        mean = x.mean(-1, keepdim=True)  # before the variance, as in the book
        variance = x.var(-1, unbiased=False, keepdim=True)
        return self.scale * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.shift


class TanhGELU(nn.Module):
    """GELU in its tanh form, spelled out."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same."""
        half = 0.5 * x
        return half * (1 + torch.tanh(torch.sqrt(torch.tensor(2.0 / math.pi)) * (x + 0.044715 * torch.pow(x, 3))))


class CausalAttention(nn.Module):
    """Multi-head self-attention with a softmax over masked scores, and dropout on the weights it gives."""

    mask: Tensor

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        width, length = cfg["emb_dim"], cfg["context_length"]
        self.num_heads = cfg["n_heads"]
        self.W_query = nn.Linear(width, width, bias=cfg["qkv_bias"])
        self.W_key = nn.Linear(width, width, bias=cfg["qkv_bias"])
        self.W_value = nn.Linear(width, width, bias=cfg["qkv_bias"])
        self.out_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(cfg["drop_rate"])
        self.register_buffer("mask", torch.ones(length, length).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        keys, queries, values = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.W_key, self.W_query, self.W_value)  # in the book's order
        )
        future = self.mask.bool()[: x.shape[1], : x.shape[1]]
        scores = (queries @ keys.transpose(2, 3)).masked_fill(future, -math.inf)
        weights = self.dropout(torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1))
        return self.out_proj((weights @ values).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """The half of a block that looks at each position alone."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        width = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), TanhGELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.layers(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a norm, before dropout, and beside a shortcut."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.att = CausalAttention(cfg)
        self.ff = FeedForward(cfg)
        self.norm1 = Norm(cfg["emb_dim"])
        self.norm2 = Norm(cfg["emb_dim"])
        self.drop_resid = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        for norm, part in ((self.norm1, self.att), (self.norm2, self.ff)):
            x = self.drop_resid(part(norm(x))) + x
        return x


class GPTModel(nn.Module):
    """Token ids (B, T) to logits (B, T, V), with an untied head.

    `cfg` has the book's keys: vocab_size, context_length, emb_dim, n_heads, n_layers, drop_rate, qkv_bias. Weights are
    torch's defaults, drawn from the global generator in the book's order; a state_dict of the book's model fits.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*(TransformerBlock(cfg) for _ in range(cfg["n_layers"])))
        self.final_norm = Norm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of `in_idx` (B, T)."""
        positions = torch.arange(in_idx.shape[1], device=in_idx.device)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))
        return self.out_head(self.final_norm(self.trf_blocks(x)))  # type: ignore[no-any-return]
