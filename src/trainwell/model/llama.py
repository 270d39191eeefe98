"""The Llama family: rotary positions, RMSNorm, SwiGLU, fewer heads of keys and values; Qwen's biases and QK-norm.

Names of modules are those of Hugging Face without their leading `model.` (`embed_tokens`, `layers.0.self_attn.q_proj`,
...), so that weights travel. Knows no config and no data.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import init
from torch.nn.functional import silu

from trainwell.model.attention import Kernel, KVCache, attend, normed, place
from trainwell.model.decoder import Decoder


@dataclass(frozen=True)
class Rope:
    """Rotary positions: each token turns pair i of a head's D / 2 pairs of channels by theta^(-2i / D) radians more.

    Args:
        theta: base of the frequencies.
        scaling: `linear` divides all frequencies by `factor`; `llama3` those of pairs that turn less than once in
            `original_context` tokens, none of those that turn more than four times, and between in between.
        factor: by how much the context is longer than the one trained at first, at least 1.
        original_context: that first context, in tokens; `llama3` needs it.
    """

    theta: float = 10000.0
    scaling: Literal["linear", "llama3"] | None = None
    factor: float = 1.0
    original_context: int | None = None

    def frequencies(self, head_dim: int, device: torch.device) -> Tensor:
        """Radians a token for each pair of channels: (D / 2,) float32.

        The blend of `llama3` is that of Llama 3.1 with its factors 1 and 4, written with clamps in place of branches.
        """
        frequencies = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            assert self.original_context is not None
            turns = self.original_context / (2 * math.pi / frequencies)
            kept = ((turns - 1) / 3).clamp(0, 1)
            return (1 - kept) * frequencies / self.factor + kept * frequencies
        return frequencies


class Rotation(NamedTuple):
    """Cosine and sine by which positions turn channels: (T, D / 2), or (B, 1, T, D / 2) where rows differ."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> "Rotation":
        """The rotation at positions (T,) or (B, T): angles in float32 whatever `dtype` is, as everyone has them."""
        angles = positions[..., None].float() * frequencies
        if positions.dim() == 2:
            angles = angles[:, None]
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate channel i of `x` (B, H, T, D) with channel i + D / 2; the type stays."""
        first, second = x.chunk(2, dim=-1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.cat(turned, dim=-1).type_as(x)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, in which several heads of queries may share keys and values."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        qk_norm: bool,
        norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.dropout = dropout
        self.kernel: Kernel = "sdpa"
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, width, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, norm_eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim, norm_eps) if qk_norm else None
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None, rotation: Rotation) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        queries = rotation.rotate(self._heads(self.q_proj(x), self.q_norm))
        keys = rotation.rotate(self._heads(self.k_proj(x), self.k_norm))
        values = self._heads(self.v_proj(x), None)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(queries, keys, values, dropout=dropout, mask=mask, kernel=self.kernel)
        return self.resid_dropout(self.o_proj(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        """(B, T, heads x D) to (B, heads, T, D), normed."""
        heads = x.unflatten(2, (-1, self.head_dim))
        return (heads if norm is None else normed(heads, norm)).transpose(1, 2)


class MLP(nn.Module):
    """The feed-forward half of a block: SwiGLU, a product of two projections of which SiLU gates one."""

    def __init__(self, width: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind an RMSNorm and beside a residual path."""

    def __init__(self, width: int, mlp_width: int, norm_eps: float, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = nn.RMSNorm(width, norm_eps)
        self.mlp = MLP(width, mlp_width, dropout)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None, rotation: Rotation) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.self_attn(normed(x, self.input_layernorm), layer, cache, mask, rotation)
        return x + self.mlp(normed(x, self.post_attention_layernorm))  # type: ignore[no-any-return]


class Llama(Decoder):
    """The language model: token ids (B, T) to logits (B, T, V).

    Args:
        vocab_size: V, ids that the embedding holds.
        seq_len: tokens that it is trained on; positions are computed, so it can read further, but badly.
        num_layers: blocks.
        num_heads: heads of queries.
        width: C, of the residual path.
        num_kv_heads: heads of keys and values; divides `num_heads`.
        head_dim: D, channels of a head; even, since they turn in pairs. `num_heads` x D need not be C.
        mlp_width: inner width of the MLP.
        norm_eps: what RMSNorm adds to the mean square.
        rope: how positions turn queries and keys.
        qk_norm: norm each head of queries and keys before it turns, as Qwen3 does.
        qkv_bias: biases of the three projections, as Qwen2 has them.
        tie_head: the head is the embedding.
        dropout: where GPT-2 has it: on the embedding, the attention weights and both branches.
        num_labels: makes it a classifier: a new head with that many outputs, never tied, which means something at the
            last token of a text, where all of it has been read.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        num_layers: int,
        num_heads: int,
        width: int,
        num_kv_heads: int,
        head_dim: int,
        mlp_width: int,
        norm_eps: float = 1e-5,
        rope: Rope = Rope(),
        qk_norm: bool = False,
        qkv_bias: bool = False,
        tie_head: bool = True,
        dropout: float = 0.0,
        num_labels: int | None = None,
    ) -> None:
        super().__init__(vocab_size, seq_len, num_labels)
        self.head_dim = head_dim
        self.rope = rope

        def block() -> Block:
            attention = Attention(
                width,
                num_heads,
                num_kv_heads,
                head_dim,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                norm_eps=norm_eps,
                dropout=dropout,
            )
            return Block(width, mlp_width, norm_eps, dropout, attention)

        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(block() for _ in range(num_layers))
        self.norm = nn.RMSNorm(width, norm_eps)
        self.add_head(self.embed_tokens, tie_head=tie_head)

    @property
    def blocks(self) -> nn.ModuleList:
        """Its blocks."""
        return self.layers

    @property
    def final_norm(self) -> nn.Module:
        """Its last norm."""
        return self.norm

    def hidden(self, ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """See `Decoder.hidden`."""
        positions, mask = place(ids, cache, documents)
        x = self.drop(self.embed_tokens(ids))
        rotation = Rotation.at(positions, self.rope.frequencies(self.head_dim, ids.device), x.dtype)
        return normed(self.through_blocks(x, cache, mask, rotation), self.norm)


def init_llama_torch(model: Llama, generator: Generator) -> None:
    """Torch's default draws, in the order of the modules: embeddings N(0, 1), projections uniform in +- fan_in^-0.5."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, generator=generator)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for tensor in module.parameters(recurse=False):
                init.uniform_(tensor, -bound, bound, generator=generator)


def init_llama_gpt2(model: Llama, generator: Generator) -> None:
    """Draws as for GPT-2: N(0, 0.02), projections into the residual path scaled by (2 num_layers)^-0.5, no biases."""
    residual_std = 0.02 * (2 * len(model.layers)) ** -0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = residual_std if name.endswith(("o_proj", "down_proj")) else 0.02
            init.normal_(module.weight, 0.0, std, generator=generator)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
