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


def test_the_total_is_over_all_parameters_whatever_their_sign() -> None:
    report = gradient_report(model_with(a=[3.0, -4.0], b=[12.0, 0.0]))
    assert report.total == GradientRow("all 2", -4.0, 12.0, 12.0, 13.0)
    assert report.norm == 13.0


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_the_global_norm_is_the_one_that_is_clipped(gradients: list[list[float]]) -> None:
    model = model_with(**{f"layer{index}": values for index, values in enumerate(gradients)})
    expected = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    assert gradient_report(model).norm == pytest.approx(float(expected), rel=1e-5)


def test_a_total_with_a_gradient_that_is_not_a_number_is_none() -> None:
    total = gradient_report(model_with(a=[3.0], bad=[1.0, math.nan], c=[4.0])).total
    assert all(map(math.isnan, (total.smallest, total.largest, total.magnitude, total.norm)))


def test_a_report_prints_as_a_table_with_the_total_below() -> None:
    lines = str(gradient_report(model_with(weight=[3.0, -4.0], b=[12.0]))).splitlines()
    assert lines[0].split() == ["parameter", "smallest", "largest", "magnitude", "norm"]
    assert [line.split()[0] for line in lines[1:]] == ["b", "weight", "all"]
    assert lines[2].split() == ["weight", "-4", "3", "4", "5"]
    assert lines[3].split() == ["all", "2", "-4", "12", "12", "13"]
    assert len({len(line) for line in lines}) == 1


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
    nothing = gradient_report(model_with(a=None))
    assert nothing == []
    assert nothing.total == GradientRow("all 0", 0.0, 0.0, 0.0, 0.0)
    assert len(str(nothing).splitlines()) == 2
    assert largest_gradient(model_with(a=None)) == 0.0
