"""Other systems' rates against golden values that anyone can reproduce with those systems."""

import pytest

from trainwell.optim.dialects import DIALECTS, END_AT_HORIZON, FORMULAS, OWN_MINIMUM, READ_INITIAL, RISE_AGAIN

STEPS = (0, 1, 9, 10, 11, 55, 98, 99)
FROM_ONE_STEP = (0.1, 0.2, 1, 1, 0.999726, 0.55, 0.101096, 0.100274)
FROM_ZERO = (0, 0.1, 0.9, 1, 0.999726, 0.55, 0.101096, 0.100274)
ONE_AHEAD = (0.1, 0.2, 1, 0.999726, 0.998904, 0.534295, 0.100274, 0.1)
GOLDEN = {
    "book": (0.01, 0.109, 0.901, 1, 0.999726, 0.55, 0.101096, 0.100274),
    "build-nanogpt": FROM_ONE_STEP,
    "llm.c": FROM_ONE_STEP,
    "torchtitan": FROM_ONE_STEP,
    "nanogpt": (0.090909, 0.181818, 0.909091, 1, 0.999726, 0.55, 0.101096, 0.100274),
    "litgpt": FROM_ZERO,
    "hf-cosine-with-min-lr": FROM_ZERO,
    "composer": FROM_ZERO,
    "nanotron": FROM_ZERO,
    "hf-cosine-warmup-with-min-lr": ONE_AHEAD,
    "olmo-core": ONE_AHEAD,
    "hf-cosine": (0, 0.1, 0.9, 1, 0.999695, 0.5, 0.001218, 0.000305),
    "hf-linear": (0, 0.1, 0.9, 1, 0.988889, 0.5, 0.022222, 0.011111),
    "hf-inverse-sqrt": (0, 0.1, 0.9, 1, 0.953463, 0.426401, 0.319438, 0.317821),
    "nanochat": (0.1, 0.2, 1, 1, 1, 0.707692, 0.079231, 0.064615),
    "llm.c-wsd": (0.1, 0.2, 1, 1, 1, 1, 0.146185, 0.122789),
}


def test_every_dialect_has_golden_values_and_a_formula() -> None:
    assert GOLDEN.keys() == DIALECTS.keys() == FORMULAS.keys()
    assert DIALECTS.keys() >= READ_INITIAL | OWN_MINIMUM | END_AT_HORIZON | RISE_AGAIN


@pytest.mark.parametrize("name", GOLDEN)
def test_a_dialect_gives_its_golden_values(name: str) -> None:
    schedule = DIALECTS[name](1.0, 0.01 if name == "book" else None, 0.1, 10, 100)
    assert [schedule(step) for step in STEPS] == pytest.approx(GOLDEN[name], abs=6e-7)


@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - END_AT_HORIZON - RISE_AGAIN - OWN_MINIMUM))
def test_past_the_horizon_a_dialect_stays_at_its_minimum(name: str) -> None:
    schedule = DIALECTS[name](1.0, None, 0.1, 10, 100)
    assert {schedule(step) for step in (100, 101, 10**6)} == {0.1}


@pytest.mark.parametrize("name", sorted(RISE_AGAIN))
def test_the_cosines_of_hugging_face_rise_again(name: str) -> None:
    schedule = DIALECTS[name](1.0, None, 0.1, 10, 100)
    assert schedule(150) > schedule(100)


def test_the_books_final_call_gives_the_books_rates() -> None:
    schedule = DIALECTS["book"](1e-3, 1e-5, 1e-5, 27, 135)
    rates = [schedule(step) for step in (0, 1, 26, 27, 28, 81, 134)]
    assert rates == pytest.approx([1e-5, 4.66667e-5, 9.63333e-4, 1e-3, 9.99791e-4, 5.05e-4, 1.02094e-5], rel=1e-5)


def test_karpathys_run_prints_karpathys_rates() -> None:
    schedule = DIALECTS["build-nanogpt"](6e-4, None, 6e-5, 10, 50)
    printed = [f"{schedule(step):.4e}" for step in (0, 9, 10, 11, 49)]
    assert printed == ["6.0000e-05", "6.0000e-04", "6.0000e-04", "5.9917e-04", "6.0832e-05"]


def test_gpt3_is_a_dialect_over_tokens() -> None:
    rate = DIALECTS["litgpt"](6e-4, None, 6e-5, 375_000_000, 260_000_000_000)
    at = [rate(tokens) for tokens in (187_500_000, 375_000_000, 130_187_500_000, 260_000_000_000, 300_000_000_000)]
    assert at == pytest.approx([3e-4, 6e-4, 3.3e-4, 6e-5, 6e-5])


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_dialect_without_warmup_starts_where_its_decay_starts(name: str) -> None:
    schedule = DIALECTS[name](1.0, None, 0.1, 0, 100)
    assert schedule(0) == pytest.approx(1.0, abs=1e-3)
