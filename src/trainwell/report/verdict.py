"""PURE. What a run amounts to, in one line: a few stated rules over its recorded losses, no model of training.

Knows rows of metrics, not where they come from. The rules and their limits are in docs/decisions/0006-verdict.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from trainwell.config.tree import RunConfig
from trainwell.report.load import Joined, RunData, joined
from trainwell.runs.metrics import Row

Kind = Literal["too early", "diverged", "not learning", "overfitting", "learned"]

_LEARNS = 0.05
_MATTERS = 0.01
_OFTEN_CLIPPED = 0.5
_OFTEN_SPIKED = 0.01
_GROWN, _STRETCHES, _FEWEST_NORMS = 2.0, 10, 50


@dataclass(frozen=True)
class Judgement:
    """The verdict on a run; losses in nats per token, `best_step` the state with the lowest validation loss."""

    kind: Kind
    text: str
    advice: str
    best_step: int | None = None
    best_loss: float | None = None
    clipped: float | None = None
    spikes: int = 0
    skipped: int = 0


Losses = Sequence[tuple[int, float]]


def verdict(run: RunData) -> str:
    """One line: what happened, the best step, the share of clipped steps, and, at the end, what to try next."""
    judged = judge_run(run)
    unfinished = run.num_steps is not None and run.steps_done < run.num_steps and judged.kind != "diverged"
    return f"so far {judged.text}" if unfinished else f"{judged.text}; {judged.advice}"


def judge_run(run: RunData) -> Judgement:
    """Judge a run by its rows, a branch's behind its parent's, and its configuration with its own precision."""
    return judge_joined(run, joined(run))


def judge_joined(run: RunData, rows: Joined) -> Judgement:
    """Judge a run whose rows were joined with its parents' already."""
    settings = run.env.get("settings")
    known = {"precision": settings["precision"]} if isinstance(settings, dict) and "precision" in settings else {}
    return judge(rows.train, rows.val, run.config.model_copy(update=known))


def judge(train: Sequence[Row], val: Sequence[Row], config: RunConfig | None = None) -> Judgement:
    """Judge a run by its rows, the first rule that applies: diverged, not learning, overfitting, learned.

    The loss of a skipped step counts as no number. A few spikes are counted and no more; often, or beside skipped
    steps, they get advice, and with a `config` that names what is not switched on yet.
    """
    rows = [row for row in train if "train/loss" in row]
    losses = [(row["step"], math.nan if row.get("train/skipped") else row["train/loss"]) for row in rows]
    checks = [(row["step"], row["val/loss"]) for row in val if math.isfinite(row.get("val/loss", math.nan))]
    best_step, best = min(checks, key=lambda check: check[1], default=(None, None))
    kind, said, advice = _rule(losses, checks)
    spikes, skipped = (sum(bool(row.get(f"train/{sign}")) for row in train) for sign in ("spike", "skipped"))
    often = spikes > (0 if kind == "not learning" else _OFTEN_SPIKED * len(rows))
    if kind == "diverged" or often or skipped:
        first = "half of" if kind == "diverged" else "a lower"
        steadier = f"try {first} --optim.lr or a longer --schedule.warmup{_remedies(config, spikes, skipped)}"
        advice = steadier if kind in {"diverged", "not learning"} else f"{advice}; to be steadier, {steadier}"
    text = f"{kind}{said}{_clipping(train, config)}{_unsteady(spikes, skipped)}"
    return Judgement(kind, text, advice, best_step, best, _share(train, "train/clipped"), spikes, skipped)


def _rule(losses: Losses, checks: Losses) -> tuple[Kind, str, str]:
    """The kind, what is said of it, and what to try, from training and validation losses by their steps."""
    smooth = _smooth([(step, loss) for step, loss in losses if math.isfinite(loss)])
    best_step, best = min(checks, key=lambda check: check[1], default=(None, None))
    lost = _diverged(losses, smooth)
    sane = len(checks) > 1 and bool(losses) and math.isfinite(losses[-1][1])
    best_at_last = sane and checks[-1][1] <= (1 + _MATTERS) * (best or 0)
    if lost is not None and not best_at_last:
        return "diverged", f" after step {lost}{_best(best_step, best)}", ""
    course = checks if len(checks) >= 2 else smooth
    if len(course) < 2:
        return "too early", f" to tell after {len(losses)} steps", "train longer"
    best_so_far = _best(best_step, best) if course is checks else ""  # of validation, so not beside training losses
    first, last = course[0][1], course[-1][1]
    which = "validation" if course is checks else "training"
    if min(loss for _, loss in course) > (1 - _LEARNS) * first:
        advice = "try a higher --optim.lr, then look at the data and the batch size"
        return "not learning", f": {which} loss {first:.3f} to {last:.3f}", advice
    if (
        best is not None
        and len([step for step, _ in checks if step > (best_step or 0)]) >= 2
        and last > (1 + _MATTERS) * best
    ):
        said = f" since step {best_step}: validation {best:.3f} then, {last:.3f} at the end"
        return "overfitting", said, f"sample from @{best_step}; try more text, --model.dropout 0.2 or a shorter run"
    falling = _falls([loss for _, loss in course])
    advice = "still falling: try a longer --duration" if falling else "flat at the end: try a larger model or more text"
    return "learned", f": {which} loss {first:.3f} to {last:.3f}{best_so_far}", advice


