"""The kernels that `kernels: auto` chooses on a CPU, each beside what torch does by itself; ratios of medians, in turn.

python benchmarks/kernels.py: a minute on two cores. Shapes are those of GPT-2 124M at 2 x 256 tokens and of nanoGPT's
character model. docs/performance.md has a record of it.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainwell.fit import deterministic
from trainwell.machine import keep_freed_memory, onednn_wins
from trainwell.model.attention import attend
from trainwell.model.cpu_kernels import Dropout
from trainwell.model.head import HeadLoss

ROUNDS = 15
WIDTH, VOCABULARY, ROWS = 768, 50257, 512
ATTENTION = ((2, 12, 256, 64), (4, 12, 1024, 64), (12, 4, 64, 32))
TYPES = (torch.float32, torch.bfloat16)

Work = Callable[[], object]


def ms(works: dict[str, Work], rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of each, taken in turn, forwards and backwards, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works)[:: 1 if number % 2 else -1]:
            begin = time.perf_counter()
            works[name]()
            times[name].append(time.perf_counter() - begin)
    return {name: 1000 * median(found[1:]) for name, found in times.items()}


def show(what: str, works: dict[str, Work], rounds: int = ROUNDS) -> None:
    """Print what each takes, and how often the first fits into it."""
    found = ms(works, rounds)
    first = next(iter(found.values()))
    print(f"{what}: " + ", ".join(f"{name} {each:.2f} ms ({each / first:.2f})" for name, each in found.items()))


def attention(shape: tuple[int, ...], dtype: torch.dtype, dropout: float) -> None:
    """Forward and backward, products against torch's choice."""
    rows, heads, length, size = shape
    laid_out = torch.randn(rows, length, 3, heads, size, dtype=dtype).permute(2, 0, 3, 1, 4)
    given = [part.detach().requires_grad_() for part in laid_out.unbind(0)]
    grad = torch.randn(rows, length, heads, size, dtype=dtype).transpose(1, 2)

    def by(kernel: Any) -> Work:
        return lambda: torch.autograd.grad(attend(*given, dropout=dropout, kernel=kernel), given, grad)

    show(f"attention {shape}, {dtype}, dropout {dropout}", {"products": by("products"), "sdpa": by("sdpa")})


def dropout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A layer of dropout, forward and backward."""
    x, grad = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)

    def by(layer: Any) -> Work:
        return lambda: torch.autograd.grad(layer(x), x, grad)

    show(f"dropout {shape}, {dtype}", {"bits": by(Dropout(0.1)), "torch's": by(torch.nn.Dropout(0.1))})


def loss(dtype: torch.dtype) -> None:
    """Head and cross-entropy, forward and backward; under autocast in 16 bits."""
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    weight = (0.02 * torch.randn(VOCABULARY, WIDTH)).requires_grad_()
    targets = torch.randint(VOCABULARY, (ROWS,))
    every = torch.arange(ROWS)

    def in_place() -> Tensor:
        found: Any = HeadLoss.apply(hidden, weight, every, targets, dtype, ROWS, 0.0, True)  # type: ignore[no-untyped-call]
        return found[0]  # type: ignore[no-any-return]

    def plain() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = functional.linear(hidden, weight)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")

    def linear() -> Tensor:
        seen, head = hidden.to(dtype), weight.to(dtype)
        return functional.linear_cross_entropy(seen, head, targets, reduction="sum")

    works = {"in place": in_place, "linear and cross_entropy": plain}
    if hasattr(functional, "linear_cross_entropy"):
        works["linear_cross_entropy"] = linear
    backward = {name: (lambda of=of: torch.autograd.grad(of(), (hidden, weight))) for name, of in works.items()}
    show(f"loss of {ROWS} rows, {VOCABULARY} tokens, {dtype}", backward, rounds=5)  # type: ignore[arg-type]


def casts() -> None:
    """What a step spends on casting the weights of GPT-2 124M to bf16: what shadow weights would save."""
    weights = [torch.randn(rows, WIDTH) for rows in (VOCABULARY, *[12 * WIDTH] * 12)]
    shadows = [weight.bfloat16() for weight in weights]
    show(
        "weights of GPT-2 124M to bf16",
        {
            "into shadows": lambda: torch._foreach_copy_(shadows, weights),
            "anew": lambda: [w.bfloat16() for w in weights],
        },
    )


def memory() -> None:
    """A block of 64 MiB made, written and freed, before and after freed memory is kept."""
    before = ms({"given back": lambda: torch.ones(1 << 24)})["given back"]
    kept = keep_freed_memory()
    torch.ones(1 << 25).sum()
    after = ms({"kept": lambda: torch.ones(1 << 24)})["kept"]
    print(f"a block of 64 MiB: given back to the system {before:.1f} ms, kept {after:.1f} ms (switches taken: {kept})")


def main() -> None:
    """Print a line for each."""
    torch.manual_seed(0)
    memory()
    with deterministic(True):
        for dtype in TYPES:
            for shape in ATTENTION:
                attention(shape, dtype, 0.0)
            attention(ATTENTION[0], dtype, 0.1)
            dropout((2, 256, WIDTH), dtype)
            loss(dtype)
        casts()
    wins, why = onednn_wins(ROWS, WIDTH)
    print(f"fp32 matmul by oneDNN: {'taken' if wins else 'not taken'}, {why}")


if __name__ == "__main__":
    main()
