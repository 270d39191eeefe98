"""A plan for the verbs that look before anything runs: with the text where it is at hand. Never imports torch."""

from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError, DataError
from trainwell.planning.resolve import Plan, resolve


def plan_of(config: RunConfig) -> tuple[Plan, str]:
    """Plan with the counts of the text, else without, and why.

    Raises ConfigError with every mistake, DataError for a length in epochs of a text that is not at hand.
    """
    if checks.training_problems(config):
        return resolve(config), ""
    from trainwell.data.tasks import open_data  # here, because it brings numpy, which most calls can do without

    try:
        return resolve(config, open_data(config.task, config.data).info), ""
    except DataError as error:
        try:
            return resolve(config), str(error)
        except ConfigError:  # a length in epochs: without the text there is nothing to count, so say how to get it
            raise error from None
