"""The guard against its rule in plain Python, and the loss scale against torch's scaler."""

import copy
import math
import random
from collections.abc import Iterable, Sequence
from statistics import median_low
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainwell.errors import DivergedError
from trainwell.optim.guard import EARLY, FLOORS, IN_A_ROW, Guard, LossScale, loss_bound, why_spike

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
KINDS = st.lists(st.sampled_from(["good", "broken", "spike"]), max_size=30)
Step = tuple[float, float]


def flag(value: bool) -> Tensor:
    return torch.tensor(value)


def count(guard: Guard, kinds: Iterable[str]) -> None:
    for kind in kinds:
        guard.count(flag(kind == "broken"), flag(kind == "spike"))


def tail(kinds: Sequence[str], kind: str) -> int:
    """How many of a kind there are at the end, without a break."""
    return next((place for place, each in enumerate(reversed(kinds)) if each != kind), len(kinds))


def counts(guard: Guard) -> dict[str, int]:
    return {name: value for name, value in guard.state_dict().items() if isinstance(value, int)}


@given(KINDS, st.sampled_from(["log", "skip", "stop"]))
def test_the_guard_counts_skips_and_spikes_apart(kinds: list[str], policy: Literal["log", "skip", "stop"]) -> None:
    guard = Guard(CPU, policy=policy)
    count(guard, kinds)
    broken, spikes = kinds.count("broken"), kinds.count("spike")
    left_out = sum(kind == "spike" and tail(kinds[:place], "spike") < 5 for place, kind in enumerate(kinds))
    assert counts(guard) == {
        "skipped": broken + (left_out if policy == "skip" else 0),
        "in_a_row": tail(kinds, "broken"),
        "spikes": spikes,
        "spikes_in_a_row": tail(kinds, "spike"),
    }


@given(KINDS)
def test_the_guard_raises_exactly_when_five_steps_in_a_row_were_not_finite(kinds: list[str]) -> None:
    guard = Guard(CPU, policy="skip")
    for step, kind in enumerate(kinds):
        count(guard, [kind])
        if tail(kinds[: step + 1], "broken") < 5:
            guard.check(step)
        else:
            with pytest.raises(DivergedError):
                guard.check(step)


def test_divergence_says_where_it_is_and_what_to_change() -> None:
    guard = Guard(CPU)
    count(guard, ["broken"] * IN_A_ROW)
    with pytest.raises(DivergedError, match=r"^5 steps in a row up to step 41 .* Lower optim\.lr, lengthen") as raised:
        guard.check(41)
    assert raised.value.exit_code == 70


def test_divergence_names_each_reason_once_where_it_was_asked_for_and_forgets_those_of_accidents() -> None:
    guard = Guard(CPU)
    count(guard, ["broken"])
    guard.reasons.append("loss is inf")
    count(guard, ["good"])
    guard.check(1)
    for why in ("loss is nan", "gradient of wte is inf", "loss is nan", "loss is nan", "loss is nan"):
        count(guard, ["broken"])
        guard.reasons.append(why)
    with pytest.raises(DivergedError, match=r"not finite \(loss is nan; gradient of wte is inf\); no update"):
        guard.check(6)


def feed(guard: Guard, steps: Iterable[Step]) -> list[bool]:
    """Judge and count each step; which of them were spikes."""
    spikes = []
    for loss, norm in steps:
        broken, spike, _ = guard.judge(torch.tensor(loss), torch.tensor(norm))
        guard.count(broken, spike)
        spikes.append(bool(spike))
    return spikes


