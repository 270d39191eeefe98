"""How many sequences and tokens each step takes: pure, and the only place that says so.

Knows no data, rank or micro-batch. Callers ask for each step and never assume that the answer is always the same.
"""

from bisect import bisect_right
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from functools import cached_property
from math import floor

_EXACT = Context(prec=60)
"""Sixty digits, the same on every machine: a library's own `pow` may differ from another's in the last bit."""


@dataclass(frozen=True)
class Ramp:
    """A climb from `start` to `full` tokens a step over the first `over` tokens.

    With n the tokens before a step, it takes start + (full - start) n/over (GPT-3, Brown et al. 2020, section 2.3 and
    appendix B); with `stages` K, start + (full - start) floor(K n/over)/K (Megatron-LM's equal increments).
    """

    start: int
    full: int
    over: int
    stages: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.start < self.full or self.over < 1:
            raise ValueError(f"{self} does not climb: it takes 0 < start < full, over at least 1 token")

    def size(self, tokens: Fraction | int) -> Fraction:
        """Tokens of the step that `tokens` come before, exact and not yet whole sequences."""
        share = Fraction(tokens) / self.over
        if share >= 1:
            return Fraction(self.full)
        if self.stages is not None:
            share = Fraction(floor(share * self.stages), self.stages)
        return self.start + (self.full - self.start) * share

    @cached_property
    def num_steps(self) -> int:
        """Steps that begin before `over` tokens."""
        if self.stages is not None:
            return self._legs[-1][0]
        times = _EXACT.divide(Decimal(self.full), Decimal(self.start))  # 1 + a over/start
        reached = _EXACT.divide(_EXACT.ln(times), _EXACT.ln(self._factor))
        return int(reached.to_integral_value(ROUND_CEILING, _EXACT))

    def before(self, step: int) -> Fraction:
        """Tokens before `step`, exact: the sum of the sizes of all steps before it.

        In a linear climb each step takes start + a n of the n tokens before it, a = (full - start)/over, so
        n grows by the factor 1 + a from step to step and sums up to start ((1 + a)^step - 1)/a.
        """
        if self.stages is not None:
            first, tokens = self._legs[bisect_right(self._legs, step, key=lambda leg: leg[0]) - 1]
            return tokens + (step - first) * self.size(tokens)
        inside = min(step, self.num_steps)
        grown = Fraction(_EXACT.power(self._factor, inside)) - 1
        return grown * Fraction(self.start * self.over, self.full - self.start) + (step - inside) * self.full

    @cached_property
    def _factor(self) -> Decimal:
        return _EXACT.divide(Decimal(self.over + self.full - self.start), Decimal(self.over))

    @cached_property
    def _legs(self) -> list[tuple[int, Fraction]]:
        """First step of each stretch of equal steps, and the tokens before it; the last stretch is at full size."""
        step, tokens = 0, Fraction(0)
        legs = [(step, tokens)]
        for stage in range(1, (self.stages or 0) + 1):
            size, end = self.size(tokens), Fraction(self.over * stage, self.stages or 1)
            taken = max(0, -floor((tokens - end) / size))
            step, tokens = step + taken, tokens + taken * size
            legs.append((step, tokens))
        return legs


@dataclass(frozen=True)
class BatchPlan:
    """Steps of `batch_size` sequences of `seq_len` tokens, counted over all ranks, perhaps after a ramp.

    Inside a ramp a batch is a whole number of `multiple_of` sequences. What rounding takes from one step the next ones
    give back, so that the tokens before any step are those of the exact ramp, to half of that quantum.

    `skips` are pairs (step, batches) in order: from that step on the data goes on as if so many more steps had read it.
    They move the place in the data and nothing else: what is consumed, and with it every rate and length, stays.
    """

    batch_size: int
    seq_len: int
    ramp: Ramp | None = None
    multiple_of: int = 1
    skips: tuple[tuple[int, int], ...] = ()

    def size(self, step: int) -> int:
        """Sequences in the global batch of `step`."""
        if step >= self.ramp_steps:
            return self.batch_size
        return self.examples_before(step + 1) - self.examples_before(step)

    def exact_size(self, step: int) -> float:
        """Sequences in the batch of `step` before rounding to whole quanta: what a curve of them is drawn through."""
        if self.ramp is None or step >= self.ramp_steps:
            return float(self.batch_size)
        return float(self.ramp.size(self.ramp.before(step)) / self.seq_len)

    def examples_before(self, step: int) -> int:
        """Sequences consumed before `step`."""
        if self.ramp is None:
            return step * self.batch_size
        inside = min(step, self.ramp.num_steps)
        quanta = floor(self.ramp.before(inside) / (self.multiple_of * self.seq_len) + Fraction(1, 2))
        return quanta * self.multiple_of + (step - inside) * self.batch_size

    def first_example(self, step: int) -> int:
        """Place in the data of the first example of the batch of `step`: those consumed before it, and those skipped.

        A skip of n batches at step s passes over the examples that steps s to s + n - 1 have in a run without skips;
        in a ramp they are fewer than n full batches.
        """
        passed = sum(
            self.examples_before(at + batches) - self.examples_before(at) for at, batches in self.skips if at <= step
        )
        return self.examples_before(step) + passed

    def tokens_before(self, step: int) -> int:
        """Tokens (positions, masked or not) consumed before `step`; of the number of steps, those of the whole run."""
        return self.examples_before(step) * self.seq_len

    @property
    def ramp_steps(self) -> int:
        """Steps before the batch is full."""
        return 0 if self.ramp is None else self.ramp.num_steps

    def position(self, examples: Fraction | int) -> Fraction:
        """Where in the run so many sequences are consumed: a step, and the fraction of its batch."""
        full_from = self.examples_before(self.ramp_steps)
        if examples >= full_from:
            return self.ramp_steps + Fraction(examples - full_from) / self.batch_size
        step, end = 0, self.ramp_steps
        while end - step > 1:
            middle = (step + end) // 2
            step, end = (middle, end) if self.examples_before(middle) <= examples else (step, middle)
        return step + Fraction(examples - self.examples_before(step)) / self.size(step)
