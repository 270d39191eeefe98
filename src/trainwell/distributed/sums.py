"""The numbers of a step, added up over ranks in one message: the loss, its parts by name, who asks to stop.

Ranks whose parts have different names would send messages of different lengths, and hang. So what travels are the
names that all have agreed on, and how many ranks have others.
"""

from collections import deque
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainwell.distributed.world import World
from trainwell.errors import ConfigError

BEHIND = 4
"""So many steps later a GPU's answer is read: to read it at once is to wait for the device."""


class StepSums:
    """Adds up the numbers of each step. Every rank calls it after every step, in the same order.

    On a CPU it is known at once when ranks have parts of different names; on a GPU some steps later, and until then
    a part that is new on all of them is left out.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        self._world = world
        self._behind = BEHIND if device.type == "cuda" else 0
        self._names: tuple[str, ...] | None = None
        self._coming: deque[tuple[Tensor, tuple[str, ...]]] = deque()

    def __call__(
        self, total: Tensor, parts: Mapping[str, Tensor], asked: bool
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss and its parts over all ranks, and how many of them are `asked` to stop; all on the device.

        Raises ConfigError on all ranks where the parts have different names.
        """
        own = tuple(sorted(parts))  # each rank has them in an order of its own
        if self._names is None:
            self._names = agreed_names(self._world, own)
        names, nothing = self._names, torch.zeros_like(total)
        mine = [parts[name].to(total) if name in parts else nothing for name in names]
        flags = [torch.full_like(total, asked), torch.full_like(total, own != names)]
        whole, *sums, stop, others = self._world.sum_(torch.stack([total, *mine, *flags])).unbind()
        self._coming.append((others, own))
        if len(self._coming) > self._behind:
            count, then = self._coming.popleft()
            if count:  # on every rank, and so all of them agree anew, and add up once more
                self._names = agreed_names(self._world, then)
                self._coming.clear()
                return self(total, parts, asked)
        return whole, dict(zip(names, sums, strict=True)), stop


def agreed_names(world: World, names: Iterable[str]) -> tuple[str, ...]:
    """The names of a loss's parts, sorted, once all ranks have the same.

    Raises ConfigError on all of them, with who has which, where they have not.
    """
    found = world.collect(tuple(sorted(names)))
    other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
    if other is not None:
        first, second = (", ".join(found[rank]) or "none" for rank in (0, other))
        raise ConfigError(
            f"loss: the names of its parts are {first} on rank 0 and {second} on rank {other}; give the same on every "
            "rank and in every batch, with zero where there is nothing to count"
        )
    return found[0]  # type: ignore[no-any-return]
