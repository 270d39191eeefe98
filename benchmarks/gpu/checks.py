"""What must hold on a GPU whatever its speed: a step waits for nothing, and computes what a CPU computes."""

from collections.abc import Callable

import torch
from benchmarks.gpu.ours import Case, adamw, make_model, rate
from benchmarks.gpu.shapes import Shape

from trainwell.data.batches import Batches
from trainwell.model.loss import token_loss
from trainwell.optim.groups import parameter_groups
from trainwell.optim.guard import Guard
from trainwell.trainer import Trainer

TOLERANCE = 2e-5
"""Largest difference of two fp32 losses near 6 over 20 steps; on a CPU those of fp32 and fp64 differ by 5e-7."""

PARITY = Shape("parity", layers=2, heads=4, width=128, vocab=512, seq_len=64, micro_batches=(8,))


def waits_for_device(step: Callable[[], object], device: torch.device, steps: int = 5) -> str | None:
    """What made a step wait for the device, in torch's words; None where nothing did. Warm the step up before."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(steps):
            step()
    except RuntimeError as error:
        return _where(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _where(error: RuntimeError) -> str:
    """The message, and the innermost line of ours that led there."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "trainwell" in file or "benchmarks" in file:
            place = f"{file.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{str(error).splitlines()[0]} ({place})"


def losses(device: torch.device, steps: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """Losses of a small eager model with fused AdamW and the guard; the same weights and text on any device."""
    case = Case(PARITY, PARITY.micro_batches[0], device, compiled=False)
    model = make_model(PARITY, torch.device("cpu")).to(device, dtype)
    batches: Batches = case.batches()
    trainer = Trainer(
        model,
        adamw(parameter_groups(model.parameters(), 0.1)),
        batches,
        schedules={"lr": lambda step: 10 * rate(step)},
        loss=token_loss,
        guard=Guard(device),
    )
    found = [result.loss for result in trainer.steps(until=steps)]
    return [float(loss) for loss in found]


def largest_difference(device: torch.device, steps: int = 20) -> tuple[float, float, float]:
    """Of the losses on `device` and on the CPU: the largest difference, then the first and the last loss of the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        here, there = losses(device, steps), losses(torch.device("cpu"), steps)
    finally:
        torch.set_float32_matmul_precision(before)
    return max(abs(a - b) for a, b in zip(here, there, strict=True)), there[0], there[-1]
