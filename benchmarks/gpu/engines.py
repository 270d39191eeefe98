"""What the engines for several GPUs cost on one: ddp and fsdp in a process group of one, beside the bare model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from benchmarks.gpu.ours import Case, How, ours
from benchmarks.gpu.timing import Contender
from torch import distributed

Maker = Callable[[Case], Contender]

STEPS = 60
"""Timed steps of each: a hundredth has to be seen."""
GOAL = 0.01
"""What an engine may cost."""


def _races(name: str, how: How, *wrapped: Literal["ddp", "fsdp"]) -> list[tuple[str, Maker]]:
    """Ours as `how` says, bare and then wrapped."""
    bare = f"bare, {name}"
    makers: list[tuple[str, Maker]] = [(bare, partial(ours, how=how, name=bare))]
    for engine in wrapped:
        made = f"{engine}, {name}"
        makers.append((made, partial(ours, how=replace(how, engine=engine), name=made)))
    return makers


RACES = {
    True: [
        _races("compiled", How(), "ddp"),
        _races("compiled by blocks", How(loss="blocks"), "ddp", "fsdp"),
    ],
    False: [_races("eager", How(), "ddp", "fsdp")],
}
"""By whether a case is compiled. With fsdp no graph is larger than a block."""


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """A process group whose only rank is this process, on NCCL where the device is a GPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def verdicts(finished: Sequence[Contender]) -> list[str]:
    """By what share each is slower than the first, which is the bare one."""
    if not finished:
        return []
    bare, *others = finished
    return [
        f"{each.name} costs {each.median_ms / bare.median_ms - 1:+.2%} over {bare.name} (goal: {GOAL:.0%})"
        for each in others
    ]
