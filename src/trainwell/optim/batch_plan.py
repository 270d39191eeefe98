"""How many sequences and tokens each step takes: pure, and the only place that says so.

Knows no data, rank or micro-batch. Callers ask for each step and never assume that the answer is always the same.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """A run of `num_steps` steps of `batch_size` sequences, each of `seq_len` tokens, counted over all ranks."""

    batch_size: int
    seq_len: int
    num_steps: int

    def size(self, step: int) -> int:
        """Sequences in the global batch of `step`."""
        return self.batch_size

    def examples_before(self, step: int) -> int:
        """Sequences consumed before `step`: the number of the first example of its batch."""
        return step * self.batch_size

    def tokens_before(self, step: int) -> int:
        """Tokens (positions, masked or not) consumed before `step`; of `num_steps`, the tokens of the whole run."""
        return self.examples_before(step) * self.seq_len
