"""The step, against a loop as anyone would write it, and the promises that make a step an address."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from trainwell.data.batches import Batch, BatchSource, MicroBatch, cut
from trainwell.data.examples import IGNORED
from trainwell.errors import DivergedError
from trainwell.evaluate import evaluate
from trainwell.faults import at
from trainwell.generate import generate
from trainwell.gradients import gradient_report
from trainwell.model.gpt2 import GPT2
from trainwell.model.loss import token_loss
from trainwell.optim.groups import hidden_matrices, parameter_groups
from trainwell.optim.guard import Guard
from trainwell.optim.together import Together
from trainwell.trainer import Trainer

Make = Callable[..., GPT2]
Optimizer = Callable[[nn.Module], Any]
Rows = tuple[Tensor, Tensor]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_adamw(model: nn.Module, lr: float = 1.0) -> Any:
    groups = parameter_groups(model.parameters(), 0.1)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), foreach=False, fused=False)


def fused_adamw(model: nn.Module, lr: float = 1.0) -> Any:
    return torch.optim.AdamW(parameter_groups(model.parameters(), 0.1), lr=lr, betas=(0.9, 0.95), fused=True)


def muon_and_adamw(model: nn.Module) -> Any:
    matrices = hidden_matrices(model, 19)
    rest = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    return Together(torch.optim.Muon(matrices), torch.optim.AdamW(rest, fused=True))


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def warmed_up(step: int) -> float:
    """Three steps of warmup, then a cosine."""
    return 0.01 * (step + 1) / 3 if step < 3 else 0.005 * (1 + math.cos(math.pi * (step - 3) / 10))


def drawn(steps: int, rows: int = 6, length: int = 8, share_ignored: float = 0.0, seed: int = 0) -> list[Rows]:
    generator = Generator().manual_seed(seed)
    data = []
    for _ in range(steps):
        ids = torch.randint(19, (rows, length + 1), generator=generator)
        targets = ids[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=generator) < share_ignored] = IGNORED
        data.append((ids[:, :-1], targets))
    return data


every_optimizer = pytest.mark.parametrize(
    "optimizer", [plain_adamw, fused_adamw, muon_and_adamw, sgd], ids=lambda make: make.__name__
)


def batches(data: Sequence[Rows], micro_batch: int) -> BatchSource:
    def source(step: int) -> Batch:
        inputs, targets = data[step]
        return Batch(cut(inputs, targets, micro_batch, CPU), inputs.numel(), 0.0)

    return source


def trainer_of(
    model: nn.Module,
    data: Sequence[Rows],
    micro_batch: int = 6,
    optimizer: Optimizer = plain_adamw,
    schedules: Mapping[str, Callable[[int], float]] | None = None,
    **options: Any,
) -> Trainer:
    schedules = {"lr": warmed_up} if schedules is None else schedules
    return Trainer(model.train(), optimizer(model), batches(data, micro_batch), schedules=schedules, **options)


def gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for key in state for leaf in leaves(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for member in state for leaf in leaves(member)]
    return [state]


def same(one: Any, other: Any) -> bool:
    """Bit for bit, in everything that a state holds."""
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs for mine, theirs in pairs)


def assert_near(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def plain_loop(
    model: nn.Module, data: Sequence[Rows], micro_batch: int, optimizer: Any, max_norm: float | None = 1.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Anyone's training loop: torch's optimizer, torch's schedule, torch's clipping; the loss and norm of each step."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmed_up)  # times the optimizer's rate, which is 1
    for inputs, targets in data:
        optimizer.zero_grad()
        count = (targets != -100).sum()
        total = torch.zeros(())
        for x, y in zip(inputs.split(micro_batch), targets.split(micro_batch), strict=True):
            logits = model(x)
            loss = cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum") / count
            loss.backward()
            total = total + loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if max_norm is None else max_norm)
        optimizer.step()
        scheduler.step()
        yield total, norm


class Ordered(nn.Module):
    """A model whose `parameters()` come as in the groups: the norm is added up in that order, and rounds by it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.first = nn.ParameterList(sorted(model.parameters(), key=lambda weight: weight.dim() < 2))
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("micro_batch", "share_ignored", "max_norm"),
    [(6, 0.0, 1.0), (2, 0.0, 0.3), (2, 0.4, 1.0), (3, 0.4, None)],
)
def test_six_steps_are_those_of_a_plain_loop_bit_for_bit(
    gpt2_of: Make, micro_batch: int, share_ignored: float, max_norm: float | None
) -> None:
    data = drawn(6, share_ignored=share_ignored)
    ours, plain = Ordered(gpt2_of()), Ordered(gpt2_of())
    trainer = trainer_of(ours, data, micro_batch, max_grad_norm=max_norm)
    expected = list(plain_loop(plain, data, micro_batch, plain_adamw(plain), max_norm))
    results = list(trainer.steps(until=6))
    assert [(result.loss.item(), result.grad_norm.item()) for result in results] == [
        (loss.item(), norm.item()) for loss, norm in expected
    ]
    assert same(ours.state_dict(), plain.state_dict())


