"""`train --profile`: a few steps of a run under torch's profiler; where their time went goes to the run's folder.

Everything is put around the trainer from outside and for these steps alone, and changes no number: the core does not
know that it is looked at. What an operator is counted as is decided in `report.attribution`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from trainwell.errors import ConfigError
from trainwell.fit import steps
from trainwell.model.decoder import Decoder
from trainwell.report.attribution import BODY, DATA, FORWARD, LOSS, OPTIMIZER, STEP, Event, attribute
from trainwell.report.profile import MOST_OPERATORS, Profile, page
from trainwell.run import Run
from trainwell.runs.strict_json import to_plain
from trainwell.trainer import StepResult

WARM_UP = 5
"""So many steps of a start come before those that are profiled."""
STEPS = 3
"""So many steps in a row are profiled."""
_LOOKED_AT = 1000
"""How far ahead a place is looked for that no evaluation and no checkpoint interrupts."""
_CALLED_FROM_PYTHON = (False, "blocks")
"""Values of settings.compile with which what calls the model's body is Python, so that a range can be put around it."""


def fit_profiled(run: Run) -> Run:
    """What `fit` does, with a few steps profiled on the way; then the run trains on as without."""
    if run.world.size > 1:
        raise ConfigError(f"--profile looks at one process, and this run has {run.world.size}; profile it in one")
    if run.trainer.device.type != "cuda":  # there its errors are worth the lines that it writes whenever it starts
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with run:
        for _ in profiled(run, steps(run)):
            pass
    return run


def profiled(run: Run, results: Iterator[StepResult]) -> Iterator[StepResult]:
    """Pass on the results of `steps(run)`, some of these steps taken under the profiler.

    Those are steps 5, 6 and 7 of this start: earlier where the run ends before, later and fewer where one of them is
    followed by an evaluation, a sample or a checkpoint. Their trace and a summary are in RUN/profile and on the screen
    before the next step is taken. A folder that cannot be written is one message, and training goes on.
    """
    looking = _Looking(run)
    with _replaced(run.trainer, "take_step", looking.take_step):
        try:
            yield from results
            looking.conclude()
        finally:
            looking.leave()
    if not looking.found:
        run.console.message("--profile: no step was taken that could be profiled")


def chosen(first: int, end: int, interrupted: Callable[[int], bool]) -> range:
    """Which of the steps from `first` to before `end` are profiled.

    STEPS in a row after WARM_UP others, or as late as the end allows; none but the last of them is `interrupted`, which
    says that something else is done after a step. Where there is no such place, the longest that there is.
    """
    best = range(first, first)
    earliest = max(first, min(first + WARM_UP, end - STEPS))
    for start in range(earliest, min(end, earliest + _LOOKED_AT)):
        stop = start + 1
        while stop < min(start + STEPS, end) and not interrupted(stop - 1):
            stop += 1
        best = max(best, range(start, stop), key=len)
        if len(best) == STEPS:
            break
    return best


