"""Other systems' learning rates, to the letter, so that a recipe of theirs gives their rates here.

Knows no configuration; `DIALECTS[name](peak, initial, minimum, warmup, horizon)` is the whole interface, to which
those in TAKE_DECAY_STEPS add the length of their decay. Rates are absolute, steps count from 0; those in IN_TOKENS
count tokens instead. The quirks are theirs and are kept: some spend step 0 at rate 0, some have the peak twice, most
never reach their minimum. Sources: the named projects' published code, each read as one formula.
"""

import math
from collections.abc import Callable

from trainwell.optim.schedule import Schedule, cosine, linear

Dialect = Callable[..., Schedule]
"""From (peak, initial, minimum, warmup, horizon), and for some `decay_steps`, to a schedule."""


def book(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Raschka, Build a Large Language Model (From Scratch), appendix D: step 0 at the initial rate."""
    first = initial or 0.0
    increment = (peak - first) / warmup if warmup else 0.0
    return _joined(warmup, lambda step: first + step * increment, _falling(peak, minimum, warmup, horizon))


def build_nanogpt(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Karpathy's GPT-2 lecture: the peak twice, on the last step of the warmup and the one after."""
    return _joined(warmup, lambda step: peak * (step + 1) / warmup, _falling(peak, minimum, warmup, horizon))


def nanogpt(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Give nanoGPT's: the warmup is divided by one more, so that the peak comes once, just after it."""
    return _joined(warmup, lambda step: peak * (step + 1) / (warmup + 1), _falling(peak, minimum, warmup, horizon))


def from_zero(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """LitGPT, Composer, nanotron: step 0 at rate 0, the peak just after the warmup."""
    return _joined(warmup, lambda step: peak * step / warmup, _falling(peak, minimum, warmup, horizon))


def olmo_core(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """OLMo-core: counts steps from 1, may start above 0, reaches its minimum on the last step."""
    first = initial or 0.0
    fall = _falling(peak, minimum, warmup, horizon)
    return lambda step: first + (peak - first) * (step + 1) / warmup if step + 1 < warmup else fall(step + 1)


def hf_cosine(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Hugging Face `cosine`: to 0, and up again past the horizon."""
    return hf_cosine_min(peak, None, 0.0, warmup, horizon)


def hf_cosine_min(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Hugging Face `cosine_with_min_lr`: as `cosine`, scaled to end at the minimum."""
    fall = _waving(peak, minimum, warmup, horizon)
    return _joined(warmup, lambda step: peak * step / warmup, fall)


def hf_cosine_warmup_min(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Hugging Face `cosine_warmup_with_min_lr`: one step ahead of `cosine_with_min_lr`, so no step is lost."""
    fall = _waving(peak, minimum, warmup, horizon)
    return _joined(warmup, lambda step: peak * (step + 1) / warmup, lambda step: fall(step + 1))


def hf_linear(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Hugging Face `linear`: to 0 at the horizon."""
    return _joined(
        warmup, lambda step: peak * step / warmup, lambda step: peak * max(0, horizon - step) / (horizon - warmup)
    )


def hf_inverse_sqrt(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Hugging Face `inverse_sqrt`, whose timescale is the warmup, or 10,000 steps without one."""
    timescale = warmup or 10_000
    return _joined(
        warmup,
        lambda step: peak * step / warmup,
        lambda step: peak * math.sqrt(timescale / (step - warmup + timescale)),
    )


def nanochat(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Give nanochat's: at the peak until the last 65 % of the horizon, then a line to 5 % of it."""
    down, floor = OWN_DECAY["nanochat"](horizon), 0.05

    def fall(step: int) -> float:
        left = min(1.0, (horizon - step) / down)
        return peak * (left + (1 - left) * floor)

    return _joined(warmup, lambda step: peak * (step + 1) / warmup, fall)


def llm_c_wsd(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Give llm.c's `wsd`: at the peak for 80 % of the horizon, then down with one minus a square root."""
    start, floor = horizon - OWN_DECAY["llm.c-wsd"](horizon), minimum / peak

    def fall(step: int) -> float:
        if step < start:
            return peak
        return floor * peak + (1 - math.sqrt((step - start) / (horizon - start))) * (1 - floor) * peak

    return _joined(warmup, lambda step: peak * (step + 1) / warmup, fall)


def torchtitan(
    peak: float, initial: float | None, minimum: float, warmup: int, horizon: int, decay_steps: int | None = None
) -> Schedule:
    """Give torchtitan's with `decay_type` cosine; without `decay_steps` the decay takes all that the warmup leaves."""
    return _titan(peak, minimum, warmup, horizon, decay_steps, cosine)


def torchtitan_linear(
    peak: float, initial: float | None, minimum: float, warmup: int, horizon: int, decay_steps: int | None = None
) -> Schedule:
    """Give torchtitan's with `decay_type` linear."""
    return _titan(peak, minimum, warmup, horizon, decay_steps, linear)


def torchtitan_1_sqrt(
    peak: float, initial: float | None, minimum: float, warmup: int, horizon: int, decay_steps: int | None = None
) -> Schedule:
    """Give torchtitan's with `decay_type` sqrt: one minus a square root."""
    return _titan(
        peak, minimum, warmup, horizon, decay_steps, lambda progress, *ends: linear(math.sqrt(progress), *ends)
    )


def exponential(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Warm up by the same factor from step to step, from an initial rate above 0; then the book's cosine."""
    first = initial or peak
    return _joined(
        warmup, lambda step: first * (peak / first) ** (step / warmup), _falling(peak, minimum, warmup, horizon)
    )


def flashcard_1(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Warm up in a line from the initial rate, then stay at the peak: the loop that readers meet first."""
    return book(peak, initial, peak, warmup, horizon)


def gpt3(peak: float, initial: float | None, minimum: float, warmup: int, horizon: int) -> Schedule:
    """GPT-3 (Brown et al., 2020, appendix B): LitGPT's formula, but over tokens, those finished before the step."""
    return from_zero(peak, initial, minimum, warmup, horizon)


DIALECTS: dict[str, Dialect] = {
    "book": book,
    "build-nanogpt": build_nanogpt,
    "composer": from_zero,
    "exponential": exponential,
    "flashcard-1": flashcard_1,
    "gpt3": gpt3,
    "hf-cosine": hf_cosine,
    "hf-cosine-warmup-with-min-lr": hf_cosine_warmup_min,
    "hf-cosine-with-min-lr": hf_cosine_min,
    "hf-inverse-sqrt": hf_inverse_sqrt,
    "hf-linear": hf_linear,
    "litgpt": from_zero,
    "llm.c": build_nanogpt,
    "llm.c-wsd": llm_c_wsd,
    "nanochat": nanochat,
    "nanogpt": nanogpt,
    "nanotron": from_zero,
    "olmo-core": olmo_core,
    "torchtitan": torchtitan,
    "torchtitan-1-sqrt": torchtitan_1_sqrt,
    "torchtitan-linear": torchtitan_linear,
}
"""Every dialect by its name."""

_COSINE = "m + (P - m) x (1 + cos(pi x (s - W)/(T - W)))/2"
_COSINE_AHEAD = "m + (P - m) x (1 + cos(pi x (s + 1 - W)/(T - W)))/2"

FORMULAS: dict[str, tuple[str, str]] = {
    "book": ("I + s x (P - I)/W", _COSINE),
    "build-nanogpt": ("P x (s + 1)/W", _COSINE),
    "composer": ("P x s/W", _COSINE),
    "exponential": ("I x (P/I)^(s/W)", _COSINE),
    "flashcard-1": ("I + s x (P - I)/W", "P"),
    "gpt3": ("P x n/W", "m + (P - m) x (1 + cos(pi x (n - W)/(T - W)))/2"),
    "hf-cosine": ("P x s/W", "P x (1 + cos(pi x (s - W)/(T - W)))/2"),
    "hf-cosine-warmup-with-min-lr": ("P x (s + 1)/W", _COSINE_AHEAD),
    "hf-cosine-with-min-lr": ("P x s/W", _COSINE),
    "hf-inverse-sqrt": ("P x s/W", "P x sqrt(W/s)"),
    "hf-linear": ("P x s/W", "P x max(0, T - s)/(T - W)"),
    "litgpt": ("P x s/W", _COSINE),
    "llm.c": ("P x (s + 1)/W", _COSINE),
    "llm.c-wsd": ("P x (s + 1)/W", "m + (P - m) x (1 - sqrt((s - int(0.8 x T))/(T - int(0.8 x T))))"),
    "nanochat": ("P x (s + 1)/W", "P x (0.05 + 0.95 x (T - s)/round(0.65 x T))"),
    "nanogpt": ("P x (s + 1)/(W + 1)", _COSINE),
    "nanotron": ("P x s/W", _COSINE),
    "olmo-core": ("I + (P - I) x (s + 1)/W", _COSINE_AHEAD),
    "torchtitan": ("P x (s + 1)/W", "m + (P - m) x (1 + cos(pi x (s + D - T)/D))/2"),
    "torchtitan-1-sqrt": ("P x (s + 1)/W", "m + (P - m) x (1 - sqrt((s + D - T)/D))"),
    "torchtitan-linear": ("P x (s + 1)/W", "m + (P - m) x (T - s)/D"),
}
"""The same for readers: in the warmup, and after it where the rate is neither P nor m. Tests evaluate them.

P is the peak, I the initial rate, m the minimum, s the step, W the warmup, T the horizon, D the length of the decay;
n are the tokens before the step, and beside them W and T are tokens too.
"""

READ_INITIAL = frozenset({"book", "exponential", "flashcard-1", "olmo-core"})
"""Those whose warmup starts at the initial rate; the rest start at 0 or one step above it."""

NEED_INITIAL = frozenset({"book", "exponential", "flashcard-1"})
"""Those that are not defined without an initial rate."""

IN_TOKENS = frozenset({"gpt3"})
"""Those whose warmup and horizon are tokens, and whose schedule is asked with the tokens before a step."""

TAKE_DECAY_STEPS = frozenset({"torchtitan", "torchtitan-1-sqrt", "torchtitan-linear"})
"""Those that may stay at the peak before they decay."""

OWN_DECAY: dict[str, Callable[[int], int]] = {
    "llm.c-wsd": lambda horizon: horizon - int(0.8 * horizon),
    "nanochat": lambda horizon: round(0.65 * horizon),
}
"""Those that stay at the peak and then decay over a share of the horizon: the steps of that, by the horizon."""

AT_MINIMUM_LAST = frozenset({"hf-cosine-warmup-with-min-lr", "olmo-core"})
"""Those whose last step is at the minimum; the rest, but for NO_END, stop a step short of it."""

NO_END = frozenset({"flashcard-1", "hf-inverse-sqrt"})
"""Those that are not laid out towards an end."""

OWN_MINIMUM = frozenset({"flashcard-1", "hf-cosine", "hf-inverse-sqrt", "hf-linear", "nanochat"})
"""Those that end where they end, whatever minimum is asked for."""

END_AT_HORIZON = frozenset({"book", "llm.c", "llm.c-wsd", "nanochat"})
"""Those that say nothing about a step past the horizon."""


def _joined(warmup: int, rise: Schedule, fall: Schedule) -> Schedule:
    return lambda step: rise(step) if step < warmup else fall(step)


def _falling(peak: float, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Give the cosine at (step - warmup)/(horizon - warmup), at the minimum past the horizon."""
    return lambda step: minimum if step >= horizon else cosine((step - warmup) / (horizon - warmup), peak, minimum)


def _titan(
    peak: float,
    minimum: float,
    warmup: int,
    horizon: int,
    decay_steps: int | None,
    curve: Callable[[float, float, float], float],
) -> Schedule:
    """Rise, stay, and decay over the last steps: at the peak once more where the decay begins."""
    falling = decay_steps or horizon - warmup
    start = horizon - falling

    def fall(step: int) -> float:
        if step >= horizon:
            return minimum
        return peak if step < start else curve((step - start) / falling, peak, minimum)

    return _joined(warmup, lambda step: peak * (step + 1) / warmup, fall)


def _waving(peak: float, minimum: float, warmup: int, horizon: int) -> Schedule:
    """Give the same cosine with nothing to stop it past the horizon."""
    return lambda step: cosine((step - warmup) / (horizon - warmup), peak, minimum)
