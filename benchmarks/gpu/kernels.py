"""Where the time of a step goes, kernel by kernel, and how much of it the device is idle."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.gpu.timing import finish
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("copies", ("memcpy", "memset")),
    ("attention", ("flash", "fmha", "sdpa", "attention")),
    ("loss", ("nll", "log_softmax", "cross_entropy", "logsumexp", "loss_and_gradient")),
    ("optimizer", ("adam", "multi_tensor", "foreach", "lpnorm")),
    ("matmul", ("gemm", "cutlass", "cublas", "nvjet", "triton_tem", "triton_mm", "::mm", "::addmm", "::bmm", "mkldnn")),
)
"""Parts of names, looked for in this order: attention is made of matrix products, and its kernels say both."""

_RANGES = ("##", "Optimizer.", "Torch-Compiled Region", "CompiledFunction", "ProfilerStep")
"""Names of ranges that cover kernels and are none."""


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel, in microseconds of the profiler's clock."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Profile:
    """Kernels by the time they took together, and the shares of the time from the first one to the end of the last."""

    table: list[tuple[str, str, int, float]]
    """Name, kind, runs and milliseconds."""
    shares: dict[str, float]


def kind_of(name: str) -> str:
    """What a kernel computes, by its name; `other` holds norms, GELU, embeddings and residuals."""
    lowered = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lowered for part in parts)), "other")


def busy(kernels: Iterable[Kernel]) -> float:
    """Microseconds in which at least one kernel ran."""
    total, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda each: each.begin):
        total += max(0.0, kernel.end - max(kernel.begin, until))
        until = max(until, kernel.end)
    return total


def summed(kernels: list[Kernel]) -> Profile:
    """Add up by name and by kind; kernels that overlap each count whole, and idle is what none of them covers."""
    times: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        times[kernel.name].append(kernel.end - kernel.begin)
    table = [(name, kind_of(name), len(each), sum(each) / 1000) for name, each in times.items()]
    table.sort(key=lambda row: -row[3])
    span = max(kernel.end for kernel in kernels) - min(kernel.begin for kernel in kernels)
    shares = {kind: 0.0 for kind, _ in KINDS} | {"other": 0.0}
    for _, kind, _, ms in table:
        shares[kind] += ms * 1000 / span
    return Profile(table, shares | {"idle": 1 - busy(kernels) / span})


def recorded(step: Callable[[], object], steps: int, device: torch.device) -> list[Kernel]:
    """The kernels of `steps` steps; on a CPU operations, each without those it calls."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        finish(device)
    events: list[Any] = list(profiler.events() or [])
    if gpu:
        found = [event for event in events if event.device_type == DeviceType.CUDA and not _is_range(event)]
        return [Kernel(event.name, event.time_range.start, event.time_range.end) for event in found]
    own = [(event.name, event.time_range.start, event.self_cpu_time_total) for event in events if not _is_range(event)]
    return [Kernel(name, begin, begin + microseconds) for name, begin, microseconds in own]


def _is_range(event: Any) -> bool:
    return getattr(event, "is_user_annotation", False) or event.name.startswith(_RANGES)
