"""Exercise 1: half the micro-batch should change the memory and nothing else. Here the loss curve moves too.

python examples/exercises/1_memory.py
"""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import trainwell as tw


def loss(model: nn.Module, batch: tw.MicroBatch) -> Tensor:
    """Cross-entropy of a micro-batch."""
    logits = model(batch.inputs)
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten())


if __name__ == "__main__":
    tw.cli.main(["check", "demo", "--prove", "--small"], loss=loss)
