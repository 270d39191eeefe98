"""Exercise 3: metrics.jsonl has the schedule's rates to the digit, and there seems to be no warmup.

python examples/exercises/3_behind.py
"""

import sys
from dataclasses import replace

from torch import Tensor

import trainwell as tw
from trainwell.build import assemble
from trainwell.given import Data, Given
from trainwell.planning.target import Start, find_start
from trainwell.prove.checks import prove
from trainwell.run import Run


class Loop(tw.Trainer):
    """The step with the scheduler called where torch's tutorials call it: after the update."""

    def update(self, loss: Tensor) -> tw.StepResult:
        """Update, then set the rate."""
        schedules, self.schedules = self.schedules, {}
        result = super().update(loss)
        self.schedules = schedules
        for group in self.optimizer.param_groups:
            group["lr"] = schedules["lr"](result.step)
        return replace(result, lr=schedules["lr"](result.step))


def make(start: Start, given: Given, data: Data) -> Run:
    """A run like any other, with this loop in it."""
    run = assemble(start, given, data)
    run.trainer.__class__ = Loop
    return run


if __name__ == "__main__":
    verdicts = prove(find_start("demo"), small=True, make=make, say=print)
    for verdict in verdicts:
        if not verdict.passed:
            print(f"\n{verdict.title}: {verdict.detail}\nlook at: {verdict.look}")
    sys.exit(not all(verdict.passed for verdict in verdicts))
