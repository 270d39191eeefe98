"""`show --calibrate`: real steps of a plan's model timed on this machine, in place of an assumed share of a peak.

The steps are those of `build`, on ids drawn at random, since their values take no time; no text is read and nothing is
written. Knows the estimate and the device; prints nothing.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from trainwell.build import assemble
from trainwell.config.tree import BatchRampConfig, RunConfig
from trainwell.config.values import Duration
from trainwell.errors import ConfigError
from trainwell.given import Given
from trainwell.planning.cluster import Cluster, advised, cluster, compare, device_memory
from trainwell.planning.hardware import ETHERNET, THIS, Gpu, gpu_named
from trainwell.planning.memory import in_bytes
from trainwell.planning.resolve import Plan
from trainwell.planning.speed import Timed
from trainwell.planning.target import Start
from trainwell.run import Run
from trainwell.runs.rundir import RunDir
from trainwell.settings import Settings, decide

_WARM_UP, _STEPS = 2, 5
_ENOUGH = 20.0
"""Seconds after which no further step is begun, where one was timed."""
_OF_A_CPU = 1024
"""Tokens of a step on a CPU, or one sequence: it is as fast with few, and an hour would pass with many."""
_PRODUCT = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Rows of the square matrices whose product is timed."""
_COPY = 2**27
"""Bytes that are copied to time memory."""


class _Drawn:
    """Examples of as many ids as a row has, drawn at random."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self._high, self._length = vocab_size, seq_len

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = np.random.default_rng(int(index)).integers(self._high, size=self._length + 1)
        return ids[:-1], ids[1:]


def calibrated(plan: Plan, name: str, count: int) -> Cluster:
    """A plan on `count` devices like the one of this machine, with steps timed on it.

    Args:
        plan: its vocabulary must be known.
        name: the kind of device; `this` for whatever this machine has, whose peak and memory are then measured and
            read.
        count: how many of them.

    Raises:
        ConfigError: where the device here is of another kind, which would say nothing about the one that was asked for,
            and where the model does not fit on it alone.
    """
    if plan.config.task == "classify":
        raise ConfigError("--calibrate times models that predict tokens, and task classify does not; leave it out")
    settings = decide(plan.config.model_copy(update={"parallel": "none"}), plan, None, lambda line: None)
    gpu = _of_this_machine(settings) if name == THIS else _same(gpu_named(name), settings)
    config = plan.config.model_copy(update={"precision": settings.precision})
    on = cluster(replace(plan, config=config), gpu, count)
    return replace(on, timed=_timed(on, settings))


def _same(gpu: Gpu, settings: Settings) -> Gpu:
    """The GPU that was asked for, where this machine has one."""
    if settings.device == "cuda" and gpu.is_named(settings.device_name, _memory(settings), settings.precision):
        return gpu
    raise ConfigError(
        f"--calibrate would time this machine's {settings.device} ({settings.device_name}), which says nothing about "
        f"{gpu.name}: run it on a machine that has one, leave it out, or give --gpu {THIS} for machines like this one"
    )


def _of_this_machine(settings: Settings) -> Gpu:
    """This machine's device; what links several of them is not known, and taken to be Ethernet."""
    return Gpu(
        name=THIS,
        device=_name(settings),
        memory=_memory(settings),
        bandwidth=_bandwidth(settings),
        link=ETHERNET,
        link_name="Ethernet",
        measured_peak=_peak(settings),
        runs_on=settings.device,
    )


def _name(settings: Settings) -> str:
    threads = f", {settings.threads} threads" if settings.device == "cpu" else ""
    return f"{settings.device} ({settings.device_name}{threads})"


def _memory(settings: Settings) -> int:
    if settings.device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _peak(settings: Settings) -> float:
    """FLOP/s of the fastest of a few products of matrices in the precision of the run."""
    size = _PRODUCT[settings.device]
    dtype = settings.autocast or torch.float32
    left, right = (torch.ones(size, size, dtype=dtype, device=settings.device) for _ in range(2))
    with settings.fast.preferred():
        return 2 * size**3 / min(_durations(lambda: torch.mm(left, right), settings))


