"""PURE. Many arms in one table: a column for each key that tells them apart, and how each did against the base.

Two or three arms are told in sentences; of a grid nobody would read fifteen of those.
"""

from collections import Counter
from collections.abc import Sequence

from trainwell.report.arms import Arm, Contrast, Verdict
from trainwell.report.statistics import LEVEL

MOST_SENTENCES = 3
"""Arms of which each is told in a sentence."""
AGAINST = ("apart", f"{LEVEL:.0%} interval", "verdict")


_ORDER = ("better", "inside the noise", "worse", "cannot be told")
_SHORT = {"inside the noise": "noise", "cannot be told": "unknown"}


def is_many(found: Verdict) -> bool:
    """Whether a table says more than sentences."""
    return len(found.arms) > MOST_SENTENCES


def labels(found: Verdict) -> dict[str, str]:
    """The keys that differ, each by its last part where that is no other's."""
    last = Counter(key.rpartition(".")[2] for key in found.differing)
    return {key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in found.differing}


def heads(found: Verdict) -> list[str]:
    """The columns that say which arm it is."""
    return [*labels(found).values()] if _by_keys(found) else ["arm"]


def place(arm: Arm, found: Verdict) -> list[str]:
    """An arm in these columns."""
    return [arm.settings[key] for key in found.differing] if _by_keys(found) else [arm.name]


def short(arm: Arm, found: Verdict, *, without: str | None = None) -> str:
    """The name of an arm by the last parts of its keys, but for the key `without`."""
    if not _by_keys(found):
        return arm.name
    names = labels(found)
    return ", ".join(f"{names[key]}={value}" for key, value in arm.settings.items() if key != without)


def against(arm: Arm, found: Verdict) -> list[str]:
    """How an arm did against the base: see AGAINST."""
    contrast = next((each for each in found.contrasts if each.arm is arm), None)
    if contrast is None:
        return ["", "", "base"]
    apart = contrast.difference
    interval = "" if apart.method == "none" else f"{apart.low:+.3f}..{apart.high:+.3f}"
    return [f"{apart.mean:+.4f}", interval, _SHORT.get(contrast.verdict, contrast.verdict)]


def summary(found: Verdict) -> tuple[str, str]:
    """How many did better, worse, or neither; and against what, on how many runs each, and what would tell more."""
    counts = Counter(each.verdict for each in found.contrasts)
    said = ", ".join(f"{count} {verdict}" for verdict in _ORDER if (count := counts[verdict]))
    sizes = {len(arm.outcomes) for arm in found.arms}
    upto = f" to {max(sizes)}" if len(sizes) > 1 else ""
    runs = f"{min(sizes)}{upto} {'run' if sizes == {1} else 'runs'}"
    return said, f"against {short(found.base, found)}, on {runs} each{_advice(found.contrasts)}"


def _advice(contrasts: Sequence[Contrast]) -> str:
    if any(each.verdict == "cannot be told" for each in contrasts):
        return "; train each with several seeds (--each seed=1,2,3,4,5)"
    more = [each.difference.more for each in contrasts if each.difference.more is not None]
    if not more:
        return ""
    seeds = "seed" if min(more) == 1 else "seeds"
    return f"; with about {min(more)} more {seeds} of each the first of those would be decided"


def _by_keys(found: Verdict) -> bool:
    return bool(found.differing) and all({*found.differing} <= {*arm.settings} for arm in found.arms)


def groups(found: Verdict, along: str) -> dict[str, list[Arm]]:
    """The arms by what else tells them apart than the key `along`, in its order each."""
    made: dict[str, list[Arm]] = {}
    for arm in found.arms:
        made.setdefault(short(arm, found, without=along), []).append(arm)
    return made
