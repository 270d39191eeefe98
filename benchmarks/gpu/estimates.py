"""What `trainwell show --gpus` says of a step's memory, beside what steps of real runs take; and their speed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.shapes import PEAK_TFLOPS
from benchmarks.gpu.timing import MissingError, finish
from numpy.typing import NDArray

from trainwell.fitting import chunk_on


@dataclass(frozen=True)
class Plan:
    """A recipe, and how steps of it are taken."""

    target: str
    micro_batch: int
    compiled: bool
    rounds: int = 2
    """Micro-batches of a step: from the second on gradients are there as well."""
    steps: int = 3
    """Timed ones, after one that compiles."""
    seconds: float = 20.0
    """About what it takes."""
    seq_len: int = 1024
    vocab: int = 50304
    model: Mapping[str, Any] = field(default_factory=dict)
    """What is changed of it."""

    @property
    def name(self) -> str:
        """Of its row."""
        how = "compiled" if self.compiled else "eager"
        return f"{self.target}, {self.rounds} x {self.micro_batch}, {how}"


PLANS = (
    Plan("gpt2-124m", 32, compiled=False),
    Plan("gpt2-124m", 16, compiled=False),
    Plan("gpt3-350m", 8, compiled=False, seq_len=2048),
    Plan("llama-1b", 4, compiled=False, seq_len=4096),
    Plan("gpt2-124m", 32, compiled=True, seconds=40),
    Plan("llama-1b", 4, compiled=True, rounds=32, steps=2, seconds=90, seq_len=4096),
    Plan("gpt3-350m", 8, compiled=True, seconds=60, seq_len=2048),
)
SMALL = (
    Plan(
        "gpt2-124m",
        2,
        compiled=False,
        seq_len=64,
        vocab=512,
        model={"num_layers": 2, "num_heads": 2, "width": 64},
    ),
)
HEADER = ("run", "ms/step", "tokens/s", "MFU", "rest GB", "forward GB", "peak GB", "estimated GB", "off")


class _Drawn:
    """As many rows as anyone asks for, of the same ids."""

    def __init__(self, vocab: int, seq_len: int) -> None:
        self._ids = np.random.default_rng(1337).integers(vocab, size=seq_len + 1)

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._ids[:-1], self._ids[1:]


def measured(plan: Plan, device: torch.device) -> tuple[str | float | None, ...]:
    """A row: steps of a run timed, and its memory; on a CPU memory is not measured.

    `rest` is held between two steps, `forward` when the last forward pass ends, `peak` is the most.
    """
    try:
        import trainwell as tw
        from trainwell.planning.memory import memory
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed") from error
    held = _Memory(device)
    quiet: dict[str, Any] = {part: {"every": None} for part in ("eval", "sample", "checkpoint")}
    run = tw.build(
        plan.target,
        data=_Drawn(plan.vocab, plan.seq_len),
        run_dir="runs/never-written",
        batch_size=plan.rounds * plan.micro_batch,
        batch_tokens=None,
        micro_batch=plan.micro_batch,
        compile=plan.compiled,
        device=device.type,
        batch_ramp={"from_tokens": None},
        model={"pad_vocab_to": plan.vocab, **plan.model},
        **quiet,
    )
    on_gpu: dict[str, Any] = {}
    if device.type == "cuda":
        on_gpu = {"kind": "compiled" if plan.compiled else "cuda", "chunk": chunk_on(device)}
    estimate = memory(run.config, plan.vocab, plan.seq_len, plan.micro_batch, run.settings.precision, **on_gpu)
    with run:
        seconds = median(_seconds(run, plan.steps, held, device))
    speed = plan.rounds * plan.micro_batch * plan.seq_len / seconds
    share = None
    if device.type == "cuda" and run.flops_per_token is not None:
        share = speed * run.flops_per_token / (PEAK_TFLOPS * 1e12)
    found, expected = held.found(), estimate.total / 1e9
    off = f"{expected / found[2] - 1:+.1%}" if found[2] else None
    return plan.name, 1e3 * seconds, round(speed), share, *found, expected, off


def _seconds(run: Any, steps: int, held: "_Memory", device: torch.device) -> list[float]:
    """Of each of so many steps, after one that compiles; what they hold is noted."""
    trainer, times = run.trainer, list[float]()
    trainer.loss = held.after(trainer.loss)
    trainer.model.train()
    with run.settings.fast.preferred():
        trainer.take_step()
        finish(device)
        held.start()
        for _ in range(steps):
            begin = time.perf_counter()
            trainer.take_step()
            finish(device)
            times.append(time.perf_counter() - begin)
    return times


class _Memory:
    """What is held on the device between steps and after forward passes, and the most of it; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._measures = device.type == "cuda"
        self._held = torch.cuda.memory_allocated() if self._measures else 0
        """By others, and none of this run's."""
        self._rest = self._forward = 0

    def start(self) -> None:
        """From here on the most counts, and what is held now is that of rest."""
        if self._measures:
            torch.cuda.reset_peak_memory_stats()
            self._rest = torch.cuda.memory_allocated()

    def after(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """A loss that notes what is held when it is computed."""

        def noted(model: Any, batch: Any) -> Any:
            value = loss(model, batch)
            self._forward = torch.cuda.memory_allocated() if self._measures else 0
            return value

        return noted

    def found(self) -> tuple[float | None, float | None, float | None]:
        """Gigabytes at rest, after the last forward pass, and at most."""
        if not self._measures:
            return None, None, None
        found = self._rest, self._forward, torch.cuda.max_memory_allocated()
        rest, forward, most = ((each - self._held) / 1e9 for each in found)
        return rest, forward, most
