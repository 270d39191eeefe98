"""How fast a plan would be on devices that many know, from their peak and an assumed use of it.

Knows a plan and the figures of the makers' data sheets; measures nothing. What a run really did is in its metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainwell.planning.memory import precision_of
from trainwell.planning.model_size import count_parameters, flops_per_token, num_classes
from trainwell.planning.resolve import Plan
from trainwell.runs.console import short_count, short_time
from trainwell.runs.throughput import peak_flops

UTILISATION = 0.4
"""Share of the peak that is assumed: dense models of 100 million parameters and more mostly get 30 to 50 %."""
_DEVICES = ("H100", "A100")
SMALLEST = 10_000_000
"""Parameters below which no speed is given: a GPU then waits for its next kernel, whatever its peak is."""


@dataclass(frozen=True)
class Timed:
    """What a few real steps of a model took on one device; `calibration` takes them."""

    device: str
    """The chip's own name, and its threads where it is a CPU."""
    steps: int
    """So many were taken; the medians count."""
    micro_batch: int
    """Sequences of each."""
    passes: float
    """Seconds forward and backward."""
    update: float
    """Seconds to clip, and of the optimizer with all weights."""


@dataclass(frozen=True)
class Speed:
    """An estimate for one device."""

    device: str
    tokens_per_second: float
    seconds: float
    """Of all steps of the run; evaluations, samples and checkpoints come on top."""


def speeds(plan: Plan) -> list[Speed]:
    """Tokens a second and the length of the run on one device each: UTILISATION x peak FLOP/s / FLOPs of a token.

    The peak is the dense one of the precision, bf16 for auto. There is none for a model that is too small to keep a GPU
    busy, and where the vocabulary is not known.
    """
    if plan.vocab_size is None:
        return []
    shape, num_labels = (plan.config.model, plan.vocab_size, plan.seq_len), num_classes(plan.config)
    if count_parameters(*shape, num_labels=num_labels).total < SMALLEST:
        return []
    cost, tokens = flops_per_token(*shape, num_labels=num_labels), plan.batch.tokens_before(plan.num_steps)
    found = []
    for device in _DEVICES:
        peak = peak_flops(device, precision_of(plan.config))
        if peak is not None:
            rate = UTILISATION * peak / cost
            found.append(Speed(device, rate, tokens / rate))
    return found


def speed_line(found: Sequence[Speed]) -> str | None:
    """Write estimates in a line: tokens a second of each device, what they assume, the time of the run."""
    if not found:
        return None
    rates = [f"{short_count(float(f'{speed.tokens_per_second:.2g}'))} on an {speed.device}" for speed in found]
    rates[0] = rates[0].replace(" on ", " tokens a second on ")
    times = " and ".join(short_time(speed.seconds) for speed in found)
    return f"about {', '.join(rates)} at {100 * UTILISATION:.0f} % of the peak: {times} for this run"
