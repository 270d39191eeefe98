"""What a rank holds of a model, and what it sends in a step, in bytes: DDP, FSDP2 and hybrid sharding as formulas.

Knows shapes and numbers of ranks; no torch, no device. Tests hold every formula against torch itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainwell.config.tree import ModelConfig

Parallel = Literal["ddp", "fsdp", "hybrid"]
Shape = tuple[int, int]
"""Rows of a tensor, and the numbers in each: FSDP2 cuts along the rows. A vector has rows of one number."""

_FLOAT = 4
_KEPT = 16
"""Bytes of a parameter: weight, gradient and both moments, in float32."""
_SHARE = 0.5
"""Of a GPU's memory, what those may take for nodes to have copies."""


@dataclass(frozen=True)
class Layout:
    """The tensors of a model as FSDP2 groups them: each block is one group, all else the root's."""

    block: tuple[Shape, ...]
    num_blocks: int
    root: tuple[Shape, ...]

    @property
    def total(self) -> int:
        """Parameters."""
        return self.num_blocks * _numbers(self.block) + _numbers(self.root)

    def padded(self, shards: int) -> int:
        """Parameters of a rank's shards with the padding that makes them equally long: what its buffers hold."""
        return self.num_blocks * padded(self.block, shards) + padded(self.root, shards)

    def held(self, shards: int, rank: int = 0) -> int:
        """Parameters in a rank's shards, without padding; rank 0 has the most."""
        return self.num_blocks * held(self.block, shards, rank) + held(self.root, shards, rank)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a step, by rings, which send the least that is possible."""

    gathered_forward: int
    """All-gathers of weights in the forward pass of one micro-batch."""
    gathered_backward: int
    """The same on its way back."""
    reduced: int
    """Reduce-scatters of gradients, once a step."""
    all_reduced: int
    """All-reduces of gradients, once a step: among all ranks, or in hybrid among those with the same shard."""

    def total(self, micro_batches: int) -> int:
        """Of a step with so many micro-batches on each rank."""
        return micro_batches * (self.gathered_forward + self.gathered_backward) + self.reduced + self.all_reduced


def layout(model: ModelConfig, vocab_size: int, seq_len: int, num_labels: int | None = None) -> Layout:
    """The tensors of a model; `vocab_size` is the padded one, `num_labels` the classes of a classifier."""
    width = model.width
    block = _gpt2_block(model) if model.arch == "gpt2" else _llama_block(model)
    root: list[Shape] = [(vocab_size, width)]
    root += [(seq_len, width), (width, 1), (width, 1)] if model.arch == "gpt2" else [(width, 1)]
    if num_labels is not None:
        root.append((num_labels, width))
    elif not model.tie_head:
        root.append((vocab_size, width))
    return Layout(tuple(block), model.num_layers, tuple(root))


def padded(shapes: Sequence[Shape], shards: int) -> int:
    """Numbers in each rank's buffers: ceil(rows / shards) rows of every tensor, as many on all ranks."""
    return sum(-(-rows // shards) * per_row for rows, per_row in shapes)


def held(shapes: Sequence[Shape], shards: int, rank: int) -> int:
    """Numbers of the tensors that a rank has: the last ranks get fewer rows, or none (torch.chunk)."""
    found = 0
    for rows, per_row in shapes:
        chunk = -(-rows // shards)
        found += max(0, min(chunk, rows - rank * chunk)) * per_row
    return found


def has_copies(parameters: int, per_node: int, memory: int) -> bool:
    """Whether `--parallel fsdp` gives each of several nodes all weights, in parts on GPUs of `memory` bytes."""
    return _KEPT * parameters / per_node <= _SHARE * memory


def traffic(model: Layout, how: Parallel, ranks: int, per_node: int, weight_size: int, trained: int) -> Traffic:
    """Bytes a rank sends in a step; `weight_size` is bytes of a weight as it is gathered, `trained` what learns.

    A ring over n ranks sends (n - 1) shards of a rank in an all-gather and in a reduce-scatter, and 2 (n - 1)/n of the
    whole in an all-reduce (Patarasuk and Yuan, 2009). Blocks are gathered twice for each micro-batch, since they are
    dropped after the forward pass, and the root once; gradients travel in float32, once a step.
    """
    if how == "ddp":
        return Traffic(0, 0, 0, _all_reduce(_FLOAT * trained, ranks))
    shards = ranks if how == "fsdp" else per_node
    blocks, root = model.num_blocks * padded(model.block, shards), padded(model.root, shards)
    return Traffic(
        gathered_forward=(shards - 1) * weight_size * (blocks + root),
        gathered_backward=(shards - 1) * weight_size * blocks,
        reduced=(shards - 1) * _FLOAT * (blocks + root),
        all_reduced=_all_reduce(_FLOAT * (blocks + root), ranks // shards),
    )


def _all_reduce(size: int, ranks: int) -> int:
    return 2 * (ranks - 1) * size // ranks


def _numbers(shapes: Sequence[Shape]) -> int:
    return sum(rows * per_row for rows, per_row in shapes)


def _gpt2_block(model: ModelConfig) -> list[Shape]:
    width, hidden = model.width, model.width_of_mlp
    matrices = [(3 * width, width), (width, width), (hidden, width), (width, hidden)]
    biases = [3 * width] if model.has_qkv_bias else []
    norms = [width] * 4 + ([model.size_of_head] * 2 if model.qk_norm else [])
    return [*matrices, *((rows, 1) for rows in (*biases, width, hidden, width, *norms))]


def _llama_block(model: ModelConfig) -> list[Shape]:
    width, hidden, head = model.width, model.width_of_mlp, model.size_of_head
    queries, keys = model.num_heads * head, model.kv_heads * head
    matrices = [(queries, width), (keys, width), (keys, width), (width, queries)]
    matrices += [(hidden, width), (hidden, width), (width, hidden)]
    biases = [queries, keys, keys] if model.has_qkv_bias else []
    norms = [width, width] + ([head, head] if model.qk_norm else [])
    return [*matrices, *((rows, 1) for rows in (*biases, *norms))]
