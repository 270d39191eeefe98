"""What a lint finds: its kind, its place, its reason and the line to change.

Knows the plan that it is about, and no lint.
"""

from dataclasses import dataclass
from typing import Literal

from trainwell.planning.resolve import Plan
from trainwell.runs.console import short_count

Level = Literal["warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing about a plan that its owner may not know."""

    name: str
    """What kind it is: `minimum-never-reached`."""
    level: Level
    """A warning is what hardly anybody wants; a note is worth knowing, and often on purpose."""
    key: str
    """The key of the configuration that it comes from."""
    what: str
    """What is the case, in a sentence with its numbers."""
    where: str
    """The steps that it is about."""
    why: str
    """Why it matters."""
    change: str
    """What to write to be rid of it, as lines of a config file; empty where no key would do."""
    accepted: str = ""
    """Why the recipe wants it so: what was a warning is then a note."""

    def line(self) -> str:
        """The level, what is the case, and what to write, in one line."""
        if self.accepted:
            return f"note: {self.what} (on purpose: {self.accepted})"
        lines = [f"`{line}`" for line in self.change.splitlines()]
        if self.level == "note" or not lines:
            return f"{self.level}: {self.what}"
        return f"{self.level}: {self.what}; {' and '.join(lines)} change{'s' if len(lines) == 1 else ''} that"


def at(plan: Plan, step: int) -> str:
    """Say where a step is."""
    return f"step {step:,}, after {short_count(plan.batch.tokens_before(step))} tokens"
