"""Models by their sizes, what a token of them costs, and the tokens they are trained on. Knows no torch."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

PEAK_TFLOPS = 989.0
"""Dense bf16 of an H100 SXM and of an H200, from NVIDIA's data sheets; MFU is a share of it."""


@dataclass(frozen=True)
class Shape:
    """A GPT-2 with biases and a tied head: its sizes, and the micro-batches it is measured at, the middle one first."""

    name: str
    layers: int
    heads: int
    width: int
    vocab: int
    seq_len: int
    micro_batches: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """All of them: a block has 12 C^2 in matrices and 13 C in biases and norms; the head is the embedding."""
        blocks = self.layers * (12 * self.width**2 + 13 * self.width)
        return (self.vocab + self.seq_len) * self.width + blocks + 2 * self.width

    @property
    def flops_per_token(self) -> int:
        """6 N + 12 L H Q T (PaLM, appendix B), with N as nanoGPT counts: all parameters but the position embeddings.

        Q is the size of a head, so H Q is the width; attention counts as if every token saw all T.
        """
        counted = self.parameters - self.seq_len * self.width
        return 6 * counted + 12 * self.layers * self.width * self.seq_len

    def matmuls(self, rows: int) -> dict[str, tuple[int, int, int]]:
        """The matrix products of a step over `rows` tokens as (m, k, n), (m, k) times (k, n)."""
        c, v = self.width, self.vocab
        return {
            "qkv": (rows, c, 3 * c),
            "attention out": (rows, c, c),
            "up": (rows, c, 4 * c),
            "down": (rows, 4 * c, c),
            "head forward": (rows, c, v),
            "head gradient": (v, rows, c),
        }


GPT2_124M = Shape("124M", layers=12, heads=12, width=768, vocab=50304, seq_len=1024, micro_batches=(32, 16, 64))
GPT2_350M = Shape("350M", layers=24, heads=16, width=1024, vocab=50304, seq_len=1024, micro_batches=(16, 32))
TINY = Shape("tiny", layers=2, heads=2, width=64, vocab=512, seq_len=64, micro_batches=(4, 2))
TINY_TOO = Shape("tiny, wider", layers=2, heads=2, width=96, vocab=512, seq_len=64, micro_batches=(2,))


def mfu(shape: Shape, tokens_per_second: float, peak_tflops: float = PEAK_TFLOPS) -> float:
    """Share of the device's arithmetic that the model takes: flops per token x tokens per second over the peak."""
    return shape.flops_per_token * tokens_per_second / (peak_tflops * 1e12)


@cache
def make_tokens(count: int, vocab: int, seed: int = 1337) -> NDArray[np.uint16]:
    """Ids drawn with a chance of 1 / (rank + 3), much as words are: the embedding's gradient meets the same rows often.

    The same for the same seed, on every machine.
    """
    chances = 1.0 / (np.arange(vocab) + 3.0)
    edges = np.cumsum(chances / chances.sum())
    drawn = np.searchsorted(edges[:-1], np.random.default_rng(seed).random(count), side="right")
    return drawn.astype(np.uint16)
