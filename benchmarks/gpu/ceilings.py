"""What the bare device does: a copy, a large matrix product, and the products that a step of the model is made of."""

from collections.abc import Callable
from statistics import median

import torch
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import time_block

Row = tuple[str, str, float, float | None, float | None]
HEADER = ("operation", "size", "ms", "TFLOP/s", "GB/s")


def copy_rate(device: torch.device, size_bytes: int) -> Row:
    """A copy on the device; bytes read and bytes written both count."""
    source = torch.empty(size_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    ms = _median_ms(lambda: target.copy_(source), device)
    return ("copy", f"{size_bytes / 2**20:,.0f} MiB", ms, None, 2 * size_bytes / ms / 1e6)


def matmul_rate(name: str, m: int, k: int, n: int, device: torch.device) -> Row:
    """(m, k) times (k, n) in bf16 on random data, as a linear layer has them; zeros would be faster."""
    left = torch.randn(m, k, dtype=torch.bfloat16, device=device)
    right = torch.randn(n, k, dtype=torch.bfloat16, device=device).T
    if name == "head gradient":  # of logits (rows, V) and hidden states (rows, C), both laid out by rows
        left = torch.randn(k, m, dtype=torch.bfloat16, device=device).T
        right = torch.randn(k, n, dtype=torch.bfloat16, device=device)
    out = torch.empty(m, n, dtype=torch.bfloat16, device=device)
    ms = _median_ms(lambda: torch.mm(left, right, out=out), device)
    return (name, f"{m} x {k} x {n}", ms, 2 * m * k * n / ms / 1e9, None)


def ceilings(shape: Shape, device: torch.device, *, small: bool) -> list[Row]:
    """All of them; the model's products are those of its first micro-batch."""
    side = 256 if small else 8192
    found = [copy_rate(device, 2**22 if small else 2**30), matmul_rate("square", side, side, side, device)]
    rows = shape.micro_batches[0] * shape.seq_len
    return found + [matmul_rate(name, *size, device) for name, size in shape.matmuls(rows).items()]


def _median_ms(operation: Callable[[], object], device: torch.device) -> float:
    time_block(operation, 3, device)
    return median(time_block(operation, 15, device))
