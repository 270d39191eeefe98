"""What this machine's processor and allocator can do for training. Knows torch and the system, no configuration."""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

EXACT = 1e-6
"""Relative error against float64 up to which a product of float32 matrices counts as computed in float32."""

_FASTER = 1.05
_before: str | None = None
"""What torch's switch was at before `use_matmul` took oneDNN's products; None where it has not."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's names in malloc.h."""
_MADV_HUGEPAGE = 14
"""Linux's name in mman.h."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def native_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself; where it does not, torch emulates it and is slower than in float32."""
    if platform.machine() in {"x86_64", "AMD64"}:
        return torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_keep_memory() -> bool:
    """Whether the allocator has the switches of `keep_freed_memory`: glibc's has."""
    return sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees for what it allocates next; say whether the allocator can.

    A step frees and allocates hundreds of megabytes in large blocks, which glibc takes from the system and gives back
    one by one: each page of them faults and is zeroed again. Kept, they come from the heap, and the process stays as
    large as it was at its largest. glibc alone has these switches; others keep memory by themselves.
    """
    if not can_keep_memory():
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1))


def can_use_huge_pages() -> bool:
    """Whether memory that is kept can be in huge pages: Linux gives them to those who ask."""
    switch = _HUGE_PAGES / "enabled"
    return can_keep_memory() and switch.is_file() and "[never]" not in switch.read_text()


@cache
def use_huge_pages() -> bool:
    """Let what this process allocates from now on be in huge pages, and say whether that worked; once is enough.

    Weights, gradients and moments are read from end to end in every step, and with pages of 4 KiB much of that time
    goes into looking their addresses up. A block nearly as large as the machine's memory (one as large as all of it is
    refused where there is no swap) is taken from the heap, marked, and freed untouched: it is address space only, and
    what is allocated later is cut from it. To be called after `keep_freed_memory`, which keeps the heap from shrinking
    again.
    """
    if not can_use_huge_pages():
        return False
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 15 // 16
    block = libc.malloc(size)
    if block is None:  # address space is limited
        return False
    page = int((_HUGE_PAGES / "hpage_pmd_size").read_text())
    first, end = -(-block // page) * page, (block + size) // page * page
    marked = bool(libc.madvise(first, end - first, _MADV_HUGEPAGE) == 0)
    libc.free(block)
    return marked


@cache
def onednn_wins(rows: int, width: int) -> tuple[bool, str]:
    """Whether oneDNN multiplies float32 matrices faster than torch's default and as exactly, and the reason in words.

    On AMD's CPUs with AVX-512 torch's default takes a path for AVX2. oneDNN is asked for with
    `set_float32_matmul_precision("medium")`, which allows bf16 where AMX has it: so never there, and nowhere without a
    check against float64. The race is of (rows, width) times (width, 4 width), the product of an MLP.
    """
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.cpu._is_avx512_supported():
        return False, "the CPU has no AVX-512"
    if onednn_rounds():
        return False, "the CPU has AMX, where oneDNN would round to bf16"
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, width, generator=generator)
    right = torch.randn(width, 4 * width, generator=generator)
    error = _with_onednn(lambda: relative_error(left, right))
    if error > EXACT:
        return False, f"oneDNN's products are off by {error:.1e}"
    default, onednn = _race(lambda: left @ right)
    return default > _FASTER * onednn, f"{default / onednn:.2f} times as fast as the default, off by {error:.0e}"


def onednn_rounds() -> bool:
    """Whether oneDNN would compute products of float32 in bf16: with AMX, which has no float32."""
    return torch.cpu._is_amx_tile_supported()


def relative_error(left: Tensor, right: Tensor) -> float:
    """How far the product of two float32 matrices is from the one in float64, in the Frobenius norm."""
    exact = left.double() @ right.double()
    return float((left @ right - exact).norm() / exact.norm())


def use_matmul(name: str) -> None:
    """Let products of float32 matrices on a CPU be oneDNN's (`onednn`), or again what they were before (`default`)."""
    global _before
    if name == "onednn":
        _before = _before or torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
    elif _before is not None:
        torch.set_float32_matmul_precision(_before)
        _before = None


def _race(product: Callable[[], Tensor], rounds: int = 7) -> tuple[float, float]:
    """Median seconds of a product by default and by oneDNN, taken in turn after one of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        times[0].append(_seconds(product))
        times[1].append(_with_onednn(lambda: _seconds(product)))
    return median(times[0][1:]), median(times[1][1:])


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _with_onednn(work: Callable[[], _T]) -> _T:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return work()
    finally:
        torch.set_float32_matmul_precision(before)
