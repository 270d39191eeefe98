"""One page on where the time goes: every number on it, and one sentence on what stands out."""

import json
from dataclasses import replace
from typing import Any

import pytest

from trainwell.report.profile import CLASSES, Operator, Profile, advice, page

SEEN = Profile(
    run="runs/demo",
    first_step=5,
    num_steps=3,
    settings="cpu (x86_64, AVX512), bf16, eager, fused optimizer, micro-batch 8, 2 threads",
    device="cpu",
    precision="bf16",
    compiled=False,
    tokens=3072,
    step_ms=200.0,
    class_ms={"matmul": 120.0, "elementwise": 60.0, "optimizer": 10.0, "data": 2.0, "idle": 8.0},
    operators=(Operator("aten::mm", "matmul", 90.0, 24.0), Operator("x" * 90, "elementwise", 30.0, 0.5)),
    peak_bytes=470_000_000,
    notes=("a note",),
)


def with_shares(**shares: float) -> Profile:
    rest = {"matmul": 1 - sum(shares.values())}
    return replace(SEEN, class_ms={kind: SEEN.step_ms * share for kind, share in (rest | shares).items()})


def test_the_page_has_every_number() -> None:
    assert page(SEEN) == [
        "profile of runs/demo: steps 5 to 7, 200.00 ms a step, 5,120 tokens/s, the profiler's own time included",
        "cpu (x86_64, AVX512), bf16, eager, fused optimizer, micro-batch 8, 2 threads",
        "",
        "                                           ms a step    share",
        "matmul        matrix products                120.000    60.0%  ##################",
        "optimizer     norm, clip, update, zero        10.000     5.0%  ##",
        "data          waiting for the batch            2.000     1.0%",
        "elementwise   norms, activations, other       60.000    30.0%  #########",
        "idle          Python and idle                  8.000     4.0%  #",
        "",
        "operators with most time of their own",
        "   ms a step    share    calls  class       operator",
        "      90.000    45.0%     24.0  matmul      aten::mm",
        f"      30.000    15.0%      0.5  elementwise {'x' * 57}...",
        "",
        "peak memory: 0.47 GB held by the process, since it started",
        "a note",
    ]


def test_one_step_is_one_step() -> None:
    assert page(replace(SEEN, num_steps=1))[0].startswith("profile of runs/demo: step 5, ")


def test_a_peak_that_is_not_known_is_left_out_and_that_of_a_gpu_is_of_tensors() -> None:
    assert not any("peak memory" in line for line in page(replace(SEEN, peak_bytes=None)))
    assert "peak memory: 0.47 GB in tensors, since it started" in page(replace(SEEN, device="cuda"))


@pytest.mark.parametrize(
    ("changes", "shares", "said"),
    [
        ({}, {"data": 0.021}, "2.1% of the time a step waits for its batch: put the data on a faster disk, or do"),
        ({}, {"optimizer": 0.4}, "40% of the time goes into updates: a larger --batch-size makes fewer of them"),
        ({}, {"copies": 0.2}, "a larger --micro-batch casts the weights less often for the same text"),
        ({"device": "cuda"}, {"copies": 0.2}, "a larger --micro-batch casts the weights less often for the same text"),
        ({"precision": "fp32"}, {"copies": 0.2}, "into copies and casts: a larger --micro-batch makes fewer of them"),
        ({}, {"idle": 0.3}, "30% of the time nothing is computed: a larger --micro-batch, where need be with a larger"),
        ({}, {"idle": 0.3}, "and --compile true joins operations"),
        ({}, {"idle": 0.3, "data": 0.025}, "30% of the time nothing is computed"),
    ],
)
def test_what_stands_out_most_is_said_with_what_to_do(
    changes: dict[str, Any], shares: dict[str, float], said: str
) -> None:
    seen = replace(with_shares(**shares), **changes)
    assert said in advice(seen)
    assert page(seen)[-1] == advice(seen)


@pytest.mark.parametrize("shares", [{}, {"data": 0.02}, {"optimizer": 0.33}, {"idle": 0.2}, {"copies": 0.15}])
def test_what_is_usual_needs_no_advice(shares: dict[str, float]) -> None:
    assert advice(with_shares(**shares)) == ""


def test_a_compiled_model_is_not_advised_to_be_compiled() -> None:
    assert "--compile" not in advice(replace(with_shares(idle=0.5), compiled=True))


def test_programs_get_every_class_and_shares_that_are_one_together() -> None:
    facts = json.loads(json.dumps(SEEN.facts(), allow_nan=False))
    assert list(facts["shares"]) == list(CLASSES)
    assert sum(facts["shares"].values()) == pytest.approx(1)
    assert facts["tokens_per_s"] == 5120
    assert facts["operators"][0] == {"name": "aten::mm", "kind": "matmul", "ms": 90.0, "calls": 24.0}
