"""Looking at gradients: by name, by magnitude whatever the sign, and without missing what is not a number."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainwell.gradients import GradientRow, gradient_report, largest_gradient

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5)


def model_with(**gradients: list[float] | None) -> nn.Module:
    model = nn.ParameterDict({name: torch.zeros(len(values or [0.0])) for name, values in gradients.items()})
    for name, values in gradients.items():
        if values is not None:
            model[name].grad = torch.tensor(values)
    return model


def test_a_row_has_signed_extremes_magnitude_and_norm() -> None:
    assert gradient_report(model_with(a=[3.0, -4.0, 0.0])) == [GradientRow("a", -4.0, 3.0, 4.0, 5.0)]


def test_a_large_negative_gradient_is_seen() -> None:
    model = model_with(a=[0.1, 0.2], b=[-9.0, 0.3])
    assert largest_gradient(model) == 9.0
    assert gradient_report(model)[0].name == "b"


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_rows_are_ordered_by_magnitude_and_the_first_is_the_largest_gradient(gradients: list[list[float]]) -> None:
    model = model_with(**{f"layer{index}": values for index, values in enumerate(gradients)})
    report = gradient_report(model)
    assert [row.magnitude for row in report] == sorted((max(map(abs, values)) for values in gradients), reverse=True)
    assert largest_gradient(model) == report[0].magnitude
    for row in report:
        values = gradients[int(row.name.removeprefix("layer"))]
        assert (row.smallest, row.largest) == (min(values), max(values))
        assert row.norm == pytest.approx(math.hypot(*values), rel=1e-5)


def test_a_gradient_that_is_not_a_number_comes_first_wherever_it_is() -> None:
    for place in range(4):
        gradients = {"a": [3.0], "b": [5.0], "c": [4.0]}
        names = list(gradients)
        names.insert(place, "bad")
        model = model_with(**{name: gradients.get(name, [1.0, math.nan]) for name in names})
        assert [row.name for row in gradient_report(model)] == ["bad", "b", "c", "a"]
        assert math.isnan(largest_gradient(model))


def test_an_infinite_gradient_is_the_largest() -> None:
    assert largest_gradient(model_with(a=[1.0], b=[-math.inf])) == math.inf


def test_parameters_without_a_gradient_have_no_row() -> None:
    assert [row.name for row in gradient_report(model_with(a=None, b=[1.0]))] == ["b"]
    assert gradient_report(model_with(a=None)) == []
    assert largest_gradient(model_with(a=None)) == 0.0
