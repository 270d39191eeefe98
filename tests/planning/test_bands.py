"""What a recipe usually gives: which runs a band speaks about, and what it says."""

import pytest

from trainwell.config.load import load, read_recipe
from trainwell.planning.bands import Band, band_line, bands_for

BANDS = (Band(tokens=1000, low=2.0, high=3.0), Band(tokens=3000, low=1.0, high=1.5))
SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.mark.parametrize(
    ("tokens", "loss", "said"),
    [
        (1000, 2.5, "val 2.50 at 1k tokens (this recipe usually gives 2.00 to 3.00: normal)"),
        (2000, 1.4, "val 1.40 at 2k tokens (this recipe usually gives 1.50 to 2.25: lower than usual)"),
        (3000, 1.6, "val 1.60 at 3k tokens (this recipe usually gives 1.00 to 1.50: higher than usual)"),
        (500, 2.5, None),
        (3100, 1.2, None),
    ],
)
def test_a_loss_is_placed_in_the_band_and_nowhere_outside_it(tokens: int, loss: float, said: str | None) -> None:
    assert band_line(BANDS, tokens, loss) == said


def test_without_a_band_there_is_nothing_to_say() -> None:
    assert band_line((), 1000, 2.0) is None


@pytest.mark.parametrize("flags", [{}, {"seed": 5}, {"log.every": 1}, {"device": "cpu"}, {"kernels": "reference"}])
def test_a_run_with_the_recipe_s_numbers_has_its_bands(flags: dict[str, object]) -> None:
    assert len(bands_for(load("shakespeare-char", flags=flags), SHAKESPEARE)) == 4


@pytest.mark.parametrize("flags", [{"optim.lr": 2e-3}, {"duration": 500}, {"name": "another"}, {"precision": "bf16"}])
def test_a_run_with_other_numbers_has_none(flags: dict[str, object]) -> None:
    assert bands_for(load("shakespeare-char", flags=flags), SHAKESPEARE) == ()


def test_a_band_is_for_one_text_only() -> None:
    assert bands_for(load("shakespeare-char"), "another text") == ()


@pytest.mark.parametrize("recipe", ["demo", "shakespeare-char"])
def test_the_bands_of_a_recipe_rise_in_tokens_and_end_with_the_run(recipe: str) -> None:
    config = load(recipe)
    assert config.batch_size is not None
    for points in read_recipe(recipe).bands.values():
        tokens = [int(point["tokens"]) for point in points]
        assert tokens == sorted(set(tokens))
        assert tokens[-1] == int(config.duration.amount) * config.batch_size * config.data.seq_len
        assert all(point["low"] < point["high"] for point in points)
