"""Where the ranks of one attempt meet: in torchrun's store, under a name that no attempt before it had.

torchrun has one store for all its attempts, and torch joins a group through it under the same keys each time. A rank
that is started again would find the addresses of ranks that are dead. The number of the attempt is no such name: each
machine's agent counts restarts of its own. So rank 0 draws a name, and another rank takes it once rank 0 has answered.
"""

import os
import secrets
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore
from torch.distributed.rendezvous import rendezvous

_GLANCE_S = 0.02
_CURRENT = "trainwell/attempt"


def meeting_store(rank: int, size: int, timeout: timedelta, environment: Mapping[str, str] = os.environ) -> Any:
    """The store to join a group through; None where torch's own will do, because nothing else was ever in it.

    Raises RuntimeError, as torch does, where the others do not come within `timeout`.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    return own_corner(store, rank, size, timeout)


def own_corner(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """A part of `store` that the ranks of this attempt share with no other attempt; every rank calls it.

    Raises RuntimeError where the others do not come within `timeout`.
    """
    word = secrets.token_hex(8)
    name = word if rank == 0 else _answered(store, rank, word, timeout)
    if rank == 0:
        store.set(_CURRENT, name)
        for other in range(1, size):
            store.wait([f"{name}/{other}"], timeout)
            store.set(f"{name}/{other}/answer", store.get(f"{name}/{other}"))
    return PrefixStore(f"{name}/of", store)


def _answered(store: Any, rank: int, word: str, timeout: timedelta) -> str:
    """The name that rank 0 has drawn: the first under which our word comes back, which no dead rank can send."""
    until = time.monotonic() + timeout.total_seconds()
    store.wait([_CURRENT], timeout)
    while time.monotonic() < until:
        name: str = store.get(_CURRENT).decode()
        store.set(f"{name}/{rank}", word)
        answer = f"{name}/{rank}/answer"
        if store.check([answer]) and store.get(answer).decode() == word:
            return name
        time.sleep(_GLANCE_S)
    raise RuntimeError(f"rank 0 did not answer within {timeout.total_seconds():g} s")
