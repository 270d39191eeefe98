"""Reference bands: the validation losses that a recipe usually gives on a text; a reader then knows what is normal."""

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel

from trainwell.config import load
from trainwell.config.tree import RunConfig
from trainwell.planning.target import FREE, flat
from trainwell.runs.console import short_count

_SAME_NUMBERS = (*FREE, "seed", "device", "compile", "kernels", "deterministic", "parallel", "micro_batch")
"""Keys that move a loss by less than a band is wide."""


class Band(BaseModel):
    """Lowest and highest usual validation loss, in nats per token, after so many training tokens."""

    tokens: int
    low: float
    high: float


def bands_for(config: RunConfig, corpus_sha256: str) -> tuple[Band, ...]:
    """The bands of the recipe this configuration has the name and the numbers of, on this text; else none."""
    if config.name not in load.recipe_names():
        return ()
    wanted, own = flat(load.load(config.name)), flat(config)
    if any(wanted[key] != own[key] for key in wanted if not key.startswith(_SAME_NUMBERS)):
        return ()
    points = load.read_recipe(config.name).bands.get(corpus_sha256, ())
    return tuple(sorted((Band.model_validate(point) for point in points), key=lambda band: band.tokens))


def band_line(bands: Sequence[Band], tokens: int, val_loss: float) -> str | None:
    """How a loss compares: `val 1.89 at 1.5M tokens (this recipe usually gives 1.86 to 1.91: normal)`.

    Between two points the band is interpolated in tokens; more than 2 % outside the first and the last there is none.
    """
    if not bands or not 0.98 * bands[0].tokens <= tokens <= 1.02 * bands[-1].tokens:
        return None
    low = _at(tokens, [(band.tokens, band.low) for band in bands])
    high = _at(tokens, [(band.tokens, band.high) for band in bands])
    place = "lower than usual" if val_loss < low else "higher than usual" if val_loss > high else "normal"
    usual = f"this recipe usually gives {low:.2f} to {high:.2f}: {place}"
    return f"val {val_loss:.2f} at {short_count(tokens)} tokens ({usual})"


def _at(tokens: int, points: Sequence[tuple[int, float]]) -> float:
    for (left, before), (right, after) in pairwise(points):
        if tokens <= right:
            return before + (after - before) * max(0, tokens - left) / (right - left)
    return points[-1][1]
