"""Learning rates as pure functions of the step: nothing to construct twice, advance or save.

Knows no configuration, optimizer or run. Steps count from 0, lengths are in steps, rates are absolute: step s is taken
with `schedule(s)`. Rising and falling are separate functions of their progress, so each can be read and tested alone.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[int], float]
WarmupShape = Literal["linear", "exponential"]
DecayShape = Literal["cosine", "linear", "constant", "inverse-sqrt", "wsd"]


class TokenCount(Protocol):
    """Whatever can say how many tokens came before a step, such as a BatchPlan."""

    def tokens_before(self, step: int) -> int:
        """Tokens consumed before `step`."""


def own(
    peak: float,
    warmup: int,
    horizon: int,
    *,
    shape: WarmupShape = "linear",
    initial_lr: float | None = None,
    decay: DecayShape = "cosine",
    decay_steps: int = 0,
    min_lr: float = 0.0,
) -> Schedule:
    """Give trainwell's own schedule: the peak exactly once, on the last step of the warmup; `min_lr` on the last step.

    With P the peak, W the warmup and T the horizon, step s < W has the rate P (s + 1)/W; with `initial_lr` I it starts
    exactly there: I + (P - I) s/(W - 1), or I (P/I)^(s/(W - 1)) when the shape is exponential. From W on the decay is
    at (s + 1 - W)/(T - W), so without warmup step 0 already is one step into it. From T on the rate is `min_lr`.
    Three decays differ: "constant" stays at the peak; "inverse-sqrt" is P sqrt(W/(s + 1)), no lower than `min_lr`, and
    has no end; "wsd" stays at the peak and falls in a line over the last `decay_steps` steps before T.

    Raises ValueError for numbers that no schedule has: see `check`.
    """
    check(
        peak, warmup, horizon, shape=shape, initial_lr=initial_lr, decay=decay, decay_steps=decay_steps, min_lr=min_lr
    )
    rise = warmup_from(peak, warmup, initial_lr, shape)
    fall = _fall(peak, warmup, horizon, decay, decay_steps, min_lr)
    return lambda step: rise(step) if step < warmup else fall(step)


def check(
    peak: float,
    warmup: int,
    horizon: int,
    *,
    shape: WarmupShape = "linear",
    initial_lr: float | None = None,
    decay: DecayShape = "cosine",
    decay_steps: int = 0,
    min_lr: float = 0.0,
) -> None:
    """Raise ValueError, in words for whoever chose the numbers, when no schedule can be laid out with them."""
    for name, given, allowed in (("shape", shape, get_args(WarmupShape)), ("decay", decay, get_args(DecayShape))):
        if given not in allowed:
            raise ValueError(f"{name} {given!r} is not known; give one of {', '.join(allowed)}")
    if not (peak > 0 and warmup >= 0 and 0 <= min_lr <= peak and 0 <= (initial_lr or 0.0) <= peak):
        raise ValueError(
            f"a peak of {peak}, an initial rate of {initial_lr}, a minimum of {min_lr} and a warmup of {warmup} do not "
            "go together: the peak must be above 0, both rates between 0 and the peak, and the warmup not below 0"
        )
    if warmup >= horizon:
        raise ValueError(f"a warmup of {warmup} steps leaves nothing of a horizon of {horizon}")
    if initial_lr is not None and warmup < 2:
        raise ValueError(f"a warmup from {initial_lr} to {peak} needs at least 2 steps, not {warmup}")
    if shape == "exponential" and not initial_lr:
        raise ValueError("an exponential warmup multiplies: it needs an initial rate above 0")
    if decay == "wsd" and not 0 < decay_steps <= horizon - warmup:
        raise ValueError(f"a final decay of {decay_steps} steps does not fit into {horizon} less {warmup} of warmup")


def warmup_from(peak: float, warmup: int, initial_lr: float | None, shape: WarmupShape = "linear") -> Schedule:
    """Give the rise to `peak`, valid for 0 <= step < warmup. Both ends are exact: no rounding moves them."""
    if initial_lr is None:
        return lambda step: peak * ((step + 1) / warmup)
    first = initial_lr
    last_step = warmup - 1
    if shape == "exponential":
        return lambda step: float(first ** (1 - step / last_step) * peak ** (step / last_step))
    return lambda step: first * (1 - step / last_step) + peak * (step / last_step)


def cosine(progress: float, peak: float, min_lr: float) -> float:
    """Half a cosine from `peak` at progress 0 to `min_lr` at 1 (Loshchilov and Hutter, 2017)."""
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (peak - min_lr)


def linear(progress: float, peak: float, min_lr: float) -> float:
    """A straight line from `peak` at progress 0 to `min_lr` at 1."""
    return min_lr + (1.0 - progress) * (peak - min_lr)


def by_tokens(rate: Schedule, plan: TokenCount) -> Schedule:
    """Turn a schedule over tokens into one over steps: the tokens that count are those finished before the step."""
    return lambda step: rate(plan.tokens_before(step))


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Put schedules one after another: number k counts its own steps from `boundaries[k - 1]`, the first from 0.

    Raises ValueError unless there is one boundary less than there are schedules, in rising order above 0.
    """
    starts = [0, *boundaries]
    if len(starts) != len(schedules) or any(
        later <= earlier for earlier, later in zip(starts, boundaries, strict=False)
    ):
        raise ValueError(
            f"{len(schedules)} schedules and the boundaries {list(boundaries)} do not join; "
            f"give at least one schedule, and {max(0, len(schedules) - 1)} steps in rising order above 0"
        )

    def joined(step: int) -> float:
        number = bisect_right(starts, step) - 1
        return schedules[number](step - starts[number])

    return joined


def as_torch(schedule: Schedule, optimizer: "Optimizer") -> "LambdaLR":
    """Wrap a schedule as torch's LambdaLR, for a loop of one's own: call its `step()` after `optimizer.step()`.

    LambdaLR multiplies the rate that a group was made with, so that rate is divided out again, which may move the last
    bit; a group's `lr_scale` counts. Raises ValueError for a group made with rate 0, which nothing can scale.
    """
    from torch.optim.lr_scheduler import LambdaLR  # here, because nothing else in this module needs torch

    if not hasattr(optimizer, "param_groups"):
        raise ValueError(f"as_torch takes a schedule and an optimizer, not {type(optimizer).__name__}")

    def factor_of(group: dict[str, float]) -> Schedule:
        made_with = float(group.get("initial_lr", group["lr"]))
        if not made_with:
            raise ValueError("the optimizer has a group with lr 0, which LambdaLR cannot scale; make it with the peak")
        return lambda step: schedule(step) * group.get("lr_scale", 1.0) / made_with

    return LambdaLR(optimizer, [factor_of(group) for group in optimizer.param_groups])


def _fall(peak: float, warmup: int, horizon: int, decay: DecayShape, decay_steps: int, min_lr: float) -> Schedule:
    """Give the decay, valid for step >= warmup."""
    if decay == "constant":
        return lambda step: peak
    if decay == "inverse-sqrt":
        return lambda step: max(min_lr, peak * math.sqrt(max(1, warmup) / (step + 1)))
    start = horizon - decay_steps if decay == "wsd" else warmup
    curve = cosine if decay == "cosine" else linear

    def fall(step: int) -> float:
        if step >= horizon:
            return min_lr
        return peak if step < start else curve((step + 1 - start) / (horizon - start), peak, min_lr)

    return fall
