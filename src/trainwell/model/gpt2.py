"""GPT-2 with the switches that its sources need: Karpathy's lecture (tied head, biases) and Raschka's book (neither).

Beyond them it can norm queries and keys, for runs that are unstable.

Names of modules are GPT-2's own (`wte`, `h.0.attn.c_attn`, ...), so that weights travel. Knows no config and no data.
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import init

from trainwell.model.attention import Kernel, KVCache, attend, normed, place
from trainwell.model.decoder import Decoder


class Attention(nn.Module):
    """Multi-head causal self-attention with queries, keys and values in one projection.

    With `qk_norm` each head's queries and keys go through an RMS norm first, one for queries and one for keys, whose
    weight of size D all heads share (see `attention.normed`).
    """

    def __init__(
        self, width: int, num_heads: int, *, dropout: float, qkv_bias: bool, qk_norm: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.kernel: Kernel = "sdpa"
        self.c_attn = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.c_proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // num_heads, norm_eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(width // num_heads, norm_eps) if qk_norm else None
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        heads = self.c_attn(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)
        if (
            self.q_norm is not None and self.k_norm is not None
        ):  # laid out by tokens, as their mixture then is: no copy of it
            queries = normed(queries.transpose(1, 2), self.q_norm).transpose(1, 2)
            keys = normed(keys.transpose(1, 2), self.k_norm).transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(queries, keys, values, dropout=dropout, mask=mask, kernel=self.kernel)
        return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The feed-forward half of a block: four times as wide, GELU in its tanh form as GPT-2 has it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a residual path."""

    def __init__(self, width: int, norm_eps: float, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, norm_eps)
        self.attn = attention
        self.ln_2 = nn.LayerNorm(width, norm_eps)
        self.mlp = MLP(width, dropout)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), layer, cache, mask)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class GPT2(Decoder):
    """The language model: token ids (B, T) to logits (B, T, V), for T up to `seq_len`.

    With `num_labels` it is a classifier: its head is a new one with that many outputs, never tied, which means
    something at the last token of a text, where all of it has been read. Norms of queries and keys draw nothing: with
    `qk_norm` all other weights start as without.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: float = 0.0,
        tie_head: bool = True,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        num_labels: int | None = None,
    ) -> None:
        super().__init__(vocab_size, seq_len, num_labels)

        def block() -> Block:
            attention = Attention(
                width, num_heads, dropout=dropout, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps
            )
            return Block(width, norm_eps, dropout, attention)

        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(seq_len, width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(block() for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(width, norm_eps)
        self.add_head(self.wte, tie_head=tie_head)

    @property
    def blocks(self) -> nn.ModuleList:
        """Its blocks."""
        return self.h

    @property
    def final_norm(self) -> nn.Module:
        """Its last norm."""
        return self.ln_f

    def hidden(self, ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """See `Decoder.hidden`."""
        positions, mask = place(ids, cache, documents)
        x = self.drop(self.wte(ids) + self.wpe(positions))
        return self.ln_f(self.through_blocks(x, cache, mask))  # type: ignore[no-any-return]


def init_torch(model: GPT2, generator: Generator) -> None:
    """Torch's default draws in the construction order of the book's model, whose query, key and value are apart."""
    _draw_defaults(model, generator, split_qkv=True)


def init_gpt2(model: GPT2, generator: Generator) -> None:
    """GPT-2's weights as Karpathy's code draws them: N(0, 0.02), residual projections scaled by (2 num_layers)^-0.5.

    His model first draws torch's defaults for every module and then draws again over them, a tied head once more.
    A classifier's head has no such past: it is drawn once, last, so that its size changes no other weight.
    """
    classifies = model.num_labels is not None
    _draw_defaults(model, generator, split_qkv=False, without=model.lm_head if classifies else None)
    residual_std = 0.02 * (2 * len(model.h)) ** -0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, 0.0, residual_std if name.endswith("c_proj") else 0.02, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)


def _draw_defaults(model: GPT2, generator: Generator, *, split_qkv: bool, without: nn.Module | None = None) -> None:
    for name, module in model.named_modules():
        if module is without:
            continue
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            parts = 3 if split_qkv and name.endswith("c_attn") else 1
            bias: Tensor | None = module.bias
            biases = [None] * parts if bias is None else bias.chunk(parts)
            for rows, offsets in zip(module.weight.chunk(parts), biases, strict=True):
                _draw_linear(rows, offsets, generator)


@torch.no_grad()
def _draw_linear(weight: Tensor, bias: Tensor | None, generator: Generator) -> None:
    """The draws of `nn.Linear.reset_parameters`: both uniform in +- fan_in^-0.5."""
    init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
    if bias is not None:
        bound = weight.shape[1] ** -0.5
        init.uniform_(bias, -bound, bound, generator=generator)