def test_six_steps_of_the_fused_optimizer_are_those_of_a_plain_loop_to_rounding(gpt2_of: Make) -> None:
    data = drawn(6)
    ours, plain = (gpt2_of(qkv_bias=False) for _ in range(2))  # softmax ignores a bias of keys: its gradient is noise
    trainer = trainer_of(ours, data, 2, fused_adamw)
    expected = list(plain_loop(plain, data, 2, plain_adamw(plain)))
    for result, (loss, norm) in zip(trainer.steps(until=6), expected, strict=True):
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    assert_near(list(ours.parameters()), list(plain.parameters()), 1e-4)


def test_the_mean_over_a_full_batch_is_torchs_mean(gpt2_of: Make) -> None:
    (rows,) = data = drawn(1, share_ignored=0.3)
    ours, torchs = gpt2_of(dtype=torch.float64), gpt2_of(dtype=torch.float64)
    loss = trainer_of(ours, data, 2).backward()
    expected = cross_entropy(torchs(rows[0]).flatten(0, 1), rows[1].flatten())
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert_near(gradients(ours), gradients(torchs), 1e-12)


@given(
    micro_batch=st.integers(1, 7),
    share_ignored=st.sampled_from([0.0, 0.5, 0.95]),
    empty_rows=st.integers(0, 6),
    seed=st.integers(0, 999),
)
@examples(max_examples=15)
def test_micro_batches_are_one_batch_whatever_is_masked(
    gpt2_of: Make, micro_batch: int, share_ignored: float, empty_rows: int, seed: int
) -> None:
    data = drawn(2, share_ignored=share_ignored, seed=seed)
    for _, targets in data:
        targets[:empty_rows] = IGNORED  # whole micro-batches without a target
    whole, parts = gpt2_of(dtype=torch.float64), gpt2_of(dtype=torch.float64)
    at_once, in_parts = trainer_of(whole, data, 6, sgd), trainer_of(parts, data, micro_batch, sgd)
    for one, other in zip(at_once.steps(until=2), in_parts.steps(until=2), strict=True):
        assert one.targets.item() == other.targets.item() == (data[one.step][1] != IGNORED).sum().item()
        assert_near([one.loss, one.grad_norm], [other.loss, other.grad_norm], 1e-12)
        assert_near(gradients(whole), gradients(parts), 1e-12)
    assert_near(list(whole.parameters()), list(parts.parameters()), 1e-12)


def test_a_batch_without_any_target_costs_nothing_and_is_not_skipped(gpt2_of: Make) -> None:
    inputs, targets = drawn(1)[0]
    model = gpt2_of()
    result = trainer_of(model, [(inputs, torch.full_like(targets, IGNORED))], 2, sgd).take_step()
    assert (result.loss.item(), result.grad_norm.item(), result.targets.item()) == (0.0, 0.0, 0)
    assert not result.skipped
    assert same(model.state_dict(), gpt2_of().state_dict())


