"""Your own script with every verb of the command line, built around your own model.

python examples/own_script.py train demo --duration 100 --extra.hidden 96 --run runs/own-script
python examples/own_script.py sample runs/own-script
"""

import torch
from torch import Tensor, nn

import trainwell as tw
from trainwell.config.tree import RunConfig


class GRUModel(nn.Module):
    """A recurrent language model: ids (B, T) to logits (B, T, V)."""

    def __init__(self, vocab_size: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden)
        self.gru = nn.GRU(hidden, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.gru(self.embed(ids))
        logits: Tensor = self.head(states)
        return logits


def make_model(config: RunConfig) -> nn.Module:
    """Called when a verb needs the model; `config.extra` holds the script's own keys."""
    torch.manual_seed(config.seed)
    return GRUModel(vocab_size=257, hidden=config.extra.get("hidden", 64))


if __name__ == "__main__":
    tw.cli.main(model=make_model)
