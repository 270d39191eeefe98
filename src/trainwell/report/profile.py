"""Where the time of profiled steps goes, on one page: classes of work, the dearest operators, what to do about it.

Knows numbers that are measured and attributed already; `trainwell.profiling` does both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainwell.runs.throughput import tokens_per_second

CLASSES = {
    "matmul": "matrix products",
    "attention": "attention",
    "loss": "head and loss",
    "optimizer": "norm, clip, update, zero",
    "data": "waiting for the batch",
    "elementwise": "norms, activations, other",
    "copies": "copies and casts",
    "compiled": "compiled, fused",
    "idle": "Python and idle",
}
"""The classes of work, in the order in which they are shown, each in words."""
MOST_OPERATORS = 10
_BAR = 30
_NAME = 60


@dataclass(frozen=True)
class Operator:
    """One operator, or on a GPU one kernel, within one class of work."""

    name: str
    kind: str
    """Its class, a key of CLASSES."""
    ms: float
    """Its own time in a step, in milliseconds, without the operators that it calls."""
    calls: float
    """How often a step calls it."""


@dataclass(frozen=True)
class Profile:
    """Some steps in a row, measured."""

    run: str
    """How the run is named to its user."""
    first_step: int
    num_steps: int
    settings: str
    """What `auto` came to, in one line."""
    device: str
    precision: str
    compiled: bool
    tokens: int
    """That went through the model, in all these steps."""
    step_ms: float
    """Wall time of a step: the mean, the profiler's own time included."""
    class_ms: Mapping[str, float]
    """Milliseconds of a step for each class of work; together they are `step_ms`."""
    operators: tuple[Operator, ...]
    """Those with most time of their own, the dearest first."""
    peak_bytes: int | None
    """On a GPU the most that tensors took, elsewhere the most that the process held; None where it is not known."""
    notes: tuple[str, ...] = ()

    @property
    def tokens_per_s(self) -> float:
        """Tokens through the model in a second of wall time."""
        return tokens_per_second(self.tokens, self.num_steps * self.step_ms / 1000)

    def share(self, kind: str) -> float:
        """A class's part of the wall time, 0 to 1; the parts of all classes are 1 together."""
        return self.class_ms.get(kind, 0.0) / self.step_ms

    def facts(self) -> dict[str, Any]:
        """The same for programs, as plain values: what is measured, with shares, speed and advice."""
        shares = {kind: self.share(kind) for kind in CLASSES}
        return asdict(self) | {"tokens_per_s": self.tokens_per_s, "shares": shares, "advice": advice(self)}


def page(profile: Profile) -> list[str]:
    """The profile as the lines of one page."""
    return [
        f"profile of {profile.run}: {_steps(profile)}, {profile.step_ms:,.2f} ms a step, "
        f"{profile.tokens_per_s:,.0f} tokens/s, the profiler's own time included",
        profile.settings,
        "",
        f"{'':40}{'ms a step':>12}{'share':>9}",
        *(_row(profile, kind) for kind in CLASSES if profile.class_ms.get(kind)),
        "",
        "operators with most time of their own",
        f"{'ms a step':>12}{'share':>9}{'calls':>9}  {'class':<12}operator",
        *(_operator_row(profile, operator) for operator in profile.operators[:MOST_OPERATORS]),
        "",
        *(
            []
            if profile.peak_bytes is None
            else [f"peak memory: {profile.peak_bytes / 1e9:.2f} GB {_of_what(profile)}"]
        ),
        *profile.notes,
        *([advice(profile)] if advice(profile) else []),
    ]


def advice(profile: Profile) -> str:
    """One sentence on what stands out most, and what to do about it; empty where nothing does."""
    limits = {"data": 0.02, "optimizer": 1 / 3, "idle": 0.2, "copies": 0.15}
    kind = max(limits, key=lambda each: profile.share(each) / limits[each])
    share = profile.share(kind)
    if share <= limits[kind]:
        return ""
    if kind == "data":
        return (
            f"{share:.1%} of the time a step waits for its batch: put the data on a faster disk, or do before training "
            "what is computed for each example"
        )
    if kind == "optimizer":
        return f"{share:.0%} of the time goes into updates: a larger --batch-size makes fewer of them for the same text"
    if kind == "copies":
        return f"{share:.0%} of the time goes into copies and casts: {_fewer_copies(profile)}"
    fewer = "" if profile.compiled else ", and --compile true joins operations"
    return (
        f"{share:.0%} of the time nothing is computed: a larger --micro-batch, where need be with a larger "
        f"--batch-size, gives each operation more to do{fewer}"
    )


def _fewer_copies(profile: Profile) -> str:
    if profile.precision == "fp32":
        return "a larger --micro-batch makes fewer of them for the same text"
    return "a larger --micro-batch casts the weights less often for the same text"


def _steps(profile: Profile) -> str:
    first, last = profile.first_step, profile.first_step + profile.num_steps - 1
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _row(profile: Profile, kind: str) -> str:
    share = profile.share(kind)
    words = "" if CLASSES[kind] == kind else f"  {CLASSES[kind]}"
    bar = "#" * round(share * _BAR)
    return f"{kind:<12}{words:<28}{profile.class_ms[kind]:12,.3f}{share:9.1%}  {bar}".rstrip()


def _operator_row(profile: Profile, operator: Operator) -> str:
    name = operator.name if len(operator.name) <= _NAME else f"{operator.name[: _NAME - 3]}..."
    share = operator.ms / profile.step_ms
    return f"{operator.ms:12,.3f}{share:9.1%}{operator.calls:9,.1f}  {operator.kind:<12}{name}"


def _of_what(profile: Profile) -> str:
    held = "in tensors" if profile.device == "cuda" else "held by the process"
    return f"{held}, since it started"