class _Looking:
    """Takes the steps in place of the trainer's `take_step`, the chosen ones under the profiler."""

    def __init__(self, run: Run) -> None:
        self.found = False
        """Whether something was profiled, and said."""
        self._run = run
        self._take = run.trainer.take_step
        self._on_gpu = run.trainer.device.type == "cuda"
        self._steps: range | None = None
        self._profiler: profile | None = None
        self._recording = False
        self._tokens = 0

    def take_step(self) -> StepResult:
        """The trainer's next step."""
        run, step = self._run, self._run.trainer.step
        if self._steps is None:
            self._steps = chosen(step, run.num_steps, lambda each: _is_interrupted(run, each))
        if step == self._steps.start - 1:
            with self._new_profiler():  # a profiler has a first time too, and this one is thrown away
                return self._take()
        if step == self._steps.stop:
            self.conclude()
        if step not in self._steps:
            return self._take()
        if step == self._steps.start:
            self._begin()
        with record_function(STEP), _ranges(run):
            result = self._take()
            if step + 1 == self._steps.stop and self._on_gpu:
                torch.cuda.synchronize()
        self._tokens += result.positions
        if step + 1 == self._steps.stop:
            self.leave()
        return result

    def _new_profiler(self) -> profile:
        gpu = [ProfilerActivity.CUDA] if self._on_gpu else []
        return profile(activities=[ProfilerActivity.CPU, *gpu])

    def _begin(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._profiler = self._new_profiler()
        self._profiler.start()
        self._recording = True
        self._run.metrics.pause()

    def leave(self) -> None:
        """Let the profiler look no longer, where it does."""
        if self._profiler is not None and self._recording:
            self._recording = False
            self._profiler.stop()

    def conclude(self) -> None:
        """Say and write what was seen, once."""
        self.leave()
        profiler, self._profiler = self._profiler, None
        if profiler is None or self._steps is None:
            return
        seen = _profile(self._run, profiler, self._steps.start, self._tokens)
        if seen is not None:
            self.found = True
            lines = page(seen)
            for line in ["", *lines, *_written(self._run, seen, lines, profiler)]:
                self._run.console.message(line)
        self._run.metrics.pause()


def _is_interrupted(run: Run, step: int) -> bool:
    due = run.due(step)
    return due.save or due.evaluate or due.sample


def _profile(run: Run, profiler: profile, first_step: int, tokens: int) -> Profile | None:
    settings, device = run.settings, run.trainer.device
    found = attribute(_events(profiler.events()), device=device.type == "cuda")
    if found is None:
        return None
    return Profile(
        run=run.run_dir.shown,
        first_step=first_step,
        num_steps=found.num_steps,
        settings=settings.line(),
        device=device.type,
        precision=settings.precision,
        compiled=bool(settings.compile),
        tokens=tokens,
        step_ms=found.step_ms,
        class_ms=found.class_ms,
        operators=found.operators[:MOST_OPERATORS],
        peak_bytes=_peak_bytes(device),
        notes=tuple(_notes(run, device)),
    )


def _notes(run: Run, device: torch.device) -> Iterator[str]:
    if device.type not in {"cpu", "cuda"}:
        yield f"the profiler sees what the CPU does, and not what is computed on {device.type}"
    if _body(run) is None:
        yield "the model is compiled whole: of its head and loss only what keeps a name of its own counts as loss"
    elif not isinstance(run.model, Decoder):
        yield "the head of a model of your own counts as what it is made of, not as loss"


def _events(events: Any) -> Iterator[Event]:
    """The profiler's own events, as plain values."""
    for event in events:
        if not event.is_async or event.device_type != DeviceType.CPU:
            yield Event(
                name=event.name,
                start=event.time_range.start,
                end=event.time_range.end,
                thread=event.thread,
                sequence=event.sequence_nr,
                forward_thread=event.fwd_thread or 0,
                is_range=bool(event.is_user_annotation),
                on_device=event.device_type != DeviceType.CPU,
                kernels=tuple((kernel.name, kernel.duration) for kernel in event.kernels),
            )


def _written(run: Run, seen: Profile, lines: list[str], profiler: profile) -> list[str]:
    """Write the trace and the summary, as text and for programs; return what is to be said of it."""
    folder: Path = run.run_dir.path / "profile"
    trace = folder / f"trace-step-{seen.first_step}.json.gz"
    shown = f"{run.run_dir.shown}/{folder.name}"
    try:
        folder.mkdir(exist_ok=True)
        (folder / "summary.txt").write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
        facts = json.dumps(to_plain(seen.facts()), indent=1, allow_nan=False)
        (folder / "summary.json").write_text(f"{facts}\n", encoding="utf-8", newline="\n")
        profiler.export_chrome_trace(str(trace))
    except OSError as error:
        return [f"cannot write the profile to {shown}: {error.strerror or error}; training goes on without it"]
    return [f"profile: {shown}/summary.txt, {trace.name} (open it at https://ui.perfetto.dev)"]


def _peak_bytes(device: torch.device) -> int | None:
    """On a GPU the most that tensors took, elsewhere the most that the process held, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _body(run: Run) -> str | None:
    """The model's function up to its head, or the whole of a model of one's own; None where it is compiled.

    A compiled function looks whether what it calls is still what it was, so nothing may be put around that.
    """
    if run.settings.compile not in _CALLED_FROM_PYTHON:
        return None
    return "hidden" if isinstance(run.model, Decoder) else "forward"


@contextmanager
def _ranges(run: Run) -> Iterator[None]:
    """Put a range around each part of a step while the block lasts."""
    trainer, body = run.trainer, _body(run)
    parts: list[tuple[Any, str, str]] = [(trainer, "batches", DATA), (trainer, "update", OPTIMIZER)]
    parts.append((trainer, "loss", FORWARD if body is None else LOSS))
    if body is not None:
        parts.append((type(run.model), body, BODY))  # of the class, which is where `Decoder.forward` takes it from
    with ExitStack() as stack:
        for owner, name, label in parts:
            stack.enter_context(_replaced(owner, name, _in_range(label, getattr(owner, name))))
        yield


def _in_range(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return function(*args, **kwargs)

    return inside


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object, or of a class, replaced while the block lasts; one that it inherits is covered."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
