"""Which class of work each moment of some profiled steps belongs to: plain events in, milliseconds out.

Knows the names that torch gives its operators, kernels and autograd nodes, and no torch. An event belongs to the range
it is in, where that range says what is done there; what runs backward belongs where its forward operator did, found by
the sequence number that the two share; everything else goes by its name.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainwell.report.profile import Operator

STEP, FORWARD = "trainwell::step", "trainwell::forward"
"""Ranges that say nothing of what is done in them: a step; a forward pass whose loss cannot be told from its model."""
BODY = "trainwell::body"
"""The model up to its head, inside of LOSS."""
LOSS, DATA, OPTIMIZER = "trainwell::loss", "trainwell::data", "trainwell::optimizer"
"""Ranges that say what is done in them."""

_REGIONS = {STEP: None, FORWARD: None, BODY: None, LOSS: "loss", DATA: "data", OPTIMIZER: "optimizer"}
_BACKWARD = "autograd::engine::evaluate_function"
_TORCH_OPTIMIZER = "Optimizer."  # torch's own ranges around step and zero_grad

# The first pattern that is found counts.
_OPERATORS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("loss", r"HeadLoss|cross_entropy|nll_loss|log_softmax|logsumexp"),
        ("attention", r"attention|flash_attn|fmha"),
        ("optimizer", r"adamw?_|_foreach_|linalg_vector_norm|^Optimizer\."),
        ("matmul", r"(?:^|::|_)(?:mm|addmm|bmm|baddbmm|matmul|linear|mv|addmv|dot|einsum)(?:_|$)"),
        ("copies", r"(?:^|::)(?:copy_|_to_copy|to|clone|contiguous|cat|stack|_copy_from|pin_memory)$|^Mem(?:cpy|set)"),
        ("compiled", r"Torch-Compiled|CompiledF|CompiledFxGraph|cpp_fused|CppKernel|^triton"),
    )
)
_KERNELS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("attention", r"flash|fmha|attention"),
        ("matmul", r"^triton_tem_fused.*mm|gemm|gemv|cutlass|cublas|nvjet|xmma"),
        ("compiled", r"^triton"),
        ("optimizer", r"multi_tensor_apply|fused_adam"),
        ("loss", r"nll_loss|log_?softmax"),
        ("copies", r"^Mem(?:cpy|set)|direct_copy|CatArray"),
    )
)
_GO_BY_KERNEL = {"elementwise", "compiled", "idle"}


@dataclass(frozen=True)
class Event:
    """One event of a trace: what ran on a thread of the CPU, or on a device. Times are in microseconds."""

    name: str
    start: float
    end: float
    thread: int = 0
    sequence: int = -1
    """Of a forward operator that autograd records, and of the node that runs it backward; -1 for all others."""
    forward_thread: int = 0
    """Of such a node: the thread of its forward operator."""
    is_range: bool = False
    """Whether a program has put it there, around others."""
    on_device: bool = False
    kernels: tuple[tuple[str, float], ...] = ()
    """What it launched itself on a device, with the time that took there."""


@dataclass(frozen=True)
class Attributed:
    """Where the time of some steps in a row went. Times are in milliseconds, of one step: the mean."""

    num_steps: int
    step_ms: float
    class_ms: dict[str, float]
    """Together they are `step_ms`."""
    operators: tuple[Operator, ...]
    """All of them, those with most time of their own first."""


@dataclass
class _Host:
    """An event on the CPU, placed: what it is in, and how much of its time is its own."""

    event: Event
    region: str | None
    kind: str
    own: float


@dataclass
class _Times:
    """Microseconds by class, and microseconds and calls by name and class."""

    classes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    operators: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))

    def add(self, name: str, kind: str, time: float, calls: int = 1) -> None:
        self.classes[kind] += time
        found = self.operators[name.removeprefix(f"{_BACKWARD}: "), kind]
        found[0] += time
        found[1] += calls


def attribute(events: Iterable[Event], *, device: bool) -> Attributed | None:
    """Share out the time from the first STEP range to the end of the last; None where there is no such range.

    On a CPU it is the own time of the operators on the thread of the steps; what is left is Python. With a `device` it
    is that of the device's kernels, each in the class of the operator that launched it. Kernels that run at the same
    time share it; what is left is waiting for the batch where the steps do that meanwhile, and idle elsewhere.
    """
    known = list(events)
    steps = [event for event in known if event.name == STEP and not event.on_device]
    if not steps:
        return None
    start, end, thread = steps[0].start, max(step.end for step in steps), steps[0].thread
    hosts = _placed(event for event in known if not event.on_device)
    if device:
        times = _on_device(known, hosts, start, end)
    else:
        times = _Times()
        for host in hosts:
            if host.event.thread == thread and start <= host.event.start < end:
                _add_host(times, host)
    times.classes.pop("idle", None)
    times.classes["idle"] = max(0.0, end - start - sum(times.classes.values()))
    per_step_ms = 1 / (1000 * len(steps))
    operators = sorted(times.operators.items(), key=lambda item: -item[1][0])
    return Attributed(
        num_steps=len(steps),
        step_ms=(end - start) * per_step_ms,
        class_ms={kind: time * per_step_ms for kind, time in times.classes.items()},
        operators=tuple(
            Operator(name, kind, time * per_step_ms, calls / len(steps)) for (name, kind), (time, calls) in operators
        ),
    )


def _add_host(times: _Times, host: _Host) -> None:
    if host.event.is_range and host.kind != "compiled":  # a range is no operator, though its Python may be somebody's
        times.classes[host.kind] += host.own
    else:
        times.add(host.event.name, host.kind, host.own)


def _placed(events: Iterable[Event]) -> list[_Host]:
    """The events of the CPU in order of their start, each with its class and its own time."""
    inside: defaultdict[int, list[_Host]] = defaultdict(list)
    of_sequence: dict[tuple[int, int], str | None] = {}
    placed = list[_Host]()
    for event in sorted(events, key=lambda each: (each.start, -each.end)):
        around = inside[event.thread]
        while around and around[-1].event.end <= event.start:
            around.pop()
        parent = around[-1] if around else None
        region = _region(event, parent, of_sequence)
        host = _Host(event, region, _kind(event, region, parent), event.end - event.start)
        if parent is not None:
            parent.own = max(0.0, parent.own - (min(event.end, parent.event.end) - event.start))
        if event.sequence >= 0 and not event.name.startswith(_BACKWARD):
            of_sequence[event.thread, event.sequence] = region  # the innermost is the one that autograd records
        around.append(host)
        placed.append(host)
    return placed


def _region(event: Event, parent: _Host | None, of_sequence: Mapping[tuple[int, int], str | None]) -> str | None:
    """Which class everything in this event belongs to; None where each goes by its own name."""
    if event.name in _REGIONS:
        return _REGIONS[event.name]
    if event.name.startswith(_TORCH_OPTIMIZER):
        return "optimizer"
    around = None if parent is None else parent.region
    if event.name.startswith(_BACKWARD):
        around = of_sequence.get((event.forward_thread, event.sequence))
    if around is None:
        named = _named(event.name, _OPERATORS)
        return named if named in {"attention", "loss"} else None
    return around


def _kind(event: Event, region: str | None, parent: _Host | None) -> str:
    if region is not None:
        return region
    named = _named(event.name, _OPERATORS)
    if named is not None and not event.name.startswith(_BACKWARD) and not event.name.endswith("Backward0"):
        return named
    if event.is_range:
        return "idle"
    inherited = "idle" if parent is None else parent.kind
    return "elementwise" if inherited == "idle" else inherited


def _named(name: str, patterns: Sequence[tuple[str, re.Pattern[str]]]) -> str | None:
    return next((kind for kind, pattern in patterns if pattern.search(name)), None)


def _on_device(events: Sequence[Event], hosts: Sequence[_Host], start: float, end: float) -> _Times:
    ranges = {event.name for event in events if event.is_range}
    kernels = [event for event in events if event.on_device and event.name not in ranges and not event.is_range]
    times, left = _Times(), _totals(kernels)
    for host in hosts:
        for name, time in host.event.kernels:
            if name not in left:
                continue  # a range, which is shown on the device too
            times.add(name, _kind_of_kernel(name, host.kind), time)
            left[name][0] -= time
            left[name][1] -= 1
    for name, (time, calls) in left.items():  # launched by nobody who is known: a graph, a thread that reads data
        if calls > 0 and time > 0:
            times.add(name, _kind_of_kernel(name, "elementwise"), time, int(calls))
    busy = _joined((max(each.start, start), min(each.end, end)) for each in kernels)
    total = sum(times.classes.values())
    at_once = min(1.0, sum(until - since for since, until in busy) / total) if total else 1.0
    for kind in times.classes:
        times.classes[kind] *= at_once
    waits = [host.event for host in hosts if host.event.name == DATA and start <= host.event.start < end]
    times.classes["data"] += sum(_outside(wait, busy) for wait in _joined((each.start, each.end) for each in waits))
    return times


def _totals(kernels: Iterable[Event]) -> dict[str, list[float]]:
    """Time and calls of each kernel."""
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        total = found.setdefault(kernel.name, [0.0, 0])
        total[0] += kernel.end - kernel.start
        total[1] += 1
    return found


def _kind_of_kernel(name: str, launched_by: str) -> str:
    if launched_by not in _GO_BY_KERNEL:
        return launched_by
    named = _named(name, _KERNELS)
    return named or ("elementwise" if launched_by == "idle" else launched_by)


def _joined(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Intervals with those that overlap made one, ascending."""
    found = list[tuple[float, float]]()
    for since, until in sorted(each for each in intervals if each[0] < each[1]):
        if found and since <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], until)
        else:
            found.append((since, until))
    return found


def _outside(interval: tuple[float, float], busy: Iterable[tuple[float, float]]) -> float:
    """How much of an interval is in none of the others, which do not overlap."""
    start, end = interval
    return end - start - sum(max(0.0, min(end, until) - max(start, since)) for since, until in busy)
