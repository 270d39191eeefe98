"""What the machine can do: the check against float64, the switch of the allocator, the choice of matrix products."""

import subprocess
import sys

import pytest
import torch

from trainwell.machine import (
    EXACT,
    can_keep_memory,
    can_use_huge_pages,
    native_bf16,
    onednn_wins,
    relative_error,
    use_matmul,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_products_in_float32_are_exact_and_products_of_bf16_are_not() -> None:
    left, right = drawn(64, 96), drawn(96, 128)
    assert relative_error(left, right) < EXACT
    rounded = left.bfloat16().float() @ right.bfloat16().float()
    exact = left.double() @ right.double()
    assert float((rounded - exact).norm() / exact.norm()) > 1000 * EXACT


def test_onednn_is_never_taken_where_it_would_round_to_bf16() -> None:
    before = torch.get_float32_matmul_precision()
    wins, why = onednn_wins(64, 64)
    assert torch.get_float32_matmul_precision() == before
    assert not (wins and torch.cpu._is_amx_tile_supported())
    assert why


def test_the_switch_of_matrix_products_is_torch_s_own() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        use_matmul("onednn")
        assert torch.get_float32_matmul_precision() == "medium"
        use_matmul("onednn")
        use_matmul("default")
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(before)


def of_a_fresh_process(program: str) -> int:
    """The number a program prints; a heap that other tests have filled, or left for another, tells nothing."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


FAULTS = """
import resource, torch
from trainwell.machine import keep_freed_memory
assert keep_freed_memory()
for block in range(40):  # the first ones may find no place that was used before
    before = before if block > 20 else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8 << 20).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE = """
import re, torch
from pathlib import Path
from trainwell.machine import keep_freed_memory, use_huge_pages
keep_freed_memory()
assert use_huge_pages()
kept = torch.ones(16 << 20)
print(sum(map(int, re.findall(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps").read_text()))))
"""


@pytest.mark.skipif(not can_keep_memory(), reason="the switches are glibc's")
def test_memory_that_is_freed_is_kept_under_linux() -> None:
    pages_of_a_block = (8 << 20) * 4 // 4096
    assert of_a_fresh_process(FAULTS) < pages_of_a_block


@pytest.mark.skipif(not can_use_huge_pages(), reason="this system has no transparent huge pages")
def test_memory_that_is_kept_is_in_huge_pages() -> None:
    assert of_a_fresh_process(HUGE) > 48 << 10  # of 64 MiB, since a system short of memory may have none at the moment


def test_bf16_is_native_or_not_and_says_so() -> None:
    assert native_bf16() in {True, False}
