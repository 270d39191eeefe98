"""A promise and how often it held: what every part of the soak gives back, as plain data."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]

_SHOWN, _LONGEST = 5, 2000


def counted(promise: str, problems: Iterable[Sequence[str]]) -> Row:
    """A row for a promise that held in every trial that has no problems; the first few problems are kept."""
    trials = list(problems)
    failed = [trial for trial in trials if trial]
    return {
        "promise": promise,
        "figure": f"{len(trials) - len(failed)} of {len(trials)}",
        "held": bool(trials) and not failed,
        "problems": [problem[:_LONGEST] for trial in failed[:_SHOWN] for problem in trial[:2]],
    }


def measured(promise: str, figure: str, *, held: bool, problems: Sequence[str] = ()) -> Row:
    """A row for a promise about a number."""
    return {"promise": promise, "figure": figure, "held": held, "problems": list(problems[:_SHOWN])}


def middle_and_tail(values: Sequence[float]) -> str:
    """Median, 99th percentile and largest of some seconds, in words."""
    ordered = sorted(values)
    tail = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return (
        f"median {median(ordered):.3f} s, 99th percentile {tail:.3f} s, longest {ordered[-1]:.3f} s, of {len(ordered)}"
    )


def held(rows: Iterable[Row]) -> bool:
    """Whether every promise of a part held."""
    return all(row["held"] for row in rows)
