"""Where two twins first differ, by step and name, and how far apart they are."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trainwell.prove.trace import (
    Difference,
    Seen,
    Trace,
    Yardstick,
    distance,
    first_change,
    first_difference,
    relative,
    same,
    values_of,
)


def seen(values: dict[str, str] | None = None, *, loss: float = 1.0, norm: float = 2.0) -> Seen:
    return Seen(loss, norm, False, values or {})


def trace(*steps: Seen, **weights: Tensor) -> Trace:
    return Trace(dict(enumerate(steps)), weights)


def state(**changes: Any) -> dict[str, Any]:
    return {"model": {"w": torch.zeros(2)}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, **changes}


def test_every_value_of_a_state_has_a_path_with_the_name_of_its_parameter() -> None:
    values = dict(values_of(state(step=4, guard={"skipped": 0}, pairs=[(1, "a")]), ["w"]))
    assert list(values) == ["model.w", "optimizer.state.w.step", "step", "guard.skipped", "pairs.0.0", "pairs.0.1"]
    assert values["step"] == "4"


@pytest.mark.parametrize(
    "other",
    [torch.tensor([0.0, -0.0]), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 2), torch.tensor([0, 1e-45])],
)
def test_a_digest_sees_one_bit_the_type_and_the_shape(other: Tensor) -> None:
    assert first_change(dict(values_of(state(), [])), dict(values_of(state(model={"w": other}), []))) == "model.w"


def test_the_first_difference_is_the_first_step_then_loss_norm_and_weights_before_the_rest() -> None:
    a = trace(seen({"a": "1"}), seen({"z": "1", "model.w": "1"}))
    assert first_difference(a, a) is None
    b = trace(seen({"a": "1"}), seen({"z": "2", "model.w": "2"}))
    assert first_difference(a, b) == Difference(1, "model.w")
    assert first_difference(a, trace(seen({"a": "1"}, loss=math.nan))) == Difference(0, "loss")
    assert first_difference(a, trace(seen({"a": "1"}, norm=2.1))) == Difference(0, "gradient norm")
    assert first_difference(a, trace(seen({"a": "1"}))) == Difference(
        1, "the step itself, which one of them did not take"
    )


def test_nan_equals_nan_and_nothing_else() -> None:
    assert relative(math.nan, math.nan) == 0
    assert relative(math.nan, 1.0) == math.inf
    assert relative(math.inf, 1.0) == math.inf
    assert relative(2.0, 1.0) == 0.5
    assert relative(0.0, 0.0) == 0


def test_a_yardstick_lets_pass_what_is_no_further_apart_than_three_of_it() -> None:
    a = trace(seen(loss=1.0), w=torch.tensor([3.0, 4.0]))
    b = trace(seen(loss=1.01), w=torch.tensor([3.0, 4.05]))
    assert distance(a, b).loss == pytest.approx(0.0099, rel=1e-3)
    assert distance(a, b).weights == pytest.approx(0.01, rel=1e-4)
    assert same(a, b, Yardstick(0.004, 0.004), "").passed
    failed = same(a, b, Yardstick(0.003, 0.004), "here")
    assert (failed.passed, failed.first_step, failed.first_tensor) == (False, 0, "loss")
    assert not same(a, b, None, "").passed
