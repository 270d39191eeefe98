"""Your own loss: a SUM over the micro-batch's targets, with parts that are logged as train/ce and train/z.

python examples/own_loss.py [STEPS]
"""

import sys

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import trainwell as tw


def loss_with_z(model: nn.Module, batch: tw.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy plus the z-loss of PaLM, which keeps the logits' normaliser near zero."""
    logits = model(batch.inputs)
    ce = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    z = logits.logsumexp(-1).square().sum()
    return ce + 1e-4 * z, {"ce": ce, "z": z}


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    tw.fit(tw.build("demo", loss=loss_with_z, duration=steps, run_dir="runs/own-loss"))


if __name__ == "__main__":
    main()
