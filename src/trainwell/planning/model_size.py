"""How large a model is and what a token costs, as closed formulas: nothing is built to know it.

Knows the configuration only; tests hold the formulas against the book's and Karpathy's counts.
"""

from dataclasses import dataclass

from trainwell.config.tree import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, split as the optimizer splits them: tensors of two or more dimensions decay."""

    total: int
    """All of them; a tied head counts once."""
    embedding: int
    """Token and position embeddings, and a head of its own."""
    position: int
    """Position embeddings alone."""
    head: int
    """The head's own weights; 0 when it shares those of the token embedding."""
    decayed: int
    """In tensors of two or more dimensions."""
    decayed_tensors: int
    """How many of those tensors there are."""
    not_decayed: int
    """In biases and layer norms."""
    not_decayed_tensors: int
    """How many of those tensors there are."""


def count_parameters(model: ModelConfig, vocab_size: int, seq_len: int) -> ParameterCount:
    """Count the parameters of a GPT-2 with these switches; `vocab_size` is the padded one.

    With C the width, a block has matrices of 3C^2 (queries, keys, values), C^2, 4C^2 and 4C^2, biases of 3C (unless
    switched off), C, 4C and C, and two layer norms of 2C each; one more layer norm follows the last block.
    """
    width, layers = model.width, model.num_layers
    token, position = vocab_size * width, seq_len * width
    head = 0 if model.tie_head else token
    decayed = token + position + head + layers * 12 * width**2
    vectors = layers * ((9 if model.qkv_bias else 6) * width + 4 * width) + 2 * width
    return ParameterCount(
        total=decayed + vectors,
        embedding=token + position + head,
        position=position,
        head=head,
        decayed=decayed,
        decayed_tensors=4 * layers + (2 if model.tie_head else 3),
        not_decayed=vectors,
        not_decayed_tensors=layers * (8 if model.qkv_bias else 7) + 2,
    )


def flops_per_token(model: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Floating point operations to train on one token, forward and backward: 6 N + 12 L H Q T (PaLM, appendix B).

    N counts what is multiplied: all parameters but the position embeddings, the vocabulary once, since looking a token
    up multiplies nothing. L H Q T is layers x heads x size of a head x tokens: the work inside attention.
    """
    count = count_parameters(model, vocab_size, seq_len)
    multiplied = count.total - count.position - count.head
    return 6 * multiplied + 12 * model.num_layers * model.width * seq_len