def _remedies(config: RunConfig | None, spikes: int, skipped: int) -> str:
    """What else steadies such a run and is off, from what costs nothing on; nothing where the configuration is unknown.

    Clipping first; norms of queries and keys and the z-loss hold attention and logits in bounds, the two places that
    grow before a loss leaps out (Wortsman et al., 2023); last what only passes over the spikes.
    """
    if config is None:
        return ""
    made_here = config.init_from is None and "model" not in config.custom  # weights cannot be given norms later
    own_loss = config.task == "classify" or "loss" in config.custom
    found = [
        remedy
        for remedy, helps in (
            ("--optim.max_grad_norm 1.0", config.optim.max_grad_norm is None),
            ("--precision bf16 or fp32", config.precision == "fp16" and skipped > 0),
            ("--model.qk_norm true", made_here and not config.model.qk_norm),
            ("--optim.z_loss 1e-4", not own_loss and not config.optim.z_loss),
            ("--guard.policy skip", config.guard.policy == "log" and spikes > 0),
        )
        if helps
    ]
    return f", then {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}" if found else ""


def _diverged(losses: Losses, smooth: Losses) -> int | None:
    """The last good step of a run whose last five losses are not finite, or that lost half of what it learned."""
    tail = [loss for _, loss in losses[-5:]]
    if len(tail) == 5 and not any(math.isfinite(loss) for loss in tail):
        return smooth[-1][0] if smooth else 0
    if len(smooth) < 3:
        return None
    step, lowest = min(smooth, key=lambda point: point[1])
    first, last = smooth[0][1], smooth[-1][1]
    regained = last - lowest > max((first - lowest) / 2, _LEARNS * lowest)
    return step if regained else None


def _falls(losses: Sequence[float]) -> bool:
    """Whether the last tenth of the course, at least its last point, is clearly below what came as long before it."""
    size = max(1, len(losses) // 10)
    return fmean(losses[-2 * size : -size]) > (1 + _MATTERS) * fmean(losses[-size:])


def _smooth(losses: Losses) -> list[tuple[int, float]]:
    """The first loss, then up to twenty points: each the mean of a stretch of losses, placed at its last step."""
    size = max(1, math.ceil(len(losses) / 20))
    stretches = [losses[start : start + size] for start in range(0, len(losses), size)]
    return list(losses[:1]) + [(stretch[-1][0], fmean(loss for _, loss in stretch)) for stretch in stretches]


def _share(rows: Sequence[Row], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return fmean(values) if values else None


def _best(step: int | None, loss: float | None) -> str:
    return "" if loss is None else f", best {loss:.3f} at step {step}"


def _unsteady(spikes: int, skipped: int) -> str:
    counts = ((spikes, "spike"), (skipped, "skipped step"))
    said = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count]
    return f", {' and '.join(said)}" if said else ""


def _clipping(train: Sequence[Row], config: RunConfig | None) -> str:
    """The share of clipped steps. A large one is usual, and the rule in a fine-tune; it is a sign if norms grow too."""
    share = _share(train, "train/clipped")
    if share is None:
        return ""
    fine_tune = config is not None and (config.task != "pretrain" or config.init_from is not None)
    grown = None if fine_tune or share <= _OFTEN_CLIPPED else _grown(train)
    hint = ""
    if grown is not None:
        hint = (
            f" (norms grew from {grown[0]:.2g} to {grown[1]:.2g} and the loss did not fall: try a lower --optim.lr or "
            "a longer --schedule.warmup)"
        )
    return f", {share:.0%} of the steps clipped{hint}"


def _grown(train: Sequence[Row]) -> tuple[float, float] | None:
    """The median gradient norm of the calmest tenth of a run and of its last, if that is over twice that for nothing.

    Norms of a model that learns well grow as well; a loss that is no lower by then is the difference.
    """
    rows = [
        (row["train/grad_norm"], row["train/loss"])
        for row in train
        if all(math.isfinite(row.get(f"train/{name}", math.nan)) for name in ("grad_norm", "loss"))
    ]
    if len(rows) < _FEWEST_NORMS:
        return None
    size = -(-len(rows) // _STRETCHES)
    stretches = [zip(*rows[start : start + size], strict=True) for start in range(0, len(rows), size)]
    *before, last = [(median(norms), median(losses)) for norms, losses in stretches]
    calmest = min(before)
    grew = last[0] > _GROWN * calmest[0] and last[1] >= calmest[1]
    return (calmest[0], last[0]) if grew else None
