"""A plan for the verbs that look before anything runs: with the text where it is at hand. Never imports torch."""

from typing import NamedTuple

from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError, DataError
from trainwell.planning.resolve import Plan, resolve


class Planned(NamedTuple):
    """A plan, why its data could not be counted, and what became of single examples."""

    plan: Plan
    missing: str = ""
    notes: tuple[str, ...] = ()


def plan_of(config: RunConfig) -> Planned:
    """Plan with the counts of the data, and what became of single examples; else without, and why.

    Raises ConfigError with every mistake, DataError for a length in epochs of a text that is not at hand.
    """
    if checks.training_problems(config):
        return Planned(resolve(config))
    from trainwell.data.tasks import open_data  # here, because it brings numpy, which most calls can do without

    try:
        store = open_data(config.task, config.data)
        return Planned(resolve(config, store.info), notes=store.notes)
    except DataError as error:
        try:
            return Planned(resolve(config), missing=str(error))
        except ConfigError:  # a length in epochs: without the text there is nothing to count, so say how to get it
            raise error from None
