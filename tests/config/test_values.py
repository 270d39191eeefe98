"""Durations and rates: every usual spelling, one canonical form."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.values import Duration, Share


@pytest.mark.parametrize(
    ("spellings", "canonical"),
    [
        ([500, "500", "500 steps", "500steps", "0.5k", "5e2", 500.0], 500),
        (["375M tokens", "375000000 tokens", "375_000_000 tokens", "0.375B tokens", "375m token"], "375M tokens"),
        (["10%", "10 %", "10.0%"], "10%"),
        (["1 epoch", "1 epochs", "1epochs", "1.0 epochs"], "1 epochs"),
        (["5 minutes", "300 seconds", "5 minute"], "5 minutes"),
        (["2 hours", "120 minutes"], "120 minutes"),
        (["524288 tokens", "524,288 tokens"], "524288 tokens"),
    ],
)
def test_all_spellings_of_a_duration_are_one(spellings: list[object], canonical: object) -> None:
    assert {Duration.parse(spelling).plain() for spelling in spellings} == {canonical}


@pytest.mark.parametrize("wrong", ["soon", "-5", "", "10 parsecs", "1.5", "0.5 tokens", True, None, [1], float("nan")])
def test_what_is_no_duration_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"not a duration|has the unit|not a whole number"):
        Duration.parse(wrong)


@given(st.integers(0, 10**13), st.sampled_from(["steps", "tokens", "%", "epochs", "minutes"]))
def test_the_canonical_spelling_of_a_duration_is_read_back(amount: int, unit: str) -> None:
    duration = Duration.parse(f"{amount} {unit}")
    assert Duration.parse(duration.plain()) == duration
    assert Duration.parse(str(duration)) == duration


def test_a_share_is_of_the_peak_and_exact() -> None:
    assert Share.parse("10%").of(3e-3) == 3e-4
    assert Share.parse("6e-5").of(1.0) == 6e-5
    assert Share.parse(6e-5) == Share(Fraction(6, 10**5), of_peak=False)


@given(st.floats(0, 1), st.booleans())
def test_the_canonical_spelling_of_a_rate_is_read_back(value: float, of_peak: bool) -> None:
    share = Share.parse(f"{value!r}{'%' if of_peak else ''}")
    assert Share.parse(share.plain()) == share