def test_steps_are_counted_from_zero_and_taken_with_the_rate_that_is_told(gpt2_of: Make) -> None:
    model = gpt2_of(dtype=torch.float64)
    trainer = trainer_of(model, drawn(5), 3, sgd, max_grad_norm=None)
    seen = []
    before = [weight.detach().clone() for weight in model.parameters()]
    for result in trainer.steps(until=5):
        seen.append((result.step, result.lr))
        moved = [old - result.lr * grad for old, grad in zip(before, gradients(model), strict=True)]
        assert_near(moved, [weight.detach() for weight in model.parameters()], 1e-12)
        before = [weight.detach().clone() for weight in model.parameters()]
    assert seen == [(step, warmed_up(step)) for step in range(5)]


def test_steps_go_on_from_where_they_are_and_stop_where_asked(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(6))
    assert [result.step for result in trainer.steps(until=2)] == [0, 1]
    assert [result.step for result in trainer.steps(until=2)] == []
    assert trainer.take_step().step == 2
    assert [result.step for result in trainer.steps(until=6)] == [3, 4, 5]
    assert trainer.step == 6


def test_steps_train_a_model_that_was_left_in_evaluation_mode(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(1))
    trainer.model.eval()
    next(trainer.steps(until=1))
    assert trainer.model.training


def test_without_a_schedule_the_rate_told_is_the_optimizers(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(1), schedules={})
    trainer.optimizer.param_groups[0]["lr"] = 0.25
    assert trainer.take_step().lr == 0.25


def test_a_scheduled_weight_decay_leaves_groups_without_decay_alone_and_may_pass_through_zero(gpt2_of: Make) -> None:
    decays = (0.0, 0.2, 0.0, 0.3)
    schedules = {"lr": warmed_up, "weight_decay": lambda step: decays[step]}
    trainer = trainer_of(gpt2_of(), drawn(4), schedules=schedules)
    seen = []
    for _ in trainer.steps(until=4):
        seen.append([group["weight_decay"] for group in trainer.optimizer.param_groups])
    assert seen == [[0.0, 0.0], [0.2, 0.0], [0.0, 0.0], [0.3, 0.0]]


def test_any_key_of_a_group_can_be_scheduled(gpt2_of: Make) -> None:
    schedules = {"lr": warmed_up, "momentum": lambda step: 0.8 + step / 100}
    trainer = trainer_of(gpt2_of(), drawn(3), schedules=schedules, optimizer=sgd)
    for result in trainer.steps(until=3):
        assert trainer.optimizer.param_groups[0]["momentum"] == 0.8 + result.step / 100


@pytest.mark.parametrize("optimizer", [plain_adamw, fused_adamw])
def test_a_scheduled_momentum_is_the_first_beta_of_adam(gpt2_of: Make, optimizer: Optimizer) -> None:
    schedules = {"lr": warmed_up, "momentum": lambda step: 0.5 + step / 10}
    trainer, plain = (
        trainer_of(gpt2_of(), drawn(2), schedules=each, optimizer=optimizer) for each in (schedules, {"lr": warmed_up})
    )
    for result in trainer.steps(until=2):
        assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.5 + result.step / 10, 0.95)}
    list(plain.steps(until=2))
    assert not torch.equal(next(trainer.model.parameters()), next(plain.model.parameters()))


def test_a_group_with_a_scale_has_its_share_of_the_rate(gpt2_of: Make) -> None:
    def embedding_at_ten(model: nn.Module) -> Any:
        embedding, *rest = model.parameters()
        groups: list[dict[str, Any]] = [{"params": [embedding], "lr_scale": 10.0}, {"params": rest}]
        return torch.optim.SGD(groups, lr=1.0)

    data = drawn(1)
    scaled, plain = gpt2_of(), gpt2_of()
    result = trainer_of(scaled, data, optimizer=embedding_at_ten).take_step()
    trainer_of(plain, data, optimizer=sgd).take_step()
    start = gpt2_of().wte.weight
    torch.testing.assert_close(scaled.wte.weight - start, 10 * (plain.wte.weight - start), rtol=1e-4, atol=1e-7)
    assert same(scaled.ln_f.state_dict(), plain.ln_f.state_dict())
    assert result.lr == warmed_up(0)