def in_plain_python(steps: Iterable[Step], k: float, length: int, bound: float) -> list[bool]:
    """The rule of the guard's docstring, in lists."""
    windows: tuple[list[float], list[float]] = ([], [])
    spikes: list[bool] = []
    for step in steps:
        if not all(map(math.isfinite, step)):
            spikes.append(False)
            continue
        limits = [math.inf, math.inf]
        for place, window in enumerate(windows):
            if window:
                middle = median_low(window)
                mad = median_low(abs(value - middle) for value in window)
                old = middle + k * max(1.4826 * mad, FLOORS[place] * abs(middle))
                young = max((bound, 0.0)[place], EARLY[place] * middle)
                limits[place] = young if len(window) < max(length // 4, 8) else old
        settled = tail(["spike" if spike else "" for spike in spikes], "spike") >= 5
        spikes.append(any(value > limit for value, limit in zip(step, limits, strict=True)))
        for value, limit, window in zip(step, limits, windows, strict=True):
            window.append(value if settled else min(value, limit))
            del window[:-length]
    return spikes


VALUES = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.125, 1.25, 2.0, 3.0, 16.0, 1024.0, math.nan, math.inf])
"""Multiples of small powers of two, so that float32 and float64 agree on every threshold that is not a tie."""


@given(st.lists(st.tuples(VALUES, VALUES), max_size=70), st.sampled_from([8, 9, 16]), st.sampled_from([3.0, 10.0]))
@examples(max_examples=60)
def test_spikes_are_those_of_the_rule_in_plain_python(steps: list[Step], length: int, k: float) -> None:
    guard = Guard(CPU, k=k, window=length, loss_bound=1.5)
    assert feed(guard, steps) == in_plain_python(steps, k, length, 1.5)


def noisy(steps: int, loss: float = 3.0, norm: float = 1.0, seed: int = 0) -> list[Step]:
    dice = random.Random(seed)
    return [(loss + dice.gauss(0, 0.03), norm * math.exp(dice.gauss(0, 0.15))) for _ in range(steps)]


@pytest.mark.parametrize("step", [(5.0, 1.0), (3.0, 8.0)], ids=["loss", "norm"])
def test_one_leap_of_either_is_a_spike_and_hides_neither_the_next_nor_ordinary_steps(step: Step) -> None:
    spikes = feed(Guard(CPU), [*noisy(150), step, *noisy(5, seed=1), step, step, *noisy(50, seed=2)])
    assert [place for place, spike in enumerate(spikes) if spike] == [150, 156, 157]


@pytest.mark.parametrize("step", [(3.2, 1.0), (3.0, 1.9), (0.1, 0.01)], ids=["loss", "norm", "below"])
def test_after_a_constant_past_a_wiggle_is_no_spike_and_neither_is_a_leap_downwards(step: Step) -> None:
    assert feed(Guard(CPU), [*[(3.0, 1.0)] * 200, step]) == [False] * 201


def test_a_loss_that_falls_through_warmup_and_a_norm_that_grows_and_drifts_are_no_spikes() -> None:
    dice = random.Random(3)
    steps = [
        (
            2.0 + 8.8 * math.exp(-step / 80) + dice.gauss(0, 0.04),
            (0.4 + 2.0 * math.exp(-step / 30) + step / 1000) * math.exp(dice.gauss(0, 0.2)),
        )
        for step in range(1500)
    ]
    assert not any(feed(Guard(CPU, loss_bound=loss_bound(50257)), steps))


def test_the_first_value_is_taken_as_it_comes_whatever_it_is() -> None:
    assert feed(Guard(CPU, loss_bound=8.0), [(300.0, 1e6), (290.0, 1e6)]) == [False, False]


@pytest.mark.parametrize(("step", "spike"), [((8.1, 1.0), True), ((7.9, 9.9), False), ((3.0, 10.1), True)])
def test_from_the_second_step_on_there_are_bounds(step: Step, spike: bool) -> None:
    assert feed(Guard(CPU, loss_bound=8.0), [(3.0, 1.0), step]) == [False, spike]


def test_without_a_bound_no_loss_is_judged_while_the_window_is_young() -> None:
    assert feed(Guard(CPU), [(0.5, 1.0), (40.0, 1.0)]) == [False, False]
    assert loss_bound(None) is None
    assert loss_bound(50257) == pytest.approx(16.24, abs=0.01)


