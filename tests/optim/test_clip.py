"""Clip and update, or leave everything alone: against torch's own clipping, for every kind of optimizer."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainwell.optim.clip import clip_and_update, folds, global_norm
from trainwell.optim.groups import parameter_groups
from trainwell.optim.together import Together

Parameters = list[nn.Parameter]
Make = Callable[[Parameters], Any]


def plain_adamw(parameters: Parameters) -> Any:
    return torch.optim.AdamW(parameter_groups(parameters, 0.1), lr=0.01, foreach=False, fused=False)


def foreach_adamw(parameters: Parameters) -> Any:
    return torch.optim.AdamW(parameter_groups(parameters, 0.1), lr=0.01, foreach=True)


def fused_adamw(parameters: Parameters) -> Any:
    return torch.optim.AdamW(parameter_groups(parameters, 0.1), lr=0.01, fused=True)


def sgd_with_momentum(parameters: Parameters) -> Any:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def muon_and_adamw(parameters: Parameters) -> Any:
    matrices = [parameter for parameter in parameters if parameter.dim() == 2]
    rest = [parameter for parameter in parameters if parameter.dim() != 2]
    return Together(torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=0.01, fused=True))


class Lion:
    """An optimizer of a user's own, with the four methods and nothing of torch's: the sign of a running mean."""

    def __init__(self, parameters: Parameters, lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr}]
        self.means: dict[int, Tensor] = {}
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        for place, weight in enumerate(self.param_groups[0]["params"]):
            if weight.grad is not None:
                mean = self.means.get(place, torch.zeros_like(weight))
                self.means[place] = mean + 0.1 * (weight.grad - mean)
                weight.data -= self.param_groups[0]["lr"] * self.means[place].sign()

    def zero_grad(self) -> None:
        for weight in self.param_groups[0]["params"]:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"means": dict(self.means), "steps": self.steps}


def ones_own(parameters: Parameters) -> Any:
    return Lion(parameters, lr=0.01)


PLAIN: list[Make] = [plain_adamw, foreach_adamw, sgd_with_momentum, muon_and_adamw, ones_own]
pytestmark = pytest.mark.usefixtures("one_thread")

EVERY: list[Make] = [*PLAIN, fused_adamw]
every_optimizer = pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
both_paths = pytest.mark.parametrize("make", [plain_adamw, fused_adamw], ids=lambda make: make.__name__)


def weights(dtype: torch.dtype = torch.float32) -> Parameters:
    generator = Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((4, 3), (5, 4), (7,), ())]


def set_gradients(parameters: Parameters, seed: int, size: float = 1.0) -> None:
    generator = Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def norm_of(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors))


def leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for key in state for leaf in leaves(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for member in state for leaf in leaves(member)]
    return [state]


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit, in everything that a state holds."""
    assert len(leaves(one)) == len(leaves(other))
    for mine, theirs in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


def assert_near(one: Sequence[Tensor], other: Sequence[Tensor], relative: float) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=relative, atol=relative)