def test_clipping_begins_with_the_step_it_is_asked_to_begin_with(gpt2_of: Make) -> None:
    model = gpt2_of()
    trainer = trainer_of(model, drawn(4), max_grad_norm=0.01, clip_from=2)
    left = []
    for result in trainer.steps(until=4):
        assert result.grad_norm > 0.1
        left.append(nn.utils.get_total_norm(gradients(model)).item())
    assert min(left[:2]) > 0.1
    assert left[2:] == [pytest.approx(0.01, rel=1e-3)] * 2


def test_gradients_stay_clipped_until_the_next_backward(gpt2_of: Make) -> None:
    model = gpt2_of()
    trainer = trainer_of(model, drawn(2), max_grad_norm=0.01)
    for _ in trainer.steps(until=2):
        assert nn.utils.get_total_norm(gradients(model)).item() == pytest.approx(0.01, rel=1e-3)


def with_penalty(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy and a penalty on large logits, both sums over the targets."""
    counted = batch.targets != IGNORED
    ce = token_loss(model, batch)
    z = (model(batch.inputs).logsumexp(dim=2) ** 2)[counted].sum()
    return ce + 0.01 * z, {"ce": ce, "z": z}


def test_a_loss_of_ones_own_trains_and_its_parts_are_told_as_means(gpt2_of: Make) -> None:
    data = drawn(1, share_ignored=0.4)
    model = gpt2_of(dtype=torch.float64)
    with torch.no_grad():
        logits = model(data[0][0])[data[0][1] != IGNORED]
    for micro_batch in (6, 2):
        trainer = trainer_of(copy.deepcopy(model), data, micro_batch, loss=with_penalty)
        result = trainer.take_step()
        expected = {
            "ce": cross_entropy(logits, data[0][1][data[0][1] != IGNORED]),
            "z": (logits.logsumexp(dim=1) ** 2).mean(),
        }
        assert result.parts.keys() == expected.keys()
        assert_near(list(result.parts.values()), list(expected.values()), 1e-12)
        assert_near([result.loss], [expected["ce"] + 0.01 * expected["z"]], 1e-12)
        assert not any(part.requires_grad for part in result.parts.values())


def observe(model: GPT2, data: Sequence[Rows]) -> None:
    """What people do between steps."""
    torch.rand(7)
    evaluate(model, lambda: batches(data, 3)(0).micro_batches)
    list(generate(model, [1, 2], 3))
    gradient_report(model)


@pytest.mark.parametrize("optimizer", [plain_adamw, fused_adamw, muon_and_adamw], ids=lambda make: make.__name__)
def test_observing_changes_nothing(gpt2_of: Make, optimizer: Optimizer) -> None:
    data = drawn(5)
    watched, alone = gpt2_of(dropout=0.3), gpt2_of(dropout=0.3)
    trainers = [trainer_of(model, data, 3, optimizer, seed=11) for model in (watched, alone)]
    for result in trainers[0].steps(until=5):
        observe(watched, data)
        assert torch.equal(result.loss, trainers[1].take_step().loss)
    assert same(trainers[0].state_dict(), trainers[1].state_dict())


def gradient_at(
    model: GPT2, data: Sequence[Rows], step: int, micro_batch: int = 6, seed: int | None = 11
) -> list[Tensor]:
    """The gradient of a step with dropout, of a trainer that never took another."""
    trainer = trainer_of(model, data, micro_batch, seed=seed)
    trainer.step = step
    trainer.backward()
    return gradients(model)


def test_dropout_is_a_function_of_seed_step_and_row(gpt2_of: Make) -> None:
    model = gpt2_of(dropout=0.3)
    twice = drawn(1) * 2  # the same text in both steps
    assert same(gradient_at(model, twice, 0), gradient_at(model, twice, 0))
    assert not same(gradient_at(model, twice, 0), gradient_at(model, twice, 1))
    assert not same(gradient_at(model, twice, 0), gradient_at(model, twice, 0, seed=12))


def test_micro_batches_of_the_same_text_are_dropped_differently(gpt2_of: Make) -> None:
    inputs, targets = drawn(1, rows=2)[0]
    data = [(inputs.repeat(2, 1), targets.repeat(2, 1))]
    losses = []

    def noted(model: nn.Module, batch: MicroBatch) -> Tensor:
        losses.append(token_loss(model, batch))
        return losses[-1]

    trainer_of(gpt2_of(dropout=0.3), data, 2, seed=11, loss=noted).backward()
    assert losses[0].item() != losses[1].item()
    trainer_of(gpt2_of(dropout=0.0), data, 2, seed=11, loss=noted).backward()
    assert losses[2].item() == losses[3].item()


def test_dropout_of_a_row_does_not_depend_on_what_came_before_it(gpt2_of: Make) -> None:
    """A rank that has only the second micro-batch drops in it what one process does that has both."""
    model, seen = gpt2_of(dropout=0.3), []

    def noted(model: nn.Module, batch: MicroBatch) -> Tensor:
        seen.append((batch.index, token_loss(model, batch)))
        return seen[-1][1]

    data = drawn(1)
    both = trainer_of(model, data, 3, seed=11, loss=noted)
    both.backward()

    def second_only(step: int) -> Batch:
        batch = batches(data, 3)(step)
        return Batch(batch.micro_batches[1:], batch.tokens, batch.epoch)

    Trainer(model, plain_adamw(model), second_only, schedules={}, seed=11, loss=noted).backward()
    assert [index for index, _ in seen] == [0, 3, 3]
    assert torch.equal(seen[1][1], seen[2][1])


def test_without_a_seed_dropout_draws_from_the_global_generator(gpt2_of: Make) -> None:
    model, data = gpt2_of(dropout=0.3), drawn(1)
    torch.manual_seed(5)
    first = gradient_at(model, data, 0, seed=None)
    second = gradient_at(model, data, 0, seed=None)
    torch.manual_seed(5)
    again = gradient_at(model, data, 0, seed=None)
    assert same(first, again)
    assert not same(first, second)


def test_without_a_seed_and_without_dropout_the_global_generator_is_not_touched(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(2), seed=None)
    before = torch.get_rng_state()
    list(trainer.steps(until=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("optimizer", "at", "autocast"),
    [
        *((make, 2, dtype) for make in (plain_adamw, fused_adamw, muon_and_adamw) for dtype in (None, torch.float16)),
        *((fused_adamw, at, None) for at in (0, 1, 3, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_restored_trainer_goes_on_bit_for_bit(
    gpt2_of: Make, optimizer: Optimizer, at: int, autocast: torch.dtype | None
) -> None:
    data = drawn(4)
    options: dict[str, Any] = {"optimizer": optimizer, "seed": 11, "autocast": autocast}
    straight = trainer_of(gpt2_of(dropout=0.2), data, 3, **options)
    stopped = trainer_of(gpt2_of(dropout=0.2), data, 3, **options)
    resumed = trainer_of(gpt2_of(dropout=0.2, seed=1), data, 3, **options)
    expected = list(straight.steps(until=4))
    list(stopped.steps(until=at))
    torch.rand(3)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for result in resumed.steps(until=4):
        assert torch.equal(result.loss, expected[result.step].loss)
        assert torch.equal(result.grad_norm, expected[result.step].grad_norm)
        assert result.lr == expected[result.step].lr
    assert same(resumed.state_dict(), straight.state_dict())


def test_a_step_taken_apart_is_the_step(gpt2_of: Make) -> None:
    data = drawn(3)
    apart, whole = (trainer_of(gpt2_of(dropout=0.2), data, 3, seed=11) for _ in range(2))
    for expected in whole.steps(until=3):
        result = apart.update(apart.backward())
        assert (result.step, result.lr) == (expected.step, expected.lr)
        assert torch.equal(result.loss, expected.loss)
        assert result.targets.item() == 48
    assert same(apart.state_dict(), whole.state_dict())


def test_what_is_added_to_the_gradients_between_backward_and_update_is_clipped_and_used(gpt2_of: Make) -> None:
    data = drawn(1)
    ours, plain = Ordered(gpt2_of()), Ordered(gpt2_of())
    trainer = trainer_of(ours, data)
    value = trainer.backward()
    for weight in ours.parameters():
        assert weight.grad is not None
        weight.grad.add_(0.1)
    result = trainer.update(value)

    optimizer = plain_adamw(plain, lr=warmed_up(0))
    cross_entropy(plain(data[0][0]).flatten(0, 1), data[0][1].flatten()).backward()
    for weight in plain.parameters():
        assert weight.grad is not None
        weight.grad.add_(0.1)
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert_near(list(ours.parameters()), list(plain.parameters()), 1e-5)


@every_optimizer
def test_a_step_with_a_loss_that_is_not_finite_is_counted_and_changes_no_weight(
    gpt2_of: Make, optimizer: Optimizer
) -> None:
    def broken_at_one(model: nn.Module, batch: MicroBatch) -> Tensor:
        return token_loss(model, batch) * (math.nan if trainer.step == 1 else 1.0)

    trainer = trainer_of(gpt2_of(), drawn(3), 3, optimizer, loss=broken_at_one)
    assert not trainer.take_step().skipped
    before = copy.deepcopy(trainer.model.state_dict())
    result = trainer.take_step()
    assert result.skipped
    assert result.loss.isnan()
    assert (result.step, trainer.step) == (1, 2)
    assert same(trainer.model.state_dict(), before)
    assert (int(trainer.guard.skipped), int(trainer.guard.in_a_row)) == (1, 1)
    assert not trainer.take_step().skipped
    assert (int(trainer.guard.skipped), int(trainer.guard.in_a_row)) == (1, 0)


def break_gradient(model: nn.Module, value: float) -> None:
    """Put a value into one gradient, as a kernel that overflowed would."""
    weight = list(model.parameters())[1]
    assert weight.grad is not None
    weight.grad.view(-1)[3] = value


BROKEN = {"loss": (math.nan, math.inf), "gradient": (math.nan, math.inf, -math.inf, 1e30)}
"""1e30 is finite, but its square is not."""


@every_optimizer
@pytest.mark.parametrize(("where", "value"), [(where, value) for where in BROKEN for value in BROKEN[where]])
def test_a_step_that_is_not_finite_changes_no_bit_of_weights_moments_and_the_optimizers_counters(
    gpt2_of: Make, optimizer: Optimizer, where: str, value: float
) -> None:
    trainer = trainer_of(gpt2_of(), drawn(4), 3, optimizer)
    list(trainer.steps(until=2))
    trainer.schedules = {}  # the rate of the step is set before the update, skipped or not
    before = copy.deepcopy(trainer.state_dict())
    loss = trainer.backward()
    if where == "loss":
        loss = torch.tensor(value)
    else:
        break_gradient(trainer.model, value)
    assert trainer.update(loss).skipped
    after = trainer.state_dict()
    assert same(after["model"], before["model"])
    assert same(after["optimizer"], before["optimizer"])
    assert torch.equal(after["guard"]["window"], before["guard"]["window"])
    assert not trainer.take_step().skipped


def spiky_at(step: int, trainer: Callable[[], Trainer]) -> Callable[[nn.Module, MicroBatch], Tensor]:
    """The loss, and ten times the loss at one step."""
    return lambda model, batch: token_loss(model, batch) * (10.0 if trainer().step == step else 1.0)


@every_optimizer
@pytest.mark.parametrize("policy", ["log", "skip", "stop"])
def test_a_spike_is_marked_and_left_out_only_where_the_policy_is_to_skip(
    gpt2_of: Make, optimizer: Optimizer, policy: Any
) -> None:
    guard = Guard(CPU, policy=policy, loss_bound=1.5 * math.log(19))
    loss = spiky_at(3, lambda: trainer)
    trainer = trainer_of(gpt2_of(), drawn(5), 3, optimizer, loss=loss, guard=guard)
    list(trainer.steps(until=3))
    before = copy.deepcopy(trainer.model.state_dict())
    moments = copy.deepcopy(trainer.optimizer.state_dict()["state"]) if optimizer is fused_adamw else None
    result = trainer.take_step()
    assert result.spike
    assert bool(result.skipped) == same(trainer.model.state_dict(), before) == (policy == "skip")
    assert moments is None or same(trainer.optimizer.state_dict()["state"], moments) == (policy == "skip")
    assert (int(guard.spikes), int(guard.skipped), int(guard.in_a_row)) == (1, int(policy == "skip"), 0)
    assert result.thresholds is not None
    line = trainer.why_skipped(result)
    assert line.startswith(f"loss {result.loss.item():.4g} is above {result.thresholds[0].item():.4g}")
    assert not trainer.take_step().spike


def test_an_overflow_of_the_scaled_loss_is_no_spike_and_enters_no_window(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(3), 3, fused_adamw, autocast=torch.float16, guard=Guard(CPU, policy="skip"))
    assert trainer.loss_scale is not None
    trainer.take_step()
    before = trainer.guard.window.clone()
    trainer.loss_scale.value.fill_(2.0**40)
    result = trainer.take_step()
    assert result.spike is not None
    assert not result.spike
    assert not result.skipped
    assert torch.equal(trainer.guard.window, before)


def test_a_run_judges_with_the_guard_of_its_configuration(build_tiny: Callable[..., Any]) -> None:
    guard = build_tiny(guard={"policy": "skip", "k": 4, "window": 16}).trainer.guard
    assert (guard.policy, tuple(guard.window.shape)) == ("skip", (2, 16))
    first, wild = (torch.tensor(3.0), torch.tensor(1.0)), (torch.tensor(1.6 * math.log(256)), torch.tensor(1.0))
    assert [bool(guard.judge(*step).spike) for step in (first, wild)] == [False, True]


def test_without_a_guard_of_ones_own_spikes_are_logged(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(1))
    assert trainer.guard.policy == "log"
    own = Guard(CPU, policy="stop")
    assert trainer_of(gpt2_of(), drawn(1), guard=own).guard is own


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        ("loss", math.nan, "loss is nan"),
        ("loss", math.inf, "loss is inf"),
        ("gradient", math.nan, "gradient of wpe.weight is nan"),
        ("gradient", -math.inf, "gradient of wpe.weight is inf"),
        ("gradient", 1e30, "gradients are finite, but their norm overflows float32"),
    ],
)
@pytest.mark.parametrize("optimizer", [plain_adamw, fused_adamw], ids=lambda make: make.__name__)
def test_what_was_not_finite_is_told_in_one_line(
    gpt2_of: Make, optimizer: Optimizer, where: str, value: float, why: str
) -> None:
    trainer = trainer_of(gpt2_of(), drawn(1), 3, optimizer)
    loss = trainer.backward()
    if where == "loss":
        loss = torch.tensor(value)
    else:
        weight = dict(trainer.model.named_parameters())["wpe.weight"]
        assert weight.grad is not None
        weight.grad[2, 1] = value
    assert trainer.why_skipped(trainer.update(loss)) == why


def test_why_a_step_was_skipped_is_nothing_where_it_was_not(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(1))
    assert trainer.why_skipped(trainer.take_step()) == ""
    assert trainer.guard.reasons == []


def test_five_steps_in_a_row_end_with_what_was_not_finite_in_them(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(5), loss=lambda model, batch: token_loss(model, batch) * math.inf)
    for result in trainer.steps(until=5):
        trainer.why_skipped(result)
    with pytest.raises(DivergedError, match=r"5 steps in a row up to step 4 .* not finite \(loss is inf\)"):
        trainer.guard.check(4)


@every_optimizer
def test_measuring_changes_no_bit_and_tells_how_far_the_weights_moved(gpt2_of: Make, optimizer: Optimizer) -> None:
    data = drawn(5)
    measured, plain = (trainer_of(gpt2_of(dropout=0.2), data, 3, optimizer, seed=11) for _ in range(2))
    measured.measure_every = 2
    for expected in plain.steps(until=5):
        before = nn.utils.parameters_to_vector(measured.parameters).double()
        result = measured.take_step()
        after = nn.utils.parameters_to_vector(measured.parameters).double()
        assert torch.equal(result.loss, expected.loss)
        assert expected.update_norm is expected.weight_norm is None
        if result.step % 2:
            assert result.update_norm is result.weight_norm is None
        else:
            assert result.update_norm is not None
            assert result.weight_norm is not None
            assert result.update_norm.item() == pytest.approx((after - before).norm().item(), rel=1e-5)
            assert result.weight_norm.item() == pytest.approx(after.norm().item(), rel=1e-5)
            assert not result.weight_norm.requires_grad
    assert same(measured.state_dict(), plain.state_dict())


@every_optimizer
def test_a_skipped_step_moves_the_weights_by_exactly_nothing(gpt2_of: Make, optimizer: Optimizer) -> None:
    trainer = trainer_of(gpt2_of(), drawn(1), 3, optimizer)
    trainer.measure_every = 1
    trainer.backward()
    result = trainer.update(torch.tensor(math.nan))
    assert result.update_norm is not None
    assert result.update_norm.item() == 0.0


def test_a_fault_can_strike_after_backward_and_after_the_update(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), drawn(3), optimizer=sgd)
    start = copy.deepcopy(trainer.model.state_dict())
    moved: list[bool] = []

    def note() -> None:
        moved.append(not same(trainer.model.state_dict(), start))

    with at("after_backward@0", note), at("after_update@0", note), at("after_update@2", note):
        list(trainer.steps(until=3))
    assert moved == [False, True, True]


class Reads(TorchDispatchMode):
    """Notes every operation that waits for the device: the one behind item(), float() and if."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}:
            self.waits.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["log", "skip"])
