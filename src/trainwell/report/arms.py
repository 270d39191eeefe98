"""PURE. Trials in arms that differ in their seed alone, what each arm came to, and which of two did better.

Everything is measured over the common range of what they are aligned by: a run that trained longer is read off where
the others end.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from statistics import fmean

import numpy as np

from trainwell.errors import ConfigError
from trainwell.report.columns import Floats
from trainwell.report.measured import Loss, first_apart
from trainwell.report.statistics import LEVEL, Difference, difference
from trainwell.report.trial import MEASURES, UNITS, Measure, Trial
from trainwell.runs.console import short_count, short_time

_OTHER_LENGTH = 0.01
_LONG_NAME = 60
_SPREAD = 1.0
"""The spread of the losses of single tokens, as a share of their mean: near one for models of language."""


@dataclass(frozen=True)
class Outcome:
    """What one trial came to; losses in nats per token, or in bits per byte where tokenizers differ."""

    trial: Trial
    final: float
    """At the end of the common range, on the line between its evaluations."""
    last: float
    """Its own last evaluation."""
    best: float
    best_at: float
    area: float
    """Its mean loss over the common range."""
    target: Mapping[str, float | None]
    """Tokens, steps, seconds and FLOPs at which it first reached the target; None where it never did, or says not."""


@dataclass(frozen=True)
class Arm:
    """Trials that differ in their seed alone."""

    name: str
    settings: Mapping[str, str]
    """What tells it from the other arms."""
    outcomes: tuple[Outcome, ...]

    def losses(self) -> list[float]:
        """The final loss of each trial, in their order."""
        return [each.final for each in self.outcomes]

    @property
    def mean(self) -> float:
        """The mean of its final losses."""
        return fmean(self.losses())


@dataclass(frozen=True)
class Contrast:
    """An arm against the first one."""

    arm: Arm
    difference: Difference
    area: float
    """The mean difference over the whole common range: the area between the curves over its length."""
    first: Loss | None
    """The first step at which the training losses of a pair of trials part; None where they never do, or share none."""
    pair: tuple[str, str] | None
    """The names of that pair."""

    @property
    def verdict(self) -> str:
        """Better, worse, inside the noise, or not to be told."""
        if self.difference.method == "none":
            return "cannot be told"
        if not self.difference.decided:
            return "inside the noise"
        return "better" if self.difference.mean < 0 else "worse"


@dataclass(frozen=True)
class Verdict:
    """A whole comparison: the arms, the first of them the one that the others are held against."""

    by: Measure
    key: str
    """What is compared: `val/loss` or `val/bpb`."""
    end: float
    """How far the common range reaches."""
    differing: Mapping[str, Sequence[str]]
    """Each key in which the arms differ, with the value of each."""
    arms: tuple[Arm, ...]
    base: Arm
    """What the others are held against."""
    contrasts: tuple[Contrast, ...]
    warnings: tuple[str, ...]
    target_loss: float | None

    @property
    def unit(self) -> str:
        """What the loss is counted in."""
        return "bits per byte" if self.key == "val/bpb" else "nats per token"


def compare_trials(
    targets: Sequence[Sequence[Trial]],
    by: Measure = "tokens",
    target_loss: float | None = None,
    along: str | None = None,
) -> Verdict:
    """Group the trials of all targets, read them off at the common end, and hold every arm against the first.

    `along` is a key: arms come in the order of its values, and are held against the best of them. Raises ConfigError
    where there is nothing to compare.
    """
    targets, left_out = _with_a_result(targets)
    trials = [trial for target in targets for trial in target]
    key = _compared(trials)
    curves = [trial.curve(by, key) for trial in trials]
    for trial, (at, _) in zip(trials, curves, strict=True):
        if not len(at):
            raise ConfigError(_nothing(trial, by, key))
    span = float(max(at[0] for at, _ in curves)), float(min(at[-1] for at, _ in curves))
    outcomes = [_outcome(trial, curve, span, target_loss, key) for trial, curve in zip(trials, curves, strict=True)]
    differing = differences(trials)
    arms = _ordered(_grouped(targets, outcomes, differing), along)
    base = arms[0] if along is None else min(arms, key=lambda arm: arm.mean)
    contrasts = tuple(_contrast(base, arm) for arm in arms if arm is not base)
    warnings = (*_unfair(trials, by, contrasts), *_at_the_edge(arms, base, along), *left_out)
    return Verdict(by, key, span[1], differing, arms, base, contrasts, warnings, target_loss)


def _with_a_result(targets: Sequence[Sequence[Trial]]) -> tuple[list[Sequence[Trial]], list[str]]:
    """Of each folder of runs those that are done, where any are: one that is not would end the common range early."""
    kept, notes = list[Sequence[Trial]](), list[str]()
    for target in targets:
        done = [trial for trial in target if trial.is_done] or [trial for trial in target if trial.val] or target
        kept.append(done)
        for trial in target:
            if trial not in done:
                notes.append(f"left out: {'; '.join(trial.notes) or f'{trial.name} has no evaluation'}")
    return kept, notes


def amount(value: float, by: str) -> str:
    """How far, in words: 1.54M tokens, 3 min."""
    if by == "time":
        return short_time(value)
    return f"{value:.3g} FLOPs" if by == "flops" else f"{short_count(value)} {UNITS[by]}"


def sentence(contrast: Contrast, verdict: Verdict) -> str:
    """The verdict on an arm in a sentence: how it did, by how much, how sure, and what would settle it."""
    found, base = contrast.difference, verdict.base
    share = found.mean / base.mean if base.mean else nan
    apart = f"{abs(found.mean):.4f} {verdict.unit} ({abs(share):.2%}) {'below' if found.mean < 0 else 'above'}"
    runs = f"{found.runs[0]} and {found.runs[1]} runs" + (", paired by seed" if found.paired else "")
    if found.method == "none":
        return (
            f"{contrast.arm.name} is {apart} {base.name}, and whether that is noise cannot be told from {runs}: train "
            "each with several seeds (--each seed=1,2,3,4,5)"
        )
    interval = f"{found.mean:+.4f}, {LEVEL:.0%} interval {found.low:+.4f} to {found.high:+.4f}, {runs}"
    if found.decided:
        return f"{contrast.arm.name} is {contrast.verdict} than {base.name}: {apart} it ({interval})"
    more = ""
    if found.more is not None:
        count = "more than a thousand" if found.more >= 1000 else f"about {found.more}"
        seeds = "seed" if found.more == 1 else "seeds"
        more = f"; if the difference is what it seems, {count} more {seeds} of each would decide"
    return f"{contrast.arm.name} against {base.name} is inside the noise ({interval}){more}"


def _compared(trials: Sequence[Trial]) -> str:
    """Loss per token; bits per byte where tokenizers differ and all say it."""
    tokenizers = {trial.data.tokenizer for trial in trials if trial.data.tokenizer}
    return "val/bpb" if len(tokenizers) > 1 and all(trial.has_bytes for trial in trials) else "val/loss"


def _nothing(trial: Trial, by: Measure, key: str) -> str:
    if not trial.val:
        return f"{trial.name} has no evaluation on record, so there is nothing to compare; train it with --eval.every"
    if key == "val/loss" and len(trial.curve("steps")[0]):
        how = ", or give --tokens-per-step" if by in {"tokens", "flops"} else ""
        return f"{trial.name} does not say how many {UNITS[by]} its evaluations come after; compare --by steps{how}"
    return f"{trial.name} has no finite validation loss on record"


def _outcome(
    trial: Trial, curve: tuple[Floats, Floats], span: tuple[float, float], target: float | None, key: str
) -> Outcome:
    at, losses = curve
    best = int(losses.argmin())
    return Outcome(
        trial=trial,
        final=float(np.interp(span[1], at, losses)),
        last=float(losses[-1]),
        best=float(losses[best]),
        best_at=float(at[best]),
        area=_mean_over(at, losses, span),
        target={} if target is None else {by: _reached(*trial.curve(by, key), target) for by in MEASURES},
    )


def _mean_over(at: Floats, losses: Floats, span: tuple[float, float]) -> float:
    """The mean of the straight lines between evaluations over a span."""
    start, end = span
    if end <= start:
        return float(np.interp(end, at, losses))
    inside = np.unique(np.concatenate([[start, end], at[(at > start) & (at < end)]]))
    return float(np.trapezoid(np.interp(inside, at, losses), inside) / (end - start))


def _reached(at: Floats, losses: Floats, target: float) -> float | None:
    """Where the line between evaluations first comes down to the target."""
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return None
    first = int(below[0])
    if not first:
        return float(at[0])
    share = (losses[first - 1] - target) / (losses[first - 1] - losses[first])
    return float(at[first - 1] + share * (at[first] - at[first - 1]))


def differences(trials: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
    """The keys in which trials differ, but for the seed, with the value of each trial."""
    known = [trial for trial in trials if trial.settings]
    keys = dict.fromkeys(key for trial in known for key in trial.settings if key != "seed")
    return {
        key: tuple(trial.settings.get(key, "") for trial in trials)
        for key in keys
        if len({trial.settings.get(key, "") for trial in known}) > 1
    }


def as_number(value: str) -> tuple[float, str]:
    """To order values by: numbers first."""
    try:
        return float(value), value
    except ValueError:
        return inf, value


def _grouped(
    targets: Sequence[Sequence[Trial]], outcomes: Sequence[Outcome], differing: Mapping[str, Sequence[str]]
) -> list[Arm]:
    """Targets are arms where one of them has several trials, or two have one each; else what differs makes the arms."""
    places = [number for number, target in enumerate(targets) for _ in target]
    by_target = len(targets) > 1 and (len(targets) < len(outcomes) or len(outcomes) == 2)
    groups: dict[object, list[int]] = {}
    for number, outcome in enumerate(outcomes):
        own = tuple(values[number] for values in differing.values()) if outcome.trial.settings else outcome.trial.name
        groups.setdefault(places[number] if by_target else own, []).append(number)
    return [_arm([outcomes[at] for at in members], members, differing) for members in groups.values()]


def _arm(outcomes: Sequence[Outcome], numbers: Sequence[int], differing: Mapping[str, Sequence[str]]) -> Arm:
    """An arm by what its trials share of what differs, or by the name of its only trial."""
    shared = {key: {values[number] for number in numbers} for key, values in differing.items()}
    settings = {key: next(iter(values)) for key, values in shared.items() if len(values) == 1}
    name = ", ".join(f"{key}={value}" for key, value in settings.items())
    first = outcomes[0].trial
    if not name or len(name) > _LONG_NAME or not first.settings:
        name = first.name if len(outcomes) == 1 else f"{first.name} and {len(outcomes) - 1} more"
    return Arm(name, settings, tuple(sorted(outcomes, key=lambda each: as_number(each.trial.seed or ""))))


def _ordered(arms: Sequence[Arm], along: str | None) -> tuple[Arm, ...]:
    """The arms in the order of the values of a key; ConfigError where they do not differ in it."""
    if along is None:
        return tuple(arms)
    missing = [arm.name for arm in arms if along not in arm.settings]
    if missing:
        keys = ", ".join(dict.fromkeys(key for arm in arms for key in arm.settings)) or "none"
        raise ConfigError(f"--by {along}: {missing[0]} is not told from others by it; keys that differ are: {keys}")
    return tuple(sorted(arms, key=lambda arm: as_number(arm.settings[along])))


def _contrast(base: Arm, arm: Arm) -> Contrast:
    pairs = _pairs(base, arm)
    areas = (fmean(each.area for each in arm.outcomes), fmean(each.area for each in base.outcomes))
    if pairs:
        apart = difference([left.final for left, _ in pairs], [right.final for _, right in pairs], paired=True)
    else:
        apart = difference(base.losses(), arm.losses(), paired=False)
    left, right = pairs[0] if pairs else (base.outcomes[0], arm.outcomes[0])
    first = first_apart(left.trial.train, right.trial.train)
    return Contrast(arm, apart, areas[0] - areas[1], first, (left.trial.name, right.trial.name))


def _pairs(base: Arm, arm: Arm) -> list[tuple[Outcome, Outcome]]:
    """Trials of the same seed, where both arms have the same seeds, each once."""
    seeds = [[each.trial.seed for each in side.outcomes] for side in (base, arm)]
    alike = seeds[0] == seeds[1] and None not in seeds[0] and len({*seeds[0]}) == len(seeds[0]) > 1
    return list(zip(base.outcomes, arm.outcomes, strict=True)) if alike else []


def _unfair(trials: Sequence[Trial], by: Measure, contrasts: Sequence[Contrast]) -> Iterator[str]:
    """Why the comparison may say less than it seems to."""
    for what, word in (("train", "data"), ("tokenizer", "tokenizers"), ("validation", "validation sets")):
        values = {getattr(trial.data, what) for trial in trials if getattr(trial.data, what)}
        if len(values) > 1:
            yield f"other {word}: {'; '.join(sorted(_short(value) for value in values))}"
    unknown = [trial.name for trial in trials if not trial.data.validation]
    if unknown and len(unknown) < len(trials):
        yield f"what {unknown[0]} was evaluated on is not on record: its loss may be of other text"
    yield from _other_lengths(trials)
    devices = {trial.device for trial in trials if trial.device}
    if by == "time" and len(devices) > 1:
        yield f"compared by time, on other machines: {'; '.join(sorted(devices))}"
    yield from _too_small(trials, contrasts)
    yield from dict.fromkeys(note for trial in trials for note in trial.notes)


def _at_the_edge(arms: Sequence[Arm], base: Arm, along: str | None) -> Iterator[str]:
    """That the best of a range of numbers is its first or last, so a better one may lie outside."""
    values = [] if along is None else sorted({as_number(arm.settings[along]) for arm in arms})
    if along is None or len(values) < 3 or not isfinite(values[-1][0]):
        return
    best = as_number(base.settings[along])
    for value, word in ((values[0], "smaller"), (values[-1], "larger")):
        if best == value:
            yield f"the best {along}, {value[1]}, is at the edge of what was tried: try {word} ones"


def _other_lengths(trials: Sequence[Trial]) -> Iterator[str]:
    ends = [(at[-1], trial.name) for trial in trials if len(at := trial.curve("tokens")[0])]
    if not ends:
        return
    (least, short), (most, long) = min(ends), max(ends)
    if most > (1 + _OTHER_LENGTH) * least:
        yield (
            f"other lengths: {short} ends after {short_count(least)} tokens, {long} after {short_count(most)}; losses "
            "are read where the shortest ends, and a schedule laid out for a longer run is not done there"
        )


def _too_small(trials: Sequence[Trial], contrasts: Sequence[Contrast]) -> Iterator[str]:
    """A difference that other text of the same size could turn round: the spread of token losses over their count."""
    sizes = [trial.data.val_targets for trial in trials if trial.data.val_targets]
    apart = [abs(each.difference.mean) for each in contrasts]
    if not sizes or not apart or not isfinite(min(apart)):
        return
    error = _SPREAD * contrasts[0].arm.mean / sqrt(min(sizes))
    if min(apart) < error:
        yield (
            f"the validation set is small: {min(sizes):,} tokens give a loss to about +-{error:.3f}, and the smallest "
            f"difference is {min(apart):.4f}; on other text it may be another (--eval.batches 0 takes all of the set, "
            "--data.val_fraction holds out more)"
        )


def _short(value: str) -> str:
    """A fingerprint in as many letters as tell it from others."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", value)
