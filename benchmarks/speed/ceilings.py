"""The speed of light of a case on this machine: each of its operations alone, at its best.

`python -m benchmarks.speed.ceilings --case C --precision P` prints one line of JSON: GFLOP/s of every product of
matrices in forward (y = x W'), data gradient (dy W) and weight gradient (dy' x), attention both ways, GB/s of a copy,
and what a step would take if it were these and one pass of AdamW and nothing else. Knows no model and no contestant.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.speed.cases import CASES, Case
from torch.nn.functional import scaled_dot_product_attention

_LARGE = 2048
_COPIED_BYTES = 2**28
_ADAMW_BYTES = 28
"""For each weight: reads it, its gradient and two moments, writes all but the gradient, in fp32."""
_AT_LEAST_S = 0.2
_LEAST_REPEATS = 3


def seconds(call: Callable[[], object]) -> float:
    """The shortest of a few calls, after one that is not counted."""
    call()
    taken: list[float] = []
    while sum(taken) < _AT_LEAST_S or len(taken) < _LEAST_REPEATS:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def products(case: Case) -> dict[str, tuple[int, int, int]]:
    """Of each linear layer: its inputs, its outputs, and how often a step has it."""
    width, layers = case.width, case.num_layers
    return {
        "qkv": (width, 3 * width, layers),
        "projection": (width, width, layers),
        "mlp up": (width, 4 * width, layers),
        "mlp down": (4 * width, width, layers),
        "head": (width, case.vocab_size, 1),
    }


def measure(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Every operation of the case alone."""
    rows, total, operations = case.tokens, 0.0, {}
    for name, (inputs, outputs, times) in products(case).items():
        x, weight, gradient = (
            torch.randn(shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        flops = 2.0 * rows * inputs * outputs
        calls = {
            "forward": lambda x=x, weight=weight: x @ weight.T,
            "data gradient": lambda gradient=gradient, weight=weight: gradient @ weight,
            "weight gradient": lambda gradient=gradient, x=x: gradient.T @ x,
        }
        for way, call in calls.items():
            taken = seconds(call)
            operations[f"{name}, {way}"] = flops / taken / 1e9
            total += times * taken
    matmul_s = total
    attention = _attention(case, dtype)
    copy_gb_per_s = _copy()
    update_s = case.parameters * _ADAMW_BYTES / (copy_gb_per_s * 1e9)
    square = torch.randn(_LARGE, _LARGE).to(dtype)
    large = 2.0 * _LARGE**3 / seconds(lambda: square @ square) / 1e9
    return {
        "gflops": operations | {f"{_LARGE}^3": large},
        "ceiling_gflops": max(*operations.values(), large),
        "copy_gb_per_s": copy_gb_per_s,
        "attention_ms": {name: 1000 * taken for name, taken in attention.items()},
        "matmul_s": matmul_s,
        "attention_s": case.num_layers * sum(attention.values()),
        "update_s": update_s,
        "light_s": matmul_s + case.num_layers * sum(attention.values()) + update_s,
    }


def _attention(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one layer's attention by SDPA's own choice, forward and backward."""
    shape = (case.batch_size, case.num_heads, case.seq_len, case.width // case.num_heads)
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    with torch.no_grad():
        forward = seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
    upstream = torch.randn(shape).to(dtype)

    def both() -> None:
        torch.autograd.grad(scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), upstream)

    return {"forward": forward, "backward": max(seconds(both) - forward, 0.0)}


def _copy() -> float:
    """GB/s of a copy between two buffers larger than any cache, read and written bytes together."""
    source = torch.zeros(_COPIED_BYTES // 4)
    target = torch.empty_like(source).copy_(source)
    return 2 * _COPIED_BYTES / seconds(lambda: target.copy_(source)) / 1e9


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="the operations of a case, each alone")
    parser.add_argument("--case", choices=sorted(CASES), default="tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--matmul", choices=("highest", "high", "medium"), default="highest")
    asked = parser.parse_args()
    torch.set_float32_matmul_precision(asked.matmul)
    print(json.dumps(measure(CASES[asked.case], torch.bfloat16 if asked.precision == "bf16" else torch.float32)))


if __name__ == "__main__":
    main()
