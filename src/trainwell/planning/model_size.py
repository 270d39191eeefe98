"""How large a model is and what a token costs, as closed formulas: nothing is built to know it.

Knows the configuration only; tests hold the formulas against the models themselves and against published counts.
"""

from dataclasses import dataclass

from trainwell.config.tree import ModelConfig, RunConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, split as the optimizer splits them: tensors of two or more dimensions decay."""

    total: int
    """All of them; a tied head counts once."""
    embedding: int
    """Token and position embeddings, and a head of its own."""
    position: int
    """Position embeddings alone; 0 for an architecture that rotates instead."""
    head: int
    """The head's own weights; 0 when it shares those of the token embedding."""
    decayed: int
    """In tensors of two or more dimensions."""
    decayed_tensors: int
    """How many of those tensors there are."""
    not_decayed: int
    """In biases and norms."""
    not_decayed_tensors: int
    """How many of those tensors there are."""
    block_matrices: int
    """In the matrices of one block, attention and MLP."""
    block_vectors: int
    """In the norms and biases of one block."""
    final_norm: int
    """In the norm after the last block."""


def count_parameters(
    model: ModelConfig, vocab_size: int, seq_len: int, *, num_labels: int | None = None
) -> ParameterCount:
    """Count the parameters of a model; `vocab_size` is the padded one, `num_labels` the classes of a classifier.

    With C the width, D the size of a head, H and K the heads of queries and of keys and values, M the width of the MLP:

    - a block of gpt2 has matrices 3C x C (queries, keys, values), C x C, 4C x C and C x 4C, biases of 3C (unless
      switched off), C, 4C and C, two layer norms of 2C each, and two norms of D where queries and keys are normed; one
      more layer norm follows the last block;
    - a block of llama has matrices HD x C, KD x C twice and C x HD, and three of M x C; two norms of C, two of D where
      queries and keys are normed, biases of HD and KD twice where switched on; one more norm follows the last block.

    A head that is tied counts once; that of a classifier has `num_labels` rows and is never tied.
    """
    width, layers = model.width, model.num_layers
    matrices, vectors = _gpt2_block(model) if model.arch == "gpt2" else _llama_block(model)
    final_norm = [width, width] if model.arch == "gpt2" else [width]
    token = vocab_size * width
    position = seq_len * width if model.arch == "gpt2" else 0
    head = _head_rows(model, vocab_size, num_labels) * width if num_labels or not model.tie_head else 0
    outside = [size for size in (token, position, head) if size]
    decayed = sum(outside) + layers * sum(matrices)
    not_decayed = layers * sum(vectors) + sum(final_norm)
    return ParameterCount(
        total=decayed + not_decayed,
        embedding=token + position + head,
        position=position,
        head=head,
        decayed=decayed,
        decayed_tensors=layers * len(matrices) + len(outside),
        not_decayed=not_decayed,
        not_decayed_tensors=layers * len(vectors) + len(final_norm),
        block_matrices=sum(matrices),
        block_vectors=sum(vectors),
        final_norm=sum(final_norm),
    )


def flops_per_token(model: ModelConfig, vocab_size: int, seq_len: int, *, num_labels: int | None = None) -> int:
    """Floating point operations to train on one token, forward and backward: 6 N + 12 L H D T (PaLM, appendix B).

    N counts what is multiplied: the blocks and the head, tied or not, but no embedding, since looking a token up
    multiplies nothing. L H D T is layers x heads x size of a head x tokens: the work inside attention, the same for
    fewer heads of keys and values, and counted as if every token saw all T.
    """
    count = count_parameters(model, vocab_size, seq_len, num_labels=num_labels)
    multiplied = count.total - count.embedding + _head_rows(model, vocab_size, num_labels) * model.width
    return 6 * multiplied + 12 * model.num_layers * model.num_heads * model.size_of_head * seq_len


def num_classes(config: RunConfig) -> int | None:
    """Outputs of a classifier's head as far as the configuration says, 2 where only the data would; None for a model of
    language.
    """
    if config.task != "classify":
        return None
    return 2 if config.data.labels is None else len(config.data.labels.split(","))


def _head_rows(model: ModelConfig, vocab_size: int, num_labels: int | None) -> int:
    return vocab_size if num_labels is None else num_labels


def _gpt2_block(model: ModelConfig) -> tuple[list[int], list[int]]:
    """Sizes of the matrices of a block and of its vectors."""
    width, hidden = model.width, model.width_of_mlp
    norms = [width] * 4 + ([model.size_of_head] * 2 if model.qk_norm else [])
    biases = [3 * width] if model.has_qkv_bias else []
    return [3 * width**2, width**2, hidden * width, hidden * width], [*norms, *biases, width, hidden, width]


def _llama_block(model: ModelConfig) -> tuple[list[int], list[int]]:
    """Sizes of the matrices of a block and of its vectors."""
    width, head = model.width, model.size_of_head
    queries, keys = model.num_heads * head, model.kv_heads * head
    matrices = [queries * width, keys * width, keys * width, width * queries, *[model.width_of_mlp * width] * 3]
    biases = [queries, keys, keys] if model.has_qkv_bias else []
    return matrices, [width, width, *([head, head] if model.qk_norm else []), *biases]
