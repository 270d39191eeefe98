"""How steps are timed: events between them on a GPU, so that the host is never waited for; in turn, A B B A."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles

import torch

BLOCK = 5
"""Steps of one contender before it is the next one's turn."""


class MissingError(RuntimeError):
    """What a contender needs is not installed here."""


@dataclass
class Contender:
    """Something that takes training steps: `step` gives its loss on the device, or None where it keeps that."""

    name: str
    step: Callable[[], torch.Tensor | None]
    tokens: int
    """Of a step."""
    close: Callable[[], None] = lambda: None
    first_step_s: float = 0.0
    """Of the first step: compiling is in it."""
    first_loss: float | None = None
    peak_gb: float | None = None
    """Largest memory of a step, without what the other contenders hold."""
    times_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Of a step."""
        return median(self.times_ms)

    @property
    def tokens_per_second(self) -> float:
        """By the median."""
        return self.tokens / self.median_ms * 1000

    @property
    def spread(self) -> float:
        """The middle half of the times as a share of their median."""
        low, _, high = quantiles(self.times_ms, n=4)
        return (high - low) / self.median_ms


def finish(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def warm_up(contender: Contender, device: torch.device, held: int, steps: int = 3) -> None:
    """Take the first steps, which compile, and one more to see its memory; `held` bytes were in use before."""
    begin = time.perf_counter()
    loss = contender.step()
    finish(device)
    contender.first_step_s = time.perf_counter() - begin
    contender.first_loss = None if loss is None else float(loss)
    for _ in range(steps - 1):
        contender.step()
    finish(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        contender.step()
        finish(device)
        contender.peak_gb = (torch.cuda.max_memory_allocated() - held) / 1e9


def time_block(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Milliseconds of each of `steps` calls.

    On a GPU one call more comes first: without work ahead of it in the queue, the time to launch would be measured.
    """
    if device.type == "cuda":
        step()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairwise(events)]
    marks = [time.perf_counter()]
    for _ in range(steps):
        step()
        marks.append(time.perf_counter())
    return [(after - before) * 1000 for before, after in pairwise(marks)]


def turns(count: int, rounds: int) -> list[int]:
    """Whose turn it is: up the list and down again, so that a device that gets slower is no advantage of the first."""
    up = list(range(count))
    return [place for number in range(rounds) for place in (up if number % 2 == 0 else up[::-1])]


def race(contenders: Sequence[Contender], steps: int, device: torch.device) -> None:
    """Time `steps` steps of each, in blocks, in turn."""
    block = min(BLOCK, max(1, steps // 2))
    for place in turns(len(contenders), -(-steps // block)):
        contenders[place].times_ms += time_block(contenders[place].step, block, device)