def _bandwidth(settings: Settings) -> float:
    """Bytes a second, read and written, of the fastest of a few copies."""
    source = torch.zeros(_COPY, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    return 2 * _COPY / min(_durations(lambda: target.copy_(source), settings))


def _durations(what: Callable[[], object], settings: Settings) -> list[float]:
    """Seconds of each of a few calls, after one that does not count."""
    what()
    found = []
    for _ in range(_STEPS):
        _wait(settings)
        begin = time.perf_counter()
        what()
        _wait(settings)
        found.append(time.perf_counter() - begin)
    return found


def _wait(settings: Settings) -> None:
    if settings.device == "cuda":
        torch.cuda.synchronize()


def _timed(on: Cluster, settings: Settings) -> Timed:
    """Take the steps, with the micro-batch of the estimate or the largest below it that fits here."""
    size = _micro_batch(on, settings.device == "cpu")
    config = _one_micro_batch(on.plan, on.vocab_size, size)
    given = Given(data=_Drawn(on.vocab_size, on.plan.seq_len))
    run = assemble(Start(config, RunDir(Path(config.name))), given)
    try:
        passes, updates = _steps(run)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"--calibrate: micro-batches of {size} do not fit; give a smaller --micro-batch") from error
    finally:
        run.close()
    return Timed(_name(settings), len(passes), size, median(passes), median(updates))


def _micro_batch(on: Cluster, cpu: bool) -> int:
    ways, alone = compare(on), replace(on, count=1)
    wanted = (advised(ways) or ways[0]).micro_batch
    if cpu:
        wanted = min(wanted, max(1, _OF_A_CPU // on.plan.seq_len))
    for size in range(wanted, 0, -1):
        if device_memory(alone, "ddp", size).total <= on.gpu.usable:
            return size
    raise ConfigError(
        f"--calibrate takes steps with the whole model on one device, where it needs "
        f"{in_bytes(device_memory(alone, 'ddp', 1).total)} of {in_bytes(on.gpu.usable)}; leave it out"
    )


def _one_micro_batch(plan: Plan, vocab_size: int, size: int) -> RunConfig:
    """The configuration with a micro-batch for a batch, and steps for the same tokens: compiling is judged by those."""
    config, tokens = plan.config, plan.batch.tokens_before(plan.num_steps)
    steps = max(tokens // (size * plan.seq_len), _WARM_UP + _STEPS)
    return config.model_copy(
        update={
            "task": "pretrain",
            "duration": Duration.parse(steps),
            "batch_size": size,
            "batch_tokens": None,
            "micro_batch": size,
            "batch_ramp": BatchRampConfig(),
            "parallel": "none",
            "init_from": None,
            "data": config.data.model_copy(update={"seq_len": plan.seq_len}),
            "model": config.model.model_copy(update={"pad_vocab_to": vocab_size}),
            "eval": config.eval.model_copy(update={"hellaswag": None}),
        }
    )


def _steps(run: Run) -> tuple[list[float], list[float]]:
    """Seconds of the passes and of the update of each step."""
    trainer, settings, passes, updates = run.trainer, run.settings, list[float](), list[float]()
    first = run.batches(0)
    trainer.batches = lambda _step: first  # data is got ready beside a step and takes none of its time
    trainer.model.train()
    with settings.fast.preferred():
        for _ in range(_WARM_UP if settings.device != "cpu" or settings.compile else 1):
            trainer.take_step()
        _wait(settings)
        started = time.perf_counter()
        while len(passes) < _STEPS and (not passes or time.perf_counter() - started < _ENOUGH):
            _wait(settings)
            begin = time.perf_counter()
            loss = trainer.backward()
            _wait(settings)
            between = time.perf_counter()
            trainer.update(loss)
            _wait(settings)
            passes.append(between - begin)
            updates.append(time.perf_counter() - between)
    return passes, updates