def test_a_whole_step_of_the_fused_optimizer_waits_for_nothing(gpt2_of: Make, policy: Any) -> None:
    trainer = trainer_of(gpt2_of(), drawn(4), 3, fused_adamw, guard=Guard(CPU, policy=policy, loss_bound=4.4))
    trainer.measure_every = 2
    trainer.take_step()
    with Reads() as reads:
        trainer.update(trainer.backward())
        trainer.update(trainer.backward() * math.nan)
        trainer.update(trainer.backward() + 50.0)
    assert reads.waits == []
    assert (int(trainer.guard.spikes), int(trainer.guard.skipped)) == (1, 1 + (policy == "skip"))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_narrow_forward_pass_trains_float32_weights(gpt2_of: Make, autocast: torch.dtype) -> None:
    data = drawn(1) * 10
    narrow, wide = gpt2_of(), gpt2_of()
    computed_in = set()
    narrow.lm_head.register_forward_hook(lambda module, inputs, output: computed_in.add(output.dtype))
    results = list(trainer_of(narrow, data, 3, fused_adamw, autocast=autocast).steps(until=10))
    expected = list(trainer_of(wide, data, 3, fused_adamw).steps(until=10))
    assert computed_in == {autocast}
    assert {weight.dtype for weight in narrow.parameters()} == {torch.float32}
    assert results[0].loss.dtype == torch.float32
    assert results[0].loss.item() == pytest.approx(expected[0].loss.item(), rel=1e-2)
    assert results[0].grad_norm.item() == pytest.approx(expected[0].grad_norm.item(), rel=5e-2)
    assert not any(result.skipped for result in results)
    assert results[-1].loss < 0.8 * results[0].loss
    assert results[-1].loss.item() == pytest.approx(expected[-1].loss.item(), rel=5e-2)


