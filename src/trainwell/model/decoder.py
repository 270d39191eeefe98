"""What every architecture here is: a body that gives hidden states, and a head that reads them."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainwell.model.attention import KVCache


class Decoder(nn.Module, ABC):
    """A decoder-only transformer: token ids (B, T) to logits (B, T, V), or as a classifier to (B, T, labels).

    An architecture names and builds its own modules, and calls `add_head` last.
    """

    lm_head: nn.Linear
    recompute: bool = False
    """Keep only what enters each block in training, and compute the inside again on the way back."""
    narrow: bool = False
    """Under autocast, add up the residual path in its 16 bits too: half of what norms and additions move."""

    def __init__(self, vocab_size: int, seq_len: int, num_labels: int | None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.num_labels = num_labels
        """Outputs of a classifier; None for a model of language. They mean something at a text's last token alone."""

    def add_head(self, embedding: nn.Embedding, *, tie_head: bool) -> None:
        """Make the head: the embedding's own weights where it is tied, and for a classifier never."""
        outputs = self.vocab_size if self.num_labels is None else self.num_labels
        self.lm_head = nn.Linear(embedding.embedding_dim, outputs, bias=False)
        if tie_head and self.num_labels is None:
            self.lm_head.weight = embedding.weight

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks in order."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""

    @abstractmethod
    def hidden(self, ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """What the head reads at each of `ids` (B, T): (B, T, C), after the last norm.

        With a cache, `ids` continue what it holds. With `documents` (B, T), the number of each token's document, which
        never falls along a row, a token sees its own document only and positions count from its start.
        """

    def through_blocks(self, x: Tensor, cache: KVCache | None, *shared: Any) -> Tensor:
        """Send `x` (B, T, C) through all blocks, each called with `x`, its number, the cache and what they `shared`.

        With `recompute`, a block leaves its input for the backward pass and nothing else; there it runs once more,
        with the same random numbers, so that gradients stay the same to the bit (Chen et al., 2016).
        """
        if self.narrow and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        again = self.recompute and self.training and cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            arguments = (x, layer, cache, *shared)
            x = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        return x

    def new_cache(self) -> KVCache:
        """An empty cache for generating with this model."""
        return KVCache(len(self.blocks))

    def forward(self, ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids` (B, T); `cache` and `documents` as in `hidden`."""
        # the class's method, not the object's: fsdp wraps that one as it does this, and would gather the weights twice
        return self.lm_head(type(self).hidden(self, ids, cache, documents))  # type: ignore[no-any-return]
