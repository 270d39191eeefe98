"""Our spike guard against three known rules, on made traces and on those of unstable runs: docs/spikes.md.

python benchmarks/spikes.py             prints the tables; a minute
python benchmarks/spikes.py --record    trains the runs whose traces are in benchmarks/traces/ again; some minutes

A rule sees loss and gradient norm of one step after the other and says which steps it would leave out (ZClip: shrink).
It sees a trace as it was: what its own skipping would have changed in the run is not part of the comparison.
"""

import argparse
import io
import json
import math
import random
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import trainwell as tw
from trainwell.errors import DivergedError
from trainwell.optim.guard import Guard, loss_bound

TRACES = Path(__file__).parent / "traces" / "unstable.json"
SEEDS = (1, 2, 3)
STEPS = 2000
RECORDED_STEPS = 400
SETTINGS: tuple[tuple[float, float | None], ...] = ((3e-3, 1.0), (3e-2, None), (1e-1, 1.0), (1e-1, None))
"""Learning rate and clip of the recorded runs; the first is the demo's own, and healthy."""

Step = tuple[float, float]


class Rule(Protocol):
    """Judges steps in order."""

    def flags(self, loss: float, norm: float) -> bool:
        """Whether the rule would leave this step out."""


class Ours:
    """The guard of trainwell, as a run over bytes makes it."""

    def __init__(self) -> None:
        self._guard = Guard(torch.device("cpu"), policy="skip", loss_bound=loss_bound(256))

    def flags(self, loss: float, norm: float) -> bool:
        """Whether the guard leaves it out."""
        broken, spike, _ = self._guard.judge(torch.tensor(loss), torch.tensor(norm))
        return bool(self._guard.count(broken, spike))


class MeanAndDeviation:
    """OLMo-core's SkipStepOptimizer: above mean + 6 standard deviations of the last 128 steps, once there are 64.

    Every value enters, spikes too. `first_form` is how it was first published: a NaN enters as well, and as no
    comparison with the mean of a NaN holds, all steps are left out until it has left the window. Later the rule learned
    to leave out of the statistics what is not finite.
    """

    def __init__(self, first_form: bool = False) -> None:
        self._windows = [deque[float](maxlen=128) for _ in range(2)]
        self._keeps_all = first_form

    def flags(self, loss: float, norm: float) -> bool:
        """Whether either value is out of bounds."""
        usual = len(self._windows[0]) < 63 or all(
            self._usual(value, window) for value, window in zip((loss, norm), self._windows, strict=True)
        )
        for value, window in zip((loss, norm), self._windows, strict=True):
            window.append(value)
        return not usual

    def _usual(self, value: float, window: Iterable[float]) -> bool:
        values = [each for each in window if self._keeps_all or math.isfinite(each)]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((each - mean) ** 2 for each in values) / (len(values) - 1))
        return value - mean <= 6 * deviation  # of a NaN nothing holds


class ZScore:
    """llm.c's outlier detector: z-scores over 128 steps, the judged one included, above 7 (its GPT-3 scripts).

    Its sums are running ones, so a NaN stays in them for good; a z-score that is not finite skips nothing.
    """

    def __init__(self) -> None:
        self._windows = [deque[float](), deque[float]()]
        self._sums, self._squares = [0.0, 0.0], [0.0, 0.0]

    def flags(self, loss: float, norm: float) -> bool:
        """Whether either z-score is above 7."""
        scores = [self._z(which, value) for which, value in enumerate((loss, norm))]
        return scores[0] > 7 or scores[1] > 7

    def _z(self, which: int, value: float) -> float:
        window = self._windows[which]
        full = len(window) == 128
        old = window.popleft() if full else 0.0
        window.append(value)
        self._sums[which] += value - old
        self._squares[which] += value * value - old * old
        if not full:
            return math.nan
        mean = self._sums[which] / 128
        variance = self._squares[which] / 128 - mean * mean
        deviation = math.sqrt(variance) if variance > 0 else math.nan if math.isnan(variance) else 0.0
        return (value - mean) / deviation if deviation else 0.0


