"""The micro-batch that fits, against a device that says when it is full; and what a trial leaves behind: nothing."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.data.batches import Batch, MicroBatch, cut
from trainwell.data.examples import IGNORED
from trainwell.fitting import allowed_share, doubled, largest_micro_batch, trial
from trainwell.model.gpt2 import GPT2
from trainwell.model.loss import Tokens, token_loss
from trainwell.trainer import Trainer

CPU = torch.device("cpu")
SMALL = st.integers(1, 300)

pytestmark = pytest.mark.usefixtures("one_thread")


class Device:
    """Has memory for so many sequences; `tried` is what was asked of it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tried: list[int] = []

    def __call__(self, size: int) -> None:
        if not self.fits(size):
            raise torch.OutOfMemoryError(f"no memory for {size}")

    def fits(self, size: int) -> bool:
        self.tried.append(size)
        return size <= self.capacity


@given(capacity=SMALL, largest=SMALL, start=SMALL)
def test_what_is_found_fits_and_twice_as_much_does_not(capacity: int, largest: int, start: int) -> None:
    device = Device(capacity)
    size = doubled(device.fits, largest, start)
    assert 1 <= size <= min(capacity, largest)
    assert size == largest or 2 * size + 1 > capacity
    assert size in device.tried or size == 1
    assert len(device.tried) <= 10


def test_sizes_double_until_one_does_not_fit_or_the_batch_is_whole() -> None:
    small, large = Device(20), Device(10**6)
    assert largest_micro_batch(small, 480) == 16
    assert small.tried == [1, 2, 4, 8, 16, 32]
    assert largest_micro_batch(large, 12) == 12
    assert large.tried == [1, 2, 4, 8, 12]


def test_a_start_that_is_too_large_is_halved() -> None:
    device = Device(5)
    assert largest_micro_batch(device, 64, start=32) == 4
    assert device.tried == [32, 16, 8, 4]


def test_where_not_even_one_sequence_fits_training_says_so() -> None:
    device = Device(0)
    assert largest_micro_batch(device, 64) == 1
    assert device.tried == [1]


def test_what_is_not_about_memory_passes_through() -> None:
    def broken(_size: int) -> None:
        raise ValueError("a model that cannot read this")

    with pytest.raises(ValueError, match="cannot read this"):
        largest_micro_batch(broken, 64)


class Activations:
    """What a forward pass holds; in a ring, as graphs of real ones may be."""

    def __init__(self) -> None:
        self.ring = self


def test_what_a_trial_held_when_memory_ran_out_is_gone_before_the_next() -> None:
    held: list[weakref.ref[Activations]] = []

    def hungry(size: int) -> None:
        assert [there for there in held if there() is not None] == []
        activations = Activations()
        held.append(weakref.ref(activations))
        Device(2)(size)

    assert largest_micro_batch(hungry, 8, start=8) == 2
    assert [there() for there in held] == [None] * 3


@given(free=st.integers(0, 80), reserved=st.integers(0, 40), later=st.integers(0, 60))
def test_trials_may_use_what_is_free_without_what_comes_later_and_the_margin(
    free: int, reserved: int, later: int
) -> None:
    total = free + reserved + 2  # two are another process's
    share = allowed_share(free, reserved, total, later, 0.1)
    assert 0 <= share <= 0.9
    assert share * total <= max(0, free + reserved - later - 0.1 * total) + 1e-9


def test_the_whole_of_an_empty_device_is_what_the_margin_leaves() -> None:
    assert allowed_share(free=80, reserved=0, total=80, later=0, margin=0.08) == pytest.approx(0.92)
    assert allowed_share(free=60, reserved=10, total=80, later=20, margin=0.1) == pytest.approx(50 / 80 - 0.1)


def rows(count: int = 6, length: int = 8) -> tuple[Tensor, Tensor]:
    ids = torch.randint(19, (count, length + 1), generator=Generator().manual_seed(0))
    targets = ids[:, 1:].clone()
    targets[:, : length // 2] = IGNORED
    return ids[:, :-1], targets


def trainer_of(model: GPT2, loss: Callable[[nn.Module, Any], Tensor], seed: int | None = 3) -> Trainer:
    def source(_step: int) -> Batch:
        return Batch(cut(*rows(), 2, CPU), 48, 0.0)

    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return Trainer(model, optimizer, source, schedules={"lr": lambda _step: 1e-3}, loss=loss, seed=seed)


class Seen:
    """The token loss, on a device with memory for so many rows; keeps what it was called with."""

    def __init__(self, capacity: int = 99) -> None:
        self.capacity = capacity
        self.batches: list[Any] = []
        self.gradients: list[bool] = []

    def __call__(self, model: nn.Module, batch: Tokens) -> Tensor:
        self.batches.append(batch)
        self.gradients.append(next(model.parameters()).grad is not None)
        loss = token_loss(model, batch)
        Device(self.capacity)(len(batch.inputs))
        return loss


def test_a_trial_is_a_step_of_two_micro_batches_with_a_target_everywhere(gpt2_of: Callable[..., GPT2]) -> None:
    inputs, targets = rows()
    seen, documents = Seen(), torch.zeros_like(inputs)
    trial(trainer_of(gpt2_of(), seen), MicroBatch(inputs, targets, 0, documents))(4)
    assert len(seen.batches) == 2
    assert seen.gradients == [False, True]
    for batch in seen.batches:
        assert torch.equal(batch.inputs, inputs[:4])
        assert batch.documents.shape == (4, 8)
        assert int(batch.targets.min()) >= 0
        assert torch.equal(batch.targets[:, 4:], targets[:4, 4:])


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("capacity", [99, 3, 0])
def test_trials_change_no_bit_of_a_run(
    gpt2_of: Callable[..., GPT2], bits_of: Callable[[Any], Any], capacity: int, seed: int | None
) -> None:
    model = gpt2_of(dropout=0.2).eval()
    trainer = trainer_of(model, Seen(capacity), seed)
    source, random = trainer.batches, torch.get_rng_state()
    before = bits_of(trainer.state_dict())
    largest_micro_batch(trial(trainer, MicroBatch(*rows(), 0)), 6)
    assert bits_of(trainer.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.batches is source
    assert not model.training
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == []


def test_a_step_after_trials_is_the_step_without_them(
    gpt2_of: Callable[..., GPT2], bits_of: Callable[[Any], Any]
) -> None:
    tried, plain = (trainer_of(gpt2_of(dropout=0.2), token_loss) for _ in range(2))
    assert largest_micro_batch(trial(tried, MicroBatch(*rows(), 0)), 6) == 6
    for trainer in (tried, plain):
        for _ in trainer.steps(until=2):
            pass
    assert bits_of(tried.state_dict()) == bits_of(plain.state_dict())