@given(st.sampled_from([0.0, 1e-3, 0.01]), st.sampled_from([1.5, 3.0, 1e3, 1e9]), st.sampled_from([8, 32, 64]))
@examples(max_examples=12)
def test_a_level_that_stays_costs_five_updates_and_is_accepted_within_one_window_more_however_far_away(
    noise: float, times: float, length: int
) -> None:
    dice = random.Random(5)
    guard = Guard(CPU, policy="skip", window=length)

    def at(level: float) -> list[Step]:
        return [(level * (1 + noise * dice.random()), 1.0) for _ in range(2 * length)]

    feed(guard, at(2.0))
    spikes = feed(guard, at(2.0 * times))
    assert spikes[0]
    assert not any(spikes[length + IN_A_ROW :])
    assert int(guard.skipped) == IN_A_ROW


def test_what_is_not_finite_neither_enters_nor_is_a_spike() -> None:
    guard = Guard(CPU)
    feed(guard, noisy(100))
    before = guard.window.clone()
    for step in ((math.nan, 1.0), (3.0, math.inf), (math.inf, math.nan), (-math.inf, math.inf)):
        broken, spike, _ = guard.judge(*map(torch.tensor, step))
        assert broken
        assert not spike
    assert torch.equal(guard.window, before)
    assert guard.window.isfinite().sum() == 200


@pytest.mark.parametrize("policy", ["log", "skip", "stop"])
def test_only_the_policy_skip_leaves_spikes_out_and_every_policy_what_is_not_finite(policy: Any) -> None:
    guard = Guard(CPU, policy=policy)
    assert bool(guard.leaves_out(flag(False), flag(True))) == (policy == "skip")
    assert guard.leaves_out(flag(True), flag(False))
    assert not guard.leaves_out(flag(False), flag(False))


def test_a_spike_in_words_names_what_leapt_and_above_what() -> None:
    limits = torch.tensor([3.5, 2.0])
    assert why_spike(torch.tensor(5.0), torch.tensor(1.0), limits) == "loss 5 is above 3.5"
    assert (
        why_spike(torch.tensor(5.0), torch.tensor(40.0), limits) == "loss 5 is above 3.5, gradient norm 40 is above 2"
    )


@given(st.integers(0, 60), st.integers(0, 60))
@examples(max_examples=20)
def test_a_restored_guard_judges_and_counts_on_bit_for_bit(before: int, after: int) -> None:
    steps = [*noisy(20), (9.0, 1.0), (math.nan, 1.0), *noisy(20, seed=4), *[(9.0, 9.0)] * 20, *noisy(60, seed=5)]
    one, other = (Guard(CPU, policy="skip", window=16) for _ in range(2))
    feed(one, steps[:before])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert feed(one, steps[before : before + after]) == feed(other, steps[before : before + after])
    assert counts(one) == counts(other)
    assert torch.equal(one.window, other.window)


def test_a_state_of_counts_alone_still_loads_and_begins_an_empty_window() -> None:
    guard = Guard(CPU, window=8)
    feed(guard, noisy(20))
    guard.load_state_dict({"skipped": 3, "in_a_row": 2})
    assert counts(guard) == {"skipped": 3, "in_a_row": 2, "spikes": 0, "spikes_in_a_row": 0}
    assert not guard.window.isfinite().any()
    assert feed(guard, [(300.0, 1.0)]) == [False]


@pytest.mark.parametrize("length", [8, 32])
def test_a_window_of_another_length_is_restored_with_its_newest_values(length: int) -> None:
    guard, other = Guard(CPU, window=16), Guard(CPU, window=length)
    feed(guard, noisy(40))
    other.load_state_dict(guard.state_dict())
    kept = min(16, length)
    assert torch.equal(other.window[:, -kept:], guard.window[:, -kept:])
    assert other.window.isfinite().sum() == 2 * kept


