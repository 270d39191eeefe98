"""Your own data: anything with a length and pairs (inputs, targets); or a loader that only runs forward.

python examples/own_data.py [STEPS]
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import trainwell as tw


class Sums:
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
    shape = {"num_layers": 2, "width": 64, "pad_vocab_to": 12}
    common = {"model": shape, "batch_size": 64, "micro_batch": 64, "duration": steps}
    tw.fit(tw.build("demo", data=Sums(0, 9000), val=Sums(9000, 10000), run_dir="runs/own-data", **common))

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 9000 - 64, 64):
            rows = [Sums(0, 9000)[index] for index in range(start, start + 64)]
            yield torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    tw.fit(tw.build("demo", data=tw.from_loader(list(loader())), run_dir="runs/own-loader", **common))


if __name__ == "__main__":
    main()
