"""What a twin did: loss, norm and a digest of every tensor of each step; and where two twins first differ.

Knows runs and states, and no promise.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from trainwell.fit import steps
from trainwell.prove.twins import Twins
from trainwell.prove.verdict import Outcome
from trainwell.run import Run

_ULP = 2.0**-23
"""A last bit of float32: two twins may agree in it by luck, and no third can be asked to."""
HEADROOM = 3.0
"""One pair of identical twins shows the size of the noise, not its largest value: so many times that is still noise."""


@dataclass(frozen=True)
class Seen:
    """One step: its loss and norm, and what the state after it looks like, by name."""

    loss: float
    grad_norm: float
    skipped: bool
    values: Mapping[str, str]
    """A digest of each tensor, and each plain value as text."""


@dataclass
class Trace:
    """The steps of a twin, and its weights after the last of them."""

    steps: dict[int, Seen] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """The first step and the first name in which two twins are not the same."""

    step: int
    name: str


@dataclass(frozen=True)
class Yardstick:
    """How far two identical twins are apart: relative difference of losses, relative distance of weights."""

    loss: float
    weights: float

    def words(self) -> str:
        """The level of a proof that is measured with it."""
        return (
            f"statistical: at most {HEADROOM:g} x what two identical twins differ by "
            f"(loss {self.loss:.1e}, weights {self.weights:.1e})"
        )


def follow(run: Run, until: int, trace: Trace | None = None) -> Trace:
    """Train to state `until` and leave the loop there, before that last step is recorded or saved.

    A `trace` given is continued: what is seen again replaces what was seen.
    """
    trace = Trace() if trace is None else trace
    names = names_of_parameters(run)
    for result in steps(run):
        trace.steps[result.step] = Seen(
            float(result.loss),
            float(result.grad_norm),
            bool(result.skipped),
            dict(values_of(run.trainer.state_dict(), names)),
        )
        if result.step + 1 >= until:
            break
    trace.weights = {name: tensor.detach().cpu().clone() for name, tensor in run.model.state_dict().items()}
    return trace


def names_of_parameters(run: Run) -> list[str]:
    """The names of the tensors that learn, in the optimizer's order."""
    known = {id(tensor): name for name, tensor in run.model.named_parameters()}
    return [known.get(id(tensor), f"parameter {place}") for place, tensor in enumerate(run.trainer.parameters)]


def values_of(state: Any, parameters: list[str], path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a state by its path: a tensor as a digest of type, shape and bytes, anything else as text.

    The moments of one optimizer are named by the `parameters` they belong to.
    """
    if isinstance(state, Tensor):
        yield path, _digest(state)
    elif isinstance(state, Mapping):
        for key, item in state.items():
            place = parameters[key] if path == "optimizer.state" and _is_place(key, parameters) else key
            yield from values_of(item, parameters, f"{path}.{place}" if path else str(place))
    elif isinstance(state, list | tuple):
        for number, item in enumerate(state):
            yield from values_of(item, parameters, f"{path}.{number}")
    else:
        yield path, repr(state)


def _is_place(key: object, parameters: list[str]) -> bool:
    return isinstance(key, int) and 0 <= key < len(parameters)


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    about = f"{tensor.dtype} {list(tensor.shape)} "
    return about + blake2b(plain.numpy().data, digest_size=12).hexdigest()


def first_difference(a: Trace, b: Trace) -> Difference | None:
    """The first step whose loss, norm or state differs in a bit, and the name of what does; weights come first."""
    for step in sorted(a.steps.keys() | b.steps.keys()):
        here, there = a.steps.get(step), b.steps.get(step)
        if here is None or there is None:
            return Difference(step, "the step itself, which one of them did not take")
        if here.loss.hex() != there.loss.hex():
            return Difference(step, "loss")
        if here.grad_norm.hex() != there.grad_norm.hex():
            return Difference(step, "gradient norm")
        name = first_change(here.values, there.values)
        if name is not None:
            return Difference(step, name)
    return None


def first_change(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    """The first name whose value is not the same in both, weights before the rest."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return min(names, key=lambda name: not name.startswith("model."), default=None)


def relative(a: float, b: float) -> float:
    """|a - b| by the larger of both; NaN equals NaN, and nothing else."""
    if (math.isnan(a) and math.isnan(b)) or a == b:
        return 0.0
    apart = abs(a - b) / max(abs(a), abs(b))
    return math.inf if math.isnan(apart) else apart


def distance(a: Trace, b: Trace) -> Yardstick:
    """How far two twins are apart."""
    losses = max((relative(a.steps[step].loss, b.steps[step].loss) for step in a.steps if step in b.steps), default=0.0)
    apart = whole = 0.0
    for name, tensor in a.weights.items():
        if tensor.is_floating_point():
            apart += float((tensor.double() - b.weights[name].double()).square().sum())
            whole += float(tensor.double().square().sum())
    return Yardstick(losses, math.sqrt(apart / whole) if whole else 0.0)


def measured(twins: Twins, until: int) -> Yardstick | None:
    """What two identical twins differ by, where the device is not deterministic; None where it is bitwise."""
    if twins.settings.deterministic:
        return None
    pair = []
    for name in ("one", "other"):
        with twins.run(f"yardstick-{name}") as run:
            pair.append(follow(run, until))
    return distance(*pair)


def same(a: Trace, b: Trace, yardstick: Yardstick | None, detail: str) -> Outcome:
    """Whether two twins are the same: to the bit, or as nearly as two identical ones are."""
    found = first_difference(a, b)
    if yardstick is None or found is None:
        return _outcome(found is None, "bitwise", detail, found)
    apart = distance(a, b)
    near = apart.loss <= HEADROOM * max(yardstick.loss, _ULP) and apart.weights <= HEADROOM * max(
        yardstick.weights, _ULP
    )
    detail = f"{detail}; here loss {apart.loss:.1e}, weights {apart.weights:.1e}"
    return _outcome(near and a.steps.keys() == b.steps.keys(), yardstick.words(), detail, None if near else found)


def _outcome(passed: bool, level: str, detail: str, found: Difference | None) -> Outcome:
    if found is None:
        return Outcome(passed, level, detail)
    return Outcome(passed, level, detail, found.step, found.name)
