"""What the machine can do: the check against float64, the switch of the allocator, the choice of matrix products."""

import resource
import sys

import pytest
import torch

from trainwell.machine import EXACT, keep_freed_memory, native_bf16, onednn_wins, relative_error, use_matmul

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the switches are glibc's")
def test_memory_that_is_freed_is_kept_under_linux() -> None:
    if not keep_freed_memory():
        pytest.skip("not glibc")
    torch.ones(16 << 20).sum()  # larger than the rest, which then fits in its place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(8 << 20).sum()
    pages = (8 << 20) * 4 // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages


def test_bf16_is_native_or_not_and_says_so() -> None:
    assert native_bf16() in {True, False}