def take(
    optimizer: Any, parameters: Parameters, loss: Tensor, max_norm: float | None, loss_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The update of a step as the trainer makes it, left out where not finite; the norm, and whether."""
    norm = global_norm(parameters, loss_scale)
    skip = ~(norm.isfinite() & loss.isfinite())
    clip_and_update(optimizer, parameters, norm, skip, max_norm, loss_scale)
    return norm, skip


ONE = torch.ones(())
LOSSES = {"finite": 1.0, "nan": math.nan, "inf": math.inf}
STEPS = st.lists(st.tuples(st.integers(0, 99), st.sampled_from([1e-3, 0.3, 1.0, 50.0])), min_size=1, max_size=4)
"""Seed and size of the gradients of each step."""


def run(make: Make, parameters: Parameters, steps: list[tuple[int, float]], max_norm: float | None) -> Any:
    optimizer = make(parameters)
    for seed, size in steps:
        set_gradients(parameters, seed, size)
        take(optimizer, parameters, ONE, max_norm)
    return optimizer


def run_torch(make: Make, parameters: Parameters, steps: list[tuple[int, float]], max_norm: float | None) -> Any:
    optimizer = make(parameters)
    for seed, size in steps:
        set_gradients(parameters, seed, size)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    return optimizer


@examples(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_norm_of_a_large_gradient_is_exact_where_the_update_is_fused(seed: int, size: float) -> None:
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((1500, 800), (800,))]
    gradients = [torch.randn(weight.shape, generator=Generator().manual_seed(seed)) * size for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    exact = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    assert float(global_norm(weights, fused=True)) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_large_gradient_that_is_not_finite_has_no_finite_norm(value: float) -> None:
    weight = nn.Parameter(torch.zeros(1500, 800))
    weight.grad = torch.zeros(1500, 800)
    weight.grad[7, 7] = value
    assert not global_norm([weight], fused=True).isfinite()


def test_only_fused_adamw_takes_the_factor_itself() -> None:
    assert [make for make in EVERY if folds(make(weights()))] == [fused_adamw]


@pytest.mark.parametrize(
    ("make", "dtype"),
    [*((make, torch.float32) for make in PLAIN), (fused_adamw, torch.float64), (fused_adamw, torch.bfloat16)],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else value.__name__,
)
@given(steps=STEPS, max_norm=st.sampled_from([0.01, 1.0, 7.5, None]))
@examples(max_examples=8)
def test_the_plain_path_is_torchs_clipping_and_step_bit_for_bit(
    make: Make, dtype: torch.dtype, steps: list[tuple[int, float]], max_norm: float | None
) -> None:
    ours, torchs = weights(dtype), weights(dtype)
    optimizer, expected = run(make, ours, steps, max_norm), run_torch(make, torchs, steps, max_norm)
    assert_same(ours, torchs)
    assert_same(gradients(ours), gradients(torchs))
    assert_same(optimizer.state_dict(), expected.state_dict())


@given(steps=STEPS, max_norm=st.sampled_from([0.01, 1.0, 7.5, None]))
@examples(max_examples=20)
def test_the_folded_path_is_torchs_clipping_and_step_to_rounding(
    steps: list[tuple[int, float]], max_norm: float | None
) -> None:
    ours, torchs, not_fused = weights(), weights(), weights()
    run(fused_adamw, ours, steps, max_norm)
    run_torch(fused_adamw, torchs, steps, max_norm)
    run_torch(plain_adamw, not_fused, steps, max_norm)
    for other in (torchs, not_fused):
        assert_near(ours, other, 2e-6)
        assert_near(gradients(ours), gradients(other), 2e-6)


@every_optimizer
@pytest.mark.parametrize("size", [0.001, 1.0, 100.0])
def test_the_norm_told_is_before_clipping_and_the_gradients_left_are_after(make: Make, size: float) -> None:
    parameters = weights()
    set_gradients(parameters, 3, size)
    before = norm_of(gradients(parameters))
    norm, skip = take(make(parameters), parameters, ONE, 1.0)
    assert float(norm) == pytest.approx(before, rel=1e-6)
    assert not skip
    assert norm_of(gradients(parameters)) == pytest.approx(before * min(1.0, 1.0 / (before + 1e-6)), rel=1e-6)


@every_optimizer
def test_gradients_below_the_limit_and_without_a_limit_are_not_touched(make: Make) -> None:
    for max_norm in (1e6, None):
        parameters = weights()
        set_gradients(parameters, 5)
        before = [gradient.clone() for gradient in gradients(parameters)]
        take(make(parameters), parameters, ONE, max_norm)
        assert_same(gradients(parameters), before)


@every_optimizer
def test_without_a_limit_the_largest_gradients_are_used_whole(make: Make) -> None:
    ours, torchs = weights(), weights()
    steps = [(1, 1e4), (2, 1e-4)]
    assert_same(run(make, ours, steps, None).state_dict(), run_torch(make, torchs, steps, None).state_dict())
    assert_same(ours, torchs)


@both_paths
def test_the_books_example_is_clipped_to_a_hair_under_one(make: Make) -> None:
    matrix = nn.Parameter(torch.zeros((2, 2)))
    example = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    matrix.grad = example.clone()
    norm, _ = take(make([matrix]), [matrix], ONE, 1.0)
    assert float(norm) == 5.0
    torch.testing.assert_close(matrix.grad, example * 0.19999996, rtol=1e-7, atol=0)
    assert 0.9999997 < norm_of([matrix.grad]) < 0.9999999


def test_plain_descent_moves_by_the_clipped_gradient() -> None:
    matrix = nn.Parameter(torch.zeros((2, 2)))
    matrix.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    take(torch.optim.SGD([matrix], lr=1.0), [matrix], ONE, 1.0)
    torch.testing.assert_close(matrix.detach(), torch.tensor([[1.0, 2.0], [2.0, 4.0]]) * -0.19999996)


def poison(parameters: Parameters, kind: str) -> Tensor:
    """Spoil one step: a gradient, the norm alone, or the loss alone; return the loss."""
    if kind.startswith("loss"):
        return torch.tensor(LOSSES[kind.removeprefix("loss ")])
    gradient = gradients(parameters)[1]
    if kind == "norm overflows":
        gradient.fill_(1e30)  # finite, but its square is not
    else:
        gradient[2, 1] = float(kind)
    return ONE


@every_optimizer
@pytest.mark.parametrize("kind", ["nan", "inf", "-inf", "norm overflows", "loss nan", "loss inf"])
@pytest.mark.parametrize("max_norm", [1.0, None])
def test_a_step_that_is_not_finite_leaves_weights_moments_and_counters_bit_for_bit(
    make: Make, kind: str, max_norm: float | None
) -> None:
    parameters = weights()
    optimizer = run(make, parameters, [(1, 1.0), (2, 1.0)], max_norm)
    before = copy.deepcopy((parameters, optimizer.state_dict()))
    set_gradients(parameters, 3)
    loss = poison(parameters, kind)
    norm, skip = take(optimizer, parameters, loss, max_norm)
    assert skip
    assert skip.dtype == torch.bool
    assert kind.startswith("loss") or not norm.isfinite()
    assert_same((parameters, optimizer.state_dict()), before)


@every_optimizer
def test_a_step_that_is_finite_is_left_out_too_when_asked_and_its_gradients_stay_as_they_are(make: Make) -> None:
    parameters = weights()
    optimizer = run(make, parameters, [(1, 1.0)], 1.0)
    before = copy.deepcopy((parameters, optimizer.state_dict()))
    set_gradients(parameters, 2, 50.0)
    kept = copy.deepcopy(gradients(parameters))
    clip_and_update(optimizer, parameters, global_norm(parameters), torch.tensor(True), 1.0)
    assert_same((parameters, optimizer.state_dict()), before)
    assert_same(gradients(parameters), kept)


def test_the_fused_optimizers_own_step_counts_do_not_move_in_a_skipped_step() -> None:
    parameters = weights()
    optimizer = run(fused_adamw, parameters, [(1, 1.0), (2, 1.0)], 1.0)
    set_gradients(parameters, 3)
    take(optimizer, parameters, poison(parameters, "nan"), 1.0)
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


@every_optimizer
@pytest.mark.parametrize("kind", ["nan", "loss nan"])
def test_training_goes_on_as_if_the_skipped_first_step_had_never_been(make: Make, kind: str) -> None:
    ours, without = weights(), weights()
    optimizer = make(ours)
    set_gradients(ours, 9)
    take(optimizer, ours, poison(ours, kind), 1.0)
    set_gradients(ours, 1)
    take(optimizer, ours, ONE, 1.0)
    expected = run(make, without, [(1, 1.0)], 1.0)
    assert_same(ours, without)
    assert_same(optimizer.state_dict(), expected.state_dict())


@every_optimizer
@pytest.mark.parametrize("max_norm", [1.0, None])
def test_scaled_gradients_give_the_same_step_as_unscaled_ones(make: Make, max_norm: float | None) -> None:
    ours, unscaled = weights(), weights()
    optimizer, scale = make(ours), torch.tensor(2.0**14)
    for seed in range(3):
        set_gradients(ours, seed)
        for gradient in gradients(ours):
            gradient.mul_(scale)
        take(optimizer, ours, ONE, max_norm, scale)
    assert float(scale) == 2.0**14
    expected = run(make, unscaled, [(seed, 1.0) for seed in range(3)], max_norm)
    assert_near(ours, unscaled, 2e-6)
    assert_near(gradients(ours), gradients(unscaled), 2e-6)
    if not folds(optimizer):  # a power of two rounds nothing
        assert_same(ours, unscaled)
        assert_same(optimizer.state_dict(), expected.state_dict())


@every_optimizer
def test_the_norm_told_is_that_of_the_unscaled_gradients(make: Make) -> None:
    parameters = weights()
    set_gradients(parameters, 4)
    expected = norm_of(gradients(parameters))
    for gradient in gradients(parameters):
        gradient.mul_(1024)
    norm, _ = take(make(parameters), parameters, ONE, 0.5, torch.tensor(1024.0))
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    assert norm_of(gradients(parameters)) == pytest.approx(0.5, rel=1e-5)


@every_optimizer
def test_a_scaled_gradient_that_overflowed_is_skipped_too(make: Make) -> None:
    parameters = weights()
    optimizer = run(make, parameters, [(1, 1.0)], 1.0)
    before = copy.deepcopy((parameters, optimizer.state_dict()))
    set_gradients(parameters, 2)
    poison(parameters, "inf")
    _, skip = take(optimizer, parameters, ONE, 1.0, torch.tensor(2.0**16))
    assert skip
    assert_same((parameters, optimizer.state_dict()), before)


def test_the_fused_optimizer_is_left_as_it_was_found() -> None:
    ours, torchs = weights(), weights()
    optimizer = run(fused_adamw, ours, [(1, 50.0)], 1.0)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    run_torch(fused_adamw, torchs, [(1, 50.0)], 1.0)
    assert_near(ours, torchs, 2e-6)


class Reads(TorchDispatchMode):
    """Notes every operation that waits for the device: the one behind item(), float() and if."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}:
            self.waits.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("make", "kind", "waits"), [(fused_adamw, "1.0", 0), (fused_adamw, "nan", 0), (ones_own, "nan", 1)]
)
def test_the_fused_optimizer_is_never_waited_for_and_any_other_once(make: Make, kind: str, waits: int) -> None:
    parameters = weights()
    optimizer = run(make, parameters, [(1, 1.0)], 1.0)
    set_gradients(parameters, 2)
    poison(parameters, kind)
    with Reads() as reads:
        take(optimizer, parameters, ONE, 1.0)
    assert len(reads.waits) == waits


class Breaks(torch.optim.AdamW):
    """A fused AdamW whose update fails, as one out of memory does."""

    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("out of memory")


def test_an_update_that_fails_takes_the_factor_away_again() -> None:
    parameters = weights()
    optimizer = Breaks(parameters, fused=True)
    set_gradients(parameters, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        take(optimizer, parameters, ONE, 1.0)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


@every_optimizer
def test_parameters_without_a_gradient_are_left_alone(make: Make) -> None:
    parameters, start = weights(), weights()
    set_gradients(parameters, 1)
    parameters[0].grad = None
    before = norm_of(gradients(parameters))
    norm, skip = take(make(parameters), parameters, ONE, 1.0)
    assert float(norm) == pytest.approx(before, rel=1e-6)
    assert not skip
    assert torch.equal(parameters[0], start[0])
    assert not torch.equal(parameters[1], start[1])


@every_optimizer
def test_without_any_gradient_the_norm_is_zero_and_nothing_moves(make: Make) -> None:
    parameters = weights()
    norm, skip = take(make(parameters), parameters, ONE, 1.0)
    assert float(norm) == 0.0
    assert not skip
    assert_same(parameters, weights())
