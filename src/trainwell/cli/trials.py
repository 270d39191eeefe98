"""`trainwell compare` of runs, folders of runs and logs of others: what they came to, and whether it is noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainwell.cli.output import print_json, print_rich, wrote
from trainwell.config import checks
from trainwell.config.keys import by_name
from trainwell.errors import CheckError, ConfigError
from trainwell.report import arms
from trainwell.report.arms import Arm, Verdict, sentence
from trainwell.report.contrast_text import show_verdict
from trainwell.report.load import runs_below
from trainwell.report.trial import MEASURES, Measure, Trial, trial_of_log, trial_of_run
from trainwell.runs.rundir import is_run, parse_target


@dataclass(frozen=True)
class Asked:
    """How to compare."""

    by: str = "tokens"
    target_loss: float | None = None
    out: Path | None = None
    fail_if_worse: str | None = None
    columns: str | None = None
    tokens_per_step: int | None = None
    json: bool = False

    @property
    def measured(self) -> bool:
        """Whether something is asked for that only trials have."""
        return self != Asked(json=self.json)


def are_trials(targets: Sequence[str]) -> bool:
    """Whether every target was trained: a run, a folder of runs, or a log."""
    return all(_is_trial(Path(parse_target(target).path)) for target in targets)


def compare_trials(targets: Sequence[str], asked: Asked) -> None:
    """Compare, print or write it; raise CheckError where one is worse than allowed."""
    limit = None if asked.fail_if_worse is None else _share(asked.fail_if_worse)
    along = None if asked.by in MEASURES else _key(asked.by)
    if limit is not None and along is not None:
        raise ConfigError(
            f"--fail-if-worse holds others against the first, and --by {along} against the best; give one"
        )
    by: Measure = next((measure for measure in MEASURES if measure == asked.by), "tokens")
    found = arms.compare_trials([_trials(target, asked) for target in targets], by, asked.target_loss, along)
    if asked.json:
        print_json(facts_of(found))
    else:
        print_rich(show_verdict(found, along))
    if asked.out is not None:
        from trainwell.report.contrast_page import write_verdict  # here, since Bokeh takes half a second to import

        file = write_verdict(found, asked.out, along)
        if not asked.json:
            wrote(file)
    if limit is not None:
        _refuse_worse(found, limit)


def verdict_of(targets: Sequence[str], asked: Asked) -> Verdict | None:
    """What runs came to, as they are compared when nothing else is said; None where one was never evaluated."""
    found = [_trials(target, asked) for target in targets]
    if not all(trial.val for target in found for trial in target):
        return None
    return arms.compare_trials(found)


def _is_trial(path: Path) -> bool:
    if is_run(path):
        return True
    return bool(runs_below(path)) if path.is_dir() else path.is_file() and path.suffix not in {".yaml", ".yml", ".toml"}


def _trials(target: str, asked: Asked) -> list[Trial]:
    """The trials of a target; those of a folder by their names in it."""
    columns, place = _columns(asked.columns), parse_target(target)
    if place.step is not None:
        raise ConfigError(f"{target}: whole runs are compared; leave out the step, as in {place.path}")
    path = Path(place.path)
    if is_run(path):
        return [trial_of_run(path, target)]
    if path.is_dir():
        return [trial_of_run(run, str(run)) for run in runs_below(path)]
    return [trial_of_log(path, columns, asked.tokens_per_step)]


def _key(name: str) -> str:
    """A key of the configuration to lay arms out over."""
    if name in by_name() or name.startswith("extra."):
        return name
    known = [*MEASURES, *by_name()]
    raise ConfigError(f"--by {name}: allowed are {', '.join(MEASURES)} and every key{checks.did_you_mean(name, known)}")


def _columns(text: str | None) -> dict[str, str]:
    """`step=iter,val/loss=eval_loss` as a table."""
    if not text:
        return {}
    pairs = [part.partition("=") for part in text.split(",")]
    for ours, sign, theirs in pairs:
        if not (ours and sign and theirs):
            raise ConfigError(f"--columns {text!r}: write OURS=THEIRS,..., such as step=iter,val/loss=eval_loss")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _share(text: str) -> float:
    """`0.5%` or 0.005 as a share."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"--fail-if-worse {text!r}: write a share of the loss, such as 0.5%")
    return value


def _refuse_worse(found: Verdict, limit: float) -> None:
    """Raise CheckError with every arm whose mean loss is above the first one's by more than `limit` of it."""
    base = found.base.mean
    worse = [each.arm for each in found.contrasts if each.arm.mean > base * (1 + limit)]
    if worse:
        said = "; ".join(f"{arm.name}: {arm.mean:.4f}, {arm.mean / base - 1:+.2%}" for arm in worse)
        raise CheckError(f"--fail-if-worse {limit:.3g}: against {found.base.name} ({base:.4f}), {said}")


def facts_of(found: Verdict) -> dict[str, Any]:
    """A comparison as plain values."""
    return {
        "by": found.by,
        "compared": found.key,
        "unit": found.unit,
        "end": found.end,
        "differing": {key: list(values) for key, values in found.differing.items()},
        "warnings": found.warnings,
        "target_loss": found.target_loss,
        "base": found.base.name,
        "arms": [_arm_facts(arm) for arm in found.arms],
        "comparisons": [
            {
                "arm": each.arm.name,
                "verdict": each.verdict,
                "sentence": sentence(each, found),
                "difference": asdict(each.difference),
                "area": each.area,
                "first_difference": None if each.first is None else asdict(each.first),
                "pair": each.pair,
            }
            for each in found.contrasts
        ],
    }


def _arm_facts(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "settings": arm.settings,
        "mean": arm.mean,
        "runs": [
            {
                "name": each.trial.name,
                "seed": each.trial.seed,
                "final": each.final,
                "last": each.last,
                "best": each.best,
                "best_at": each.best_at,
                "mean": each.area,
                "to_target": dict(each.target),
            }
            for each in arm.outcomes
        ],
    }
