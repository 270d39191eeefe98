"""trainwell as a contestant, and the plain loop around its own model that shows what the rest of it costs."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.speed.cases import BETAS, CLIP, EPS, WEIGHT_DECAY
from benchmarks.speed.clock import Clock, Job

import trainwell as tw
from trainwell.data.batches import MicroBatch
from trainwell.run import Run

_SAVES, _EVALUATIONS = 3, 2


def build(job: Job, folder: Path, **keys: Any) -> Run:
    """The case as a run of ours, from the common weights, with everything that `auto` chooses."""
    case = job.case
    keys = {
        "duration": job.steps,
        "batch_size": case.batch_size,
        "micro_batch": case.batch_size,
        "precision": job.precision,
        "init_from": str(job.folder / "gpt2"),
        "optim": {"lr": case.lr, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY, "max_grad_norm": CLIP},
        "schedule": {"decay": "constant", "warmup": 0},
        "eval": {"every": None},
        "sample": {"every": None},
        "checkpoint": {"every": None},
        "data.order": "sequential",
        "data.seq_len": case.seq_len,
        "model.dropout": 0.0,
        "log": {"plots": False},
        **keys,
    }
    return tw.build("demo", run_dir=folder / "run", data=job.examples(), **keys)


def ours(job: Job, clock: Clock, **keys: Any) -> None:
    """As `trainwell train` does it: every step recorded, the data prefetched, the last state saved (and not timed)."""
    with TemporaryDirectory() as folder:
        run = build(job, Path(folder), **keys)
        clock.notes["chosen"] = run.settings.line()
        clock.notes["matmul"] = torch.get_float32_matmul_precision()
        for result in tw.steps(run):
            clock.step(result.loss, result.grad_norm, getattr(run.batches, "wait_s", None))
        run.close()


def ours_compiled(job: Job, clock: Clock) -> None:
    """The same, compiled."""
    ours(job, clock, compile=True)


def ours_reference(job: Job, clock: Clock) -> None:
    """The same with plain operations only."""
    ours(job, clock, kernels="reference")


def ours_saves(job: Job, clock: Clock) -> None:
    """The same while states are saved; notes which steps that was after."""
    every = _note(job, clock, _SAVES)
    ours(job, clock, checkpoint={"every": every, "keep": 1})


def ours_evaluations(job: Job, clock: Clock) -> None:
    """The same with evaluations of one batch; notes which steps they were after."""
    every = _note(job, clock, _EVALUATIONS)
    ours(job, clock, val=job.examples(), eval={"every": every, "batches": 1})


def _note(job: Job, clock: Clock, times: int) -> int:
    every = max(job.steps // (times + 1), 1)
    clock.notes["after"] = list(range(every - 1, job.steps - 1, every))
    return every


def raw_ours_model(job: Job, clock: Clock) -> None:
    """A loop of ten lines with our model, our loss and the settings we choose: what remains is our overhead."""
    with TemporaryDirectory() as folder:
        run = build(job, Path(folder))
        model, loss_of = run.model, run.loss
        optimizer = job.adamw(model, fused=True)
        model.train()
        for inputs, targets in job.examples().batches(job.case.batch_size):
            optimizer.zero_grad()
            with job.autocast:
                summed = loss_of(model, MicroBatch(inputs, targets, 0))
            loss = (summed[0] if isinstance(summed, tuple) else summed) / targets.numel()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            clock.step(loss.detach(), norm)
        run.close()