class ZClip:
    """ZClip (Kumar et al., 2025): a norm whose z-score against moving averages is above 2.5 is clipped, to mean + 2.5^2
    deviation / z, which also is what the averages then see. Decay 0.97, begun with the mean of 25 steps. It clips and
    leaves nothing out, so a flag is a step that it shrinks; it looks at norms alone.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._mean, self._variance = math.nan, math.nan

    def flags(self, loss: float, norm: float) -> bool:
        """Whether the gradient is shrunk."""
        if len(self._first) < 25:
            self._first.append(norm)
            self._mean = sum(self._first) / len(self._first)
            self._variance = sum((each - self._mean) ** 2 for each in self._first) / len(self._first)
            return False
        deviation = math.sqrt(self._variance)
        z = (norm - self._mean) / (deviation + 1e-6)
        effective = self._mean + 2.5**2 * deviation / z if z > 2.5 else norm
        self._mean = 0.97 * self._mean + 0.03 * effective
        self._variance = 0.97 * self._variance + 0.03 * (effective - self._mean) ** 2
        return z > 2.5


RULES: dict[str, Callable[[], Rule]] = {
    "trainwell": Ours,
    "OLMo-core": MeanAndDeviation,
    "OLMo-core, first form": lambda: MeanAndDeviation(first_form=True),
    "llm.c": ZScore,
    "ZClip": ZClip,
}


@dataclass(frozen=True)
class Trace:
    """Steps, and which of them are spikes."""

    steps: Sequence[Step]
    spikes: frozenset[int] = frozenset()


def falling(seed: int, steps: int = STEPS, spread: float = 0.15) -> list[Step]:
    """A loss that falls from guessing GPT-2's vocabulary to 3 nats, and norms whose logarithm is normal."""
    dice = random.Random(seed)
    return [
        (3 + 7.8 * math.exp(-step / 200) + dice.gauss(0, 0.03), 0.5 * math.exp(dice.gauss(0, spread)))
        for step in range(steps)
    ]


def with_spikes(seed: int, places: Iterable[int], loss: float, norm: float) -> Trace:
    """Spikes at these places: `loss` nats higher, the norm `norm` times as large."""
    steps, at = falling(seed), frozenset(places)
    for place in at:
        steps[place] = (steps[place][0] + loss, steps[place][1] * norm)
    return Trace(steps, at)


def changed(seed: int, change: Callable[[int, Step], Step]) -> Trace:
    """A trace without spikes, changed from step 1000 on."""
    steps = falling(seed)
    return Trace([change(place - 1000, step) if place >= 1000 else step for place, step in enumerate(steps)])


EVERY_180 = range(200, STEPS, 180)
SYNTHETIC: dict[str, Callable[[int], Trace]] = {
    "falling loss": lambda seed: Trace(falling(seed)),
    "heavy-tailed norms": lambda seed: Trace(falling(seed, spread=0.5)),
    "slow drift upwards": lambda seed: changed(
        seed, lambda since, step: (step[0] + since / 1000, step[1] * (1 + since / 500))
    ),
    "spikes of both": lambda seed: with_spikes(seed, EVERY_180, 1.5, 8),
    "small spikes of both": lambda seed: with_spikes(seed, EVERY_180, 0.4, 3),
    "spikes of the loss": lambda seed: with_spikes(seed, EVERY_180, 1.5, 1),
    "spikes of the norm": lambda seed: with_spikes(seed, EVERY_180, 0, 8),
    "double spikes": lambda seed: with_spikes(seed, [place + more for place in EVERY_180 for more in (0, 3)], 1.5, 8),
    "bursts of five": lambda seed: with_spikes(
        seed, [place + more for place in EVERY_180 for more in range(0, 10, 2)], 1.5, 8
    ),
    "early spikes": lambda seed: with_spikes(seed, (10, 25, 50), 8, 20),
}
"""Seed to trace; what is no spike in them is healthy."""


def one_nan(seed: int) -> Trace:
    """A loss and norm that are NaN once, at step 1000."""
    return changed(seed, lambda since, step: (math.nan, math.nan) if since == 0 else step)


def level_shift(seed: int, nats: float) -> Trace:
    """A loss that is higher from step 1000 on, for good: another part of the data."""
    return changed(seed, lambda since, step: (step[0] + nats, step[1]))


def judge(make: Callable[[], Rule], trace: Trace) -> frozenset[int]:
    """The steps that a rule flags."""
    rule = make()
    return frozenset(place for place, step in enumerate(trace.steps) if rule.flags(*step))


def lost_after_nan(make: Callable[[], Rule], trace: Trace, at: int) -> int:
    """Steps lost to a NaN at step `at`: those left out; or all from there on, where it is used and weights are NaN."""
    flagged = [place for place in judge(make, trace) if place >= at]
    return len(flagged) if at in flagged else len(trace.steps) - at


def lost_to_shift(make: Callable[[], Rule], nats: float, seed: int) -> int:
    """Steps left out once the loss has risen at step 1000, which no rule should go on doing."""
    return sum(place >= 1000 for place in judge(make, level_shift(seed, nats)))


def mean(numbers: Iterable[int]) -> str:
    """Their mean, to one digit."""
    return f"{statistics.fmean(numbers):.1f}".removesuffix(".0")


