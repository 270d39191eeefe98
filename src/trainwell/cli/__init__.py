"""The command line: one module per verb, imported only when called; the package itself knows no torch."""

from collections.abc import Sequence
from typing import Any


def main(tokens: Sequence[str] | None = None, **given: Any) -> None:
    """Run the command line with `tokens` (default: the process's own) and exit with the contract's code.

    Own scripts call it with their parts, and then have every verb: `tw.cli.main(model=..., loss=...)`. Parts are those
    of `trainwell.build`; a model or an optimizer may be a function, called with the configuration (an optimizer: with
    the model) when it is needed.
    """
    from trainwell.cli.app import main as run  # here, so that `import trainwell.cli` costs nothing

    run(tokens, given)
