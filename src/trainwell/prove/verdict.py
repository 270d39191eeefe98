"""What a proof comes to: held, did not hold, or did not apply, and how exactly. Plain data; never imports torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What one proof found."""

    passed: bool
    level: str
    """bitwise; rounding, with the tolerance; statistical, with the yardstick; drift, with the limit; exact counts."""
    detail: str
    """What was run and what was seen, in a line."""
    first_step: int | None = None
    """Where a promise was first broken."""
    first_tensor: str | None = None
    """The first tensor or value that differs there."""
    skipped: bool = False
    """It does not apply here, and `detail` says why; then it counts neither way."""


def skip(why: str) -> Outcome:
    """The outcome of a proof that does not apply."""
    return Outcome(True, "", why, skipped=True)


@dataclass(frozen=True)
class Verdict:
    """One promise of a run, put to the test."""

    name: str
    passed: bool
    """Also where it did not apply: see `skipped`."""
    level: str
    detail: str
    first_step: int | None
    first_tensor: str | None
    seconds: float
    command: str
    """What to type to see it again."""
    title: str = ""
    """The promise as a sentence."""
    look: str = ""
    """Where to look when it does not hold."""
    skipped: bool = False

    @property
    def word(self) -> str:
        """PASS, FAIL or SKIP."""
        return "SKIP" if self.skipped else "PASS" if self.passed else "FAIL"

    @property
    def where(self) -> str:
        """The first differing step and tensor in words; empty where nothing differs."""
        step = "" if self.first_step is None else f"step {self.first_step}"
        return ", ".join(filter(None, (step, self.first_tensor)))


def totals(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How many of each, and the seconds together."""
    words = [verdict.word for verdict in verdicts]
    return {word: words.count(word) for word in ("PASS", "FAIL", "SKIP")} | {
        "seconds": round(sum(verdict.seconds for verdict in verdicts), 2)
    }


def plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON has it."""
    facts = asdict(verdict)
    return {"result": verdict.word, **facts, "seconds": round(verdict.seconds, 3)}


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line: how many hold, and which do not."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    count = sum(not verdict.skipped for verdict in verdicts)
    if not failed:
        return f"all {count} proofs hold"
    named = "; ".join(f"{each.title}{f' (first at {each.where})' if each.where else ''}" for each in failed)
    return f"{len(failed)} of {count} proofs do not hold: {named}"