def in_hindsight(steps: Sequence[Step], around: int = 16) -> frozenset[int]:
    """Spikes of a recorded trace: a loss a nat above the median of the 33 steps around it, or a norm four times theirs.

    No rule can know this, as half of those steps are still to come. The ends of a trace lack such neighbours, and so
    spikes.
    """
    spikes = set()
    for place in range(around, len(steps) - around):
        (loss, norm), near = steps[place], steps[place - around : place + around + 1]
        usual_loss, usual_norm = (statistics.median(each[which] for each in near) for which in range(2))
        if loss > usual_loss + 1 or norm > 4 * usual_norm:
            spikes.add(place)
    return frozenset(spikes)


def record(rate: float, clip: float | None, seed: int, steps: int = RECORDED_STEPS) -> list[Step]:
    """Train a small demo and return its losses and norms, to five digits; as far as it goes."""
    trace: list[Step] = []
    changes: dict[str, Any] = {
        "data": {"seq_len": 64},
        "model": {"num_layers": 2, "num_heads": 4, "width": 64},
        "optim": {"lr": rate, "max_grad_norm": clip},
        "schedule": {"warmup": min(20, steps // 2)},
        **{part: {"every": None} for part in ("eval", "sample", "checkpoint")},
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()),
        suppress(DivergedError),
        tw.build("demo", run_dir=Path(folder) / "run", seed=seed, duration=steps, **changes) as run,
    ):
        for result in tw.steps(run):
            trace.append((float(f"{float(result.loss):.5g}"), float(f"{float(result.grad_norm):.5g}")))
    return trace


def record_all() -> None:
    """Train every setting with three seeds and write the traces."""
    torch.set_num_threads(1)
    runs = [
        {"lr": rate, "max_grad_norm": clip, "seed": seed, "steps": record(rate, clip, seed)}
        for rate, clip in SETTINGS
        for seed in SEEDS
    ]
    TRACES.parent.mkdir(exist_ok=True)
    about = {"command": "python benchmarks/spikes.py --record", "steps": "loss in nats, gradient norm before clipping"}
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    TRACES.write_text(f'{{"about": {json.dumps(about)},\n"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def recorded() -> dict[str, list[Trace]]:
    """The recorded traces by setting, spikes told in hindsight."""
    found: dict[str, list[Trace]] = {}
    for run in json.loads(TRACES.read_text(encoding="utf-8"))["runs"]:
        steps = [(loss, norm) for loss, norm in run["steps"]]
        clip = "no clip" if run["max_grad_norm"] is None else f"clip {run['max_grad_norm']:g}"
        found.setdefault(f"rate {run['lr']:g}, {clip}", []).append(Trace(steps, in_hindsight(steps)))
    return found


def cell(make: Callable[[], Rule], traces: Sequence[Trace]) -> str:
    """False flags per thousand steps, and spikes caught of all there are."""
    flagged = [judge(make, trace) for trace in traces]
    false = sum(len(flags - trace.spikes) for flags, trace in zip(flagged, traces, strict=True))
    caught = sum(len(flags & trace.spikes) for flags, trace in zip(flagged, traces, strict=True))
    spikes, steps = sum(len(trace.spikes) for trace in traces), sum(len(trace.steps) for trace in traces)
    rate = f"{1000 * false / (steps - spikes):.1f}"
    return rate if not spikes else f"{rate}, {caught} of {spikes}"


def table(title: str, rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table with a column for each rule."""
    head = [f"| {title} | {' | '.join(RULES)} |", f"|---|{'---|' * len(RULES)}"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)])


def made_table() -> str:
    """False flags and spikes caught on traces whose spikes are known."""
    rows = [
        (name, [cell(make, [trace(seed) for seed in SEEDS]) for make in RULES.values()])
        for name, trace in SYNTHETIC.items()
    ]
    return table("made traces: false flags per thousand, spikes caught", rows)


def lost_table() -> str:
    """Steps lost after something that happens at step 1000 of 2000."""
    shifts = [
        (
            f"loss up by {nats:g} for good",
            [mean(lost_to_shift(make, nats, seed) for seed in SEEDS) for make in RULES.values()],
        )
        for nats in (0.5, 1.0, 5.0)
    ]
    nan = [mean(lost_after_nan(make, one_nan(seed), 1000) for seed in SEEDS) for make in RULES.values()]
    return table("steps lost of 1,000 after", [("one NaN", nan), *shifts])


def recorded_table() -> str:
    """False flags and spikes caught on recorded traces, spikes told in hindsight."""
    rows = [(name, [cell(make, traces) for make in RULES.values()]) for name, traces in recorded().items()]
    return table("recorded traces: false flags per thousand, spikes caught", rows)


def main() -> None:
    """Print the tables, or record the traces."""
    parser = argparse.ArgumentParser(description="Compare rules that find spikes.")
    parser.add_argument("--record", action="store_true", help="train the runs whose traces are compared again")
    if parser.parse_args().record:
        record_all()
    print("\n\n".join([made_table(), lost_table(), recorded_table()]))


if __name__ == "__main__":
    main()
