"""Your own model, and a moving average of it that is saved, verified and restored with the run.

Run it twice: the second time it continues, and finds nothing left to do. python examples/own_model.py [STEPS]
"""

import sys

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import trainwell as tw


class ConvGPT(nn.Module):
    """Any module from ids (B, T) to logits (B, T, V) will do: this one looks back with causal convolutions."""

    def __init__(self, vocab_size: int, width: int, reach: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.reach = reach
        self.convs = nn.ModuleList(nn.Conv1d(width, width, reach) for _ in range(4))
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        for conv in self.convs:
            x = x + torch.relu(conv(nn.functional.pad(x, (self.reach - 1, 0))))
        logits: Tensor = self.head(x.transpose(1, 2))
        return logits


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    torch.manual_seed(0)
    model = ConvGPT(vocab_size=257, width=64, reach=4)
    with tw.build("demo", model=model, duration=steps, extra={"reach": 4}, run_dir="runs/own-model") as run:
        average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        run.keep("average", average)
        for result in tw.steps(run):
            average.update_parameters(run.model)
            if result.step % 100 == 0:
                run.log(largest=tw.largest_gradient(run.model))
        if run.val is not None:
            print(f"the last weights: {tw.evaluate(run.model, run.val).loss:.4f}")
            print(f"their average:    {tw.evaluate(average, run.val).loss:.4f}")


if __name__ == "__main__":
    main()
