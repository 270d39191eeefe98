"""Your own data: anything with a length and pairs (inputs, targets); or a loader that only runs forward.

python examples/own_data.py [STEPS]
"""

import sys

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import trainwell as tw


class Sums(Dataset[tuple[Tensor, Tensor]]):
    """Additions of two numbers below 100, as characters: 17+25=042. Only the answer is to be predicted."""

    alphabet = "0123456789+="

    def __init__(self, first: int, last: int) -> None:
        self.pairs = range(first, last)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        a, b = divmod(self.pairs[index] * 7919 % 10000, 100)
        ids = torch.tensor([self.alphabet.index(character) for character in f"{a:02}+{b:02}={a + b:03}"])
        targets = ids[1:].clone()
        targets[:5] = -100  # the question counts for nothing
        return ids[:-1], targets


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    shape = {"num_layers": 2, "width": 64, "pad_vocab_to": len(Sums.alphabet)}
    train, val = Sums(0, 9000), Sums(9000, 10000)
    tw.fit(tw.build("demo", data=train, val=val, model=shape, batch_size=64, duration=steps, run_dir="runs/own-data"))

    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    tw.fit(tw.build("demo", data=tw.from_loader(loader), model=shape, duration=steps, run_dir="runs/own-loader"))


if __name__ == "__main__":
    main()
