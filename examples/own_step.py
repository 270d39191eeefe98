"""The step taken apart: backward, something of your own with the gradients, update.

python examples/own_step.py [STEPS]
"""

import sys

import torch
from torch import nn

import trainwell as tw


def add_noise(model: nn.Module, step: int, scale: float = 1e-4) -> None:
    """Gradient noise (Neelakantan et al., 2015), drawn from the step so that a replay draws the same."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tw.build("demo", duration=steps, run_dir="runs/own-step") as run:
        trainer = run.trainer
        trainer.model.train()
        while trainer.step < run.num_steps:
            loss = trainer.backward()
            add_noise(run.model, trainer.step)
            result = trainer.update(loss)
            if result.step % 10 == 0:
                print(f"step {result.step} | loss {result.loss:.4f} | norm {result.grad_norm:.4f} | lr {result.lr:.2e}")


if __name__ == "__main__":
    main()