class Reads(TorchDispatchMode):
    """Refuses every operation that waits for the device: the one behind item(), float() and if."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["log", "skip"])
def test_judging_and_counting_never_wait_for_the_device(policy: Any) -> None:
    guard = Guard(CPU, policy=policy, loss_bound=8.0)
    steps = [(torch.tensor(loss), torch.tensor(norm)) for loss, norm in (*noisy(40), (9.0, 9.0), (math.nan, 1.0))]
    with Reads():  # type: ignore[no-untyped-call]
        for loss, norm in steps:
            broken, spike, _ = guard.judge(loss, norm)
            guard.leaves_out(broken, spike)
            guard.count(broken, spike)
    assert counts(guard)["spikes"] == 1


GOOD, OVERFLOW, NAN = (False, 1.0), (True, 1.0), (True, float("nan"))
"""Steps as (skipped, loss): a skip with a finite loss is an overflow of the gradients alone."""
STEPS = st.lists(st.sampled_from([GOOD, OVERFLOW, NAN]), max_size=40)


def take(scale: LossScale, step: tuple[bool, float]) -> bool:
    return bool(scale.adjust(flag(step[0]), torch.tensor(step[1])))


def test_an_overflow_halves_the_scale_and_is_no_skip_for_the_guard() -> None:
    scale = LossScale(CPU, initial=8.0)
    assert not take(scale, OVERFLOW)
    assert float(scale.value) == 4.0
    assert int(scale.overflows) == 1


def test_a_loss_that_is_not_finite_is_a_skip_and_leaves_the_scale() -> None:
    scale = LossScale(CPU, initial=8.0)
    assert take(scale, NAN)
    assert float(scale.value) == 8.0
    assert int(scale.overflows) == 0


def test_at_a_scale_of_one_there_is_nothing_left_to_lower_so_an_overflow_is_a_skip() -> None:
    scale = LossScale(CPU, initial=2.0)
    assert not take(scale, OVERFLOW)
    assert float(scale.value) == 1.0
    assert take(scale, OVERFLOW)
    assert float(scale.value) == 1.0
    assert int(scale.overflows) == 1


def test_the_scale_doubles_after_so_many_good_steps_in_a_row() -> None:
    scale = LossScale(CPU, initial=8.0, patience=3)
    seen = []
    for step in (GOOD, GOOD, NAN, GOOD, GOOD, GOOD, GOOD, GOOD, OVERFLOW, GOOD, GOOD, GOOD):
        take(scale, step)
        seen.append(float(scale.value))
    assert seen == [8, 8, 8, 8, 8, 16, 16, 16, 8, 8, 8, 16]


@given(STEPS, st.integers(1, 4), st.integers(0, 6))
def test_every_skip_is_either_an_overflow_or_told_to_the_guard(
    steps: list[tuple[bool, float]], patience: int, exponent: int
) -> None:
    scale = LossScale(CPU, initial=2.0**exponent, patience=patience)
    told = sum(take(scale, step) for step in steps)
    assert told + int(scale.overflows) == sum(step[0] for step in steps)
    assert float(scale.value) >= 1
    assert float(scale.value).hex().startswith("0x1.0000000000000p")  # scaling by powers of two rounds nothing


@given(st.lists(st.sampled_from([GOOD, OVERFLOW]), max_size=12), st.integers(1, 4))
@examples(max_examples=30)
def test_the_scale_moves_as_torchs_own_does(steps: list[tuple[bool, float]], patience: int) -> None:
    ours = LossScale(CPU, patience=patience)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight])
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=patience)
    for step in steps:
        take(ours, step)
        torchs.scale(weight.sum()).backward()
        weight.grad = torch.full((1,), float("inf") if step[0] else 1.0)
        torchs.step(optimizer)
        torchs.update()
        assert float(ours.value) == torchs.get_scale()


@given(STEPS, STEPS)
def test_a_restored_scale_moves_on(before: list[tuple[bool, float]], after: list[tuple[bool, float]]) -> None:
    one, other = LossScale(CPU, patience=3), LossScale(CPU, patience=3)
    for step in before:
        take(one, step)
    other.load_state_dict(one.state_dict())
    for step in after:
        assert take(one, step) == take(other, step)
    assert other.state_dict() == one.state_dict()


def test_five_in_a_row_are_found_though_nobody_looked_until_they_were_over() -> None:
    guard = Guard(CPU)
    for broken in [True] * IN_A_ROW + [False, False]:
        guard.count(torch.tensor(broken), torch.tensor(False))
    with pytest.raises(DivergedError, match="5 steps in a row"):
        guard.check(7)
