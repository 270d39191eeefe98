"""Exercise 6: a NaN is survived, with gradients of zero in its place. The weights change all the same.

python examples/exercises/6_nothing.py
"""

import sys
from dataclasses import replace

import torch
from torch import Tensor

import trainwell as tw
from trainwell.build import assemble
from trainwell.given import Data, Given
from trainwell.planning.target import Start, find_start
from trainwell.prove.checks import prove
from trainwell.run import Run


class Loop(tw.Trainer):
    """The step, in which a batch whose loss is not finite counts for nothing."""

    def update(self, loss: Tensor) -> tw.StepResult:
        """Update by gradients of zero where there are none to be had."""
        finite = loss.isfinite()
        for parameter in self.parameters:
            if parameter.grad is not None and not finite:
                parameter.grad.zero_()
        result = super().update(loss.nan_to_num())
        return replace(result, loss=loss, skipped=torch.logical_not(finite))


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
