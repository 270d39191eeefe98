"""Exercise 4: the loss falls, resuming is exact, and after an epoch a third of the text was not read.

python examples/exercises/4_again.py
"""

import sys

import numpy as np
from numpy.typing import NDArray

from trainwell.build import assemble
from trainwell.data.batches import Batches, Prefetch
from trainwell.data.order import seed_for
from trainwell.given import Data, Given
from trainwell.planning.target import Start, find_start
from trainwell.prove.checks import prove
from trainwell.run import Run


class Shuffled(Batches):
    """Batches of windows in random order, a function of the step, so that resuming is exact."""

    def indices(self, step: int) -> NDArray[np.int64]:
        """The windows of a step."""
        dice = np.random.default_rng(seed_for(self._seed, "order", step))
        return dice.integers(len(self.examples), size=self.plan.size(step))


def make(start: Start, given: Given, data: Data) -> Run:
    """A run like any other, with these batches in it."""
    run = assemble(start, given, data)
    assert isinstance(run.batches, Prefetch)
    run.batches.source.__class__ = Shuffled
    return run


if __name__ == "__main__":
    verdicts = prove(find_start("demo"), small=True, make=make, say=print)
    for verdict in verdicts:
        if not verdict.passed:
            print(f"\n{verdict.title}: {verdict.detail}\nlook at: {verdict.look}")
    sys.exit(not all(verdict.passed for verdict in verdicts))
