"""Speed against cases computed by hand."""

import pytest

from trainwell.runs.throughput import mfu, peak_flops, tokens_per_second


def test_tokens_per_second_divides_by_a_duration() -> None:
    assert tokens_per_second(524_288, 0.25) == 2_097_152


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_duration_that_is_not_positive_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        tokens_per_second(1, seconds)


def test_mfu_is_what_the_model_needs_over_what_the_device_could_do() -> None:
    # 124M parameters at 6 FLOPs each a token, 100,000 tokens per second: 74.4 TFLOP/s, of an A100's 312.
    assert mfu(100_000, 6 * 124e6, 312e12) == pytest.approx(0.23846, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "fp16", 835.0),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla T4", "fp16", 65.0),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
    ],
)
def test_the_peak_of_a_known_device_is_its_makers(name: str, dtype: str, tflops: float) -> None:
    assert peak_flops(name, dtype) == tflops * 1e12


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Tesla T4", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("Apple M3 Max", "fp32"),
        ("x86_64", "fp32"),
        ("NVIDIA H100 80GB HBM3", "int8"),
    ],
)
def test_an_unknown_peak_is_not_guessed(name: str, dtype: str) -> None:
    assert peak_flops(name, dtype) is None
