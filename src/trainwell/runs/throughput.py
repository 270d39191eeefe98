"""PURE. How fast a run is: tokens per second, and the share of the device's arithmetic that the model used.

Knows names of devices as text, no device.
"""

import re

# Dense peak in TFLOP/s by the makers' data sheets: (16-bit with 32-bit accumulation, fp32 without tensor cores).
# The first row whose words all occur in the device's name counts, so the more special name stands first.
_PEAKS: tuple[tuple[frozenset[str], float, float], ...] = (
    (frozenset({"B200"}), 2250.0, 75.0),
    (frozenset({"GH200"}), 989.4, 66.9),
    (frozenset({"H200"}), 989.4, 66.9),
    (frozenset({"H100", "PCIE"}), 756.0, 51.2),
    (frozenset({"H100", "NVL"}), 835.0, 60.0),
    (frozenset({"H100"}), 989.4, 66.9),
    (frozenset({"A100"}), 312.0, 19.5),
    (frozenset({"A40"}), 149.7, 37.4),
    (frozenset({"A10"}), 125.0, 31.2),
    (frozenset({"A10G"}), 70.0, 35.0),
    (frozenset({"L40S"}), 362.0, 91.6),
    (frozenset({"L4"}), 121.0, 30.3),
    (frozenset({"V100"}), 125.0, 15.7),
    (frozenset({"T4"}), 65.0, 8.1),
    (frozenset({"RTX", "A6000"}), 154.8, 38.7),
    (frozenset({"RTX", "4090"}), 165.2, 82.6),
    (frozenset({"RTX", "3090"}), 71.0, 35.6),
    (frozenset({"MI300X"}), 1307.4, 163.4),
)
# Names that share a number with a bigger chip, or a slice of one.
_OTHER_CHIPS = frozenset({"LAPTOP", "MIG", "MAX", "D", "TI"})
_NO_BF16 = frozenset({"V100", "T4"})


def tokens_per_second(tokens: int, seconds: float) -> float:
    """Tokens divided by the duration in which they were processed; raise ValueError unless it is positive."""
    if seconds <= 0:
        raise ValueError(f"a duration of {seconds} s; it must be positive")
    return tokens / seconds


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: what the model needs over what the device could do, 0 to 1 (PaLM, appendix B)."""
    return tokens_per_second * flops_per_token / peak_flops


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense peak FLOP/s of a device by the name that its driver gives, for fp32, bf16 or fp16; None when unknown.

    A dtype that the device has no arithmetic for is unknown too.
    """
    words = frozenset(re.split(r"[^A-Z0-9]+", device_name.upper()))
    if words & _OTHER_CHIPS or dtype not in {"fp32", "bf16", "fp16"}:
        return None
    if dtype == "bf16" and words & _NO_BF16:
        return None
    for required, half, single in _PEAKS:
        if required <= words:
            return (single if dtype == "fp32" else half) * 1e12
    return None