@pytest.mark.parametrize("optimizer", [plain_adamw, fused_adamw], ids=lambda make: make.__name__)
def test_an_overflow_lowers_the_scale_and_is_not_counted_as_skipped(gpt2_of: Make, optimizer: Optimizer) -> None:
    trainer = trainer_of(gpt2_of(), drawn(3), 3, optimizer, autocast=torch.float16)
    assert trainer.loss_scale is not None
    trainer.take_step()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.loss_scale.value.fill_(2.0**40)
    result = trainer.take_step()
    assert result.loss.isfinite()
    assert not result.grad_norm.isfinite()
    assert not result.skipped
    assert trainer.loss_scale.state_dict() == {"value": 2.0**39, "good_steps": 0, "overflows": 1}
    assert (int(trainer.guard.skipped), int(trainer.guard.in_a_row)) == (0, 0)
    assert same(trainer.model.state_dict(), before)
    trainer.loss_scale.value.fill_(2.0**10)
    assert trainer.take_step().grad_norm.isfinite()
    assert not same(trainer.model.state_dict(), before)


def test_only_fp16_scales_its_loss(gpt2_of: Make) -> None:
    scales = [trainer_of(gpt2_of(), drawn(1), autocast=dtype).loss_scale for dtype in (None, torch.bfloat16)]
    assert scales == [None, None]
