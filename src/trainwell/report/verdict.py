"""PURE. What a run amounts to, in one line: a few stated rules over its recorded losses, no model of training.

Knows rows of metrics, not where they come from. The rules and their limits are in docs/decisions/0006-verdict.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from trainwell.report.load import RunData
from trainwell.runs.metrics import Row

Kind = Literal["too early", "diverged", "not learning", "overfitting", "learned"]

_LEARNS = 0.05
_MATTERS = 0.01
_OFTEN_CLIPPED = 0.5


@dataclass(frozen=True)
class Judgement:
    """The verdict on a run; losses in nats per token, `best_step` the state with the lowest validation loss."""

    kind: Kind
    text: str
    advice: str
    best_step: int | None = None
    best_loss: float | None = None
    clipped: float | None = None


def verdict(run: RunData) -> str:
    """One line: what happened, the best step, the share of clipped steps, and, at the end, what to try next."""
    judged = judge(run.train, run.val)
    unfinished = run.num_steps is not None and run.steps_done < run.num_steps and judged.kind != "diverged"
    return f"so far {judged.text}" if unfinished else f"{judged.text}; {judged.advice}"


def judge(train: Sequence[Row], val: Sequence[Row]) -> Judgement:
    """Judge a run by its rows, the first rule that applies: diverged, not learning, overfitting, learned."""
    losses = [(row["step"], row["train/loss"]) for row in train if "train/loss" in row]
    smooth = _smooth([(step, loss) for step, loss in losses if math.isfinite(loss)])
    clipped = _share(train, "train/clipped")
    checks = [(row["step"], row["val/loss"]) for row in val if math.isfinite(row.get("val/loss", math.nan))]
    best_step, best = min(checks, key=lambda check: check[1], default=(None, None))

    def judgement(kind: Kind, said: str, advice: str) -> Judgement:
        return Judgement(kind, f"{kind}{said}{_clipping(clipped)}", advice, best_step, best, clipped)

    lost = _diverged(losses, smooth)
    sane = len(checks) > 1 and bool(losses) and math.isfinite(losses[-1][1])
    best_at_last = sane and checks[-1][1] <= (1 + _MATTERS) * (best or 0)
    if lost is not None and not best_at_last:
        advice = "try half of --optim.lr or a longer --schedule.warmup"
        return judgement("diverged", f" after step {lost}{_best(best_step, best)}", advice)
    course = checks if len(checks) >= 2 else smooth
    if len(course) < 2:
        return judgement("too early", f" to tell after {len(losses)} steps", "train longer")
    first, last = course[0][1], course[-1][1]
    which = "validation" if course is checks else "training"
    if min(loss for _, loss in course) > (1 - _LEARNS) * first:
        advice = "try a higher --optim.lr, then look at the data and the batch size"
        return judgement("not learning", f": {which} loss {first:.3f} to {last:.3f}", advice)
    if (
        best is not None
        and len([step for step, _ in checks if step > (best_step or 0)]) >= 2
        and last > (1 + _MATTERS) * best
    ):
        said = f" since step {best_step}: validation {best:.3f} then, {last:.3f} at the end"
        return judgement(
            "overfitting", said, f"sample from @{best_step}; try more text, --model.dropout 0.2 or a shorter run"
        )
    falling = _falls([loss for _, loss in course])
    advice = "still falling: try a longer --duration" if falling else "flat at the end: try a larger model or more text"
    return judgement("learned", f": {which} loss {first:.3f} to {last:.3f}{_best(best_step, best)}", advice)


def _diverged(losses: Sequence[tuple[int, float]], smooth: Sequence[tuple[int, float]]) -> int | None:
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


def _smooth(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The first loss, then up to twenty points: each the mean of a stretch of losses, placed at its last step."""
    size = max(1, math.ceil(len(losses) / 20))
    stretches = [losses[start : start + size] for start in range(0, len(losses), size)]
    return list(losses[:1]) + [(stretch[-1][0], fmean(loss for _, loss in stretch)) for stretch in stretches]


def _share(rows: Sequence[Row], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return fmean(values) if values else None


def _best(step: int | None, loss: float | None) -> str:
    return "" if loss is None else f", best {loss:.3f} at step {step}"


def _clipping(share: float | None) -> str:
    if share is None:
        return ""
    hint = " (often: a lower --optim.lr or a longer warmup would clip less)" if share > _OFTEN_CLIPPED else ""
    return f", {share:.0%} of the steps clipped{hint}"
