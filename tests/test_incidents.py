"""What is measured of a step, against what anyone would compute; and that measuring changes nothing."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainwell.data.batches import Batches, Prefetch, Windows, from_loader
from trainwell.incidents import Before, look_before, measure, numbered
from trainwell.model.gpt2 import GPT2
from trainwell.model.loss import token_loss
from trainwell.optim.groups import hidden_matrices, parameter_groups
from trainwell.optim.guard import Guard
from trainwell.optim.together import Together
from trainwell.runs.incidents import Incident
from trainwell.trainer import Trainer

Make = Callable[..., GPT2]
Bits = Callable[[Any], Any]
CPU = torch.device("cpu")
POISON = 3
"""The number of the window whose loss is not finite, where one is."""

pytestmark = pytest.mark.usefixtures("one_thread")


class Sixes:
    """A plan of six examples a step."""

    def size(self, step: int) -> int:
        return 6

    def examples_before(self, step: int) -> int:
        return 6 * step

    def first_example(self, step: int) -> int:
        return 6 * step


IDS = np.random.default_rng(0).integers(0, 19, 12 * 40 + 1).astype(np.uint16)


def batches_of(micro_batch: int = 2, **how: Any) -> Batches:
    windows = Windows(IDS, 12, 12)
    return Batches(windows, Sixes(), micro_batch=micro_batch, seed=1, device=CPU, **how)


def adamw(model: nn.Module) -> Any:
    return torch.optim.AdamW(parameter_groups(model.parameters(), 0.1), lr=0.01, betas=(0.9, 0.95), fused=True)


def muon_and_adamw(model: nn.Module) -> Any:
    matrices = hidden_matrices(model, 19)
    rest = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    return Together(torch.optim.Muon(matrices), torch.optim.AdamW(rest, lr=0.01))


def trainer_of(model: nn.Module, *, optimizer: Callable[[nn.Module], Any] = adamw, **options: Any) -> Trainer:
    batches = options.pop("batches", None) or batches_of()
    schedules = {"lr": lambda step: 0.01 / (step + 1)}
    return Trainer(model.train(), optimizer(model), batches, schedules=schedules, seed=5, **options)


def poisoned(model: nn.Module, batch: Any) -> Tensor:
    """The token loss, but of the window POISON it is NaN, and so are its gradients."""
    window = torch.from_numpy(IDS[12 * POISON : 12 * POISON + 12].astype(np.int64))
    bad = (batch.inputs == window).all(dim=1).any()
    return token_loss(model, batch) * (math.nan if bad else 1.0)


def step_with(number: int) -> int:
    return next(step for step in range(6) if number in batches_of().indices(step))


def decode(ids: Sequence[int]) -> str:
    return "".join(chr(97 + number) for number in ids)


@pytest.mark.parametrize("optimizer", [adamw, muon_and_adamw])
@pytest.mark.parametrize("loss", [token_loss, poisoned])
def test_measuring_every_step_leaves_training_bit_for_bit_as_it_was(
    gpt2_of: Make, bits_of: Bits, optimizer: Callable[[nn.Module], Any], loss: Any
) -> None:
    ends = []
    for measured in (False, True):
        source = Prefetch(batches_of())
        trainer = trainer_of(gpt2_of(dropout=0.2), optimizer=optimizer, loss=loss, batches=source)
        torch.manual_seed(99)
        for result in trainer.steps(until=5):
            before = bits_of([trainer.state_dict(), [w.grad for w in trainer.parameters], torch.get_rng_state()])
            if measured:
                measure(trainer, result, reason="a look", decode=decode)
                look_before(trainer, decode=decode)
            after = bits_of([trainer.state_dict(), [w.grad for w in trainer.parameters], torch.get_rng_state()])
            assert after == before
            assert all(module.training for module in trainer.model.modules())
        source.close()
        ends.append(bits_of(trainer.state_dict()))
    assert ends[0] == ends[1]


def test_losses_of_single_examples_are_those_of_the_step_with_dropout_off(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(dtype=torch.float64))
    before = look_before(trainer, decode=decode)
    result = trainer.take_step()
    incident = measure(trainer, result, reason="", before=before)
    assert incident.weights == "the weights that the step was taken with"
    assert sum(sample.loss * sample.targets for sample in incident.samples) / 72 == pytest.approx(
        float(result.loss), rel=1e-12
    )
    assert incident.windows == tuple(batches_of().indices(0))
    assert [sample.loss for sample in incident.samples] == sorted((s.loss for s in incident.samples), reverse=True)
    for sample in incident.samples:
        assert incident.windows[sample.place] == sample.index
        assert sample.text == decode(IDS[12 * sample.index : 12 * sample.index + 12].tolist())


def test_dropout_does_not_matter_and_is_on_again_afterwards(gpt2_of: Make) -> None:
    dropping = trainer_of(gpt2_of(dropout=0.3))
    assert look_before(dropping).samples == look_before(trainer_of(gpt2_of())).samples
    assert all(module.training for module in dropping.model.modules())


def test_a_loss_that_draws_leaves_the_random_generator_where_it_was(gpt2_of: Make) -> None:
    def noisy(model: nn.Module, batch: Any) -> Tensor:
        return token_loss(model, batch) + torch.rand(())

    trainer = trainer_of(gpt2_of(), loss=noisy)
    result = trainer.take_step()
    before = torch.get_rng_state()
    measure(trainer, result, reason="")
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_norms_are_those_before_clipping(gpt2_of: Make) -> None:
    plain = trainer_of(gpt2_of(), max_grad_norm=None)
    plain.backward()
    want = {name: float(weight.grad.double().norm()) for name, weight in plain.model.named_parameters()}  # type: ignore[union-attr]
    clipped = trainer_of(gpt2_of(), max_grad_norm=1e-3)
    incident = measure(clipped, clipped.take_step(), reason="")
    assert [tensor.name for tensor in incident.tensors] == list(want)
    for tensor in incident.tensors:
        assert tensor.grad_norm == pytest.approx(want[tensor.name], rel=1e-5)
    total = math.sqrt(sum((tensor.grad_norm or 0) ** 2 for tensor in incident.tensors))
    assert total == pytest.approx(incident.grad_norm, rel=1e-6)


def test_adamws_update_is_told_from_its_state_as_exactly_as_from_the_weights(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(dtype=torch.float64))
    for _ in range(3):
        before = look_before(trainer)
        result = trainer.take_step()
        told, measured = measure(trainer, result, reason=""), measure(trainer, result, reason="", before=before)
        assert told.notes == measured.notes == ()
        for mine, theirs in zip(told.tensors, measured.tensors, strict=True):
            assert mine.update_norm == pytest.approx(theirs.update_norm, rel=1e-9)
            assert mine.update_norm
    assert told.weights == "the weights after step 2, the step's own update included"


def test_the_update_of_another_optimizer_is_known_from_the_weights_alone(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), optimizer=muon_and_adamw)
    before = look_before(trainer)
    result = trainer.take_step()
    told, measured = measure(trainer, result, reason=""), measure(trainer, result, reason="", before=before)
    unknown = {tensor.name for tensor in told.tensors if tensor.update_norm is None}
    assert "h.0.attn.c_attn.weight" in unknown
    assert "wte.weight" not in unknown
    assert told.notes == ("update norms are known for AdamW; a replay measures those of other optimizers",)
    assert all(tensor.update_norm for tensor in measured.tensors)


def test_a_poisoned_example_comes_first_and_its_gradients_are_counted(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), loss=poisoned)
    trainer.step = step_with(POISON)
    incident = measure(trainer, trainer.take_step(), reason="loss is nan")
    worst = incident.samples[0]
    assert (worst.index, math.isnan(worst.loss)) == (POISON, True)
    assert all(math.isfinite(sample.loss) for sample in incident.samples[1:])
    assert (incident.skipped, math.isnan(incident.loss)) == (True, True)
    assert incident.weights == "the weights that the step was taken with"
    sizes = {name: weight.numel() for name, weight in trainer.model.named_parameters()}
    for tensor in incident.tensors:
        assert tensor.update_norm == 0
        assert 0 < tensor.not_finite <= sizes[tensor.name]
        assert math.isnan(tensor.grad_norm or 0)


def test_the_bounds_are_the_guards_once_it_knows_any(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(), guard=Guard(CPU, loss_bound=3.5))
    first, second = trainer.take_step(), trainer.take_step()
    assert measure(trainer, first, reason="").bounds == {}
    assert second.thresholds is not None
    found = measure(trainer, second, reason="").bounds
    assert found == dict(zip(("loss", "grad_norm"), second.thresholds.tolist(), strict=True))


def test_of_rows_sorted_by_length_each_is_told_by_its_own_number(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of(dtype=torch.float64), batches=batches_of(buckets=True))
    plain = trainer_of(gpt2_of(dtype=torch.float64))
    assert look_before(trainer).samples == look_before(plain).samples


def test_data_that_only_runs_forward_is_left_alone_and_that_is_said(gpt2_of: Make) -> None:
    ids = torch.from_numpy(IDS[:48].astype(np.int64)).reshape(4, 12)
    pulled: list[int] = []

    class Loader:
        def __iter__(self) -> Any:
            for number in range(100):
                pulled.append(number)
                yield ids, ids

    trainer = trainer_of(gpt2_of(), batches=from_loader(Loader()).place(2, CPU))
    result = trainer.take_step()
    seen = len(pulled)
    incident = measure(trainer, result, reason="")
    assert len(pulled) == seen
    assert (incident.windows, incident.samples) == (None, ())
    assert incident.notes == ("losses of single examples are not known: this data cannot be read a second time",)
    assert len(incident.tensors) == len(trainer.parameters)


def test_a_step_that_is_looked_at_later_has_no_norms_and_says_so(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of())
    result = trainer.take_step()
    trainer.take_step()
    incident = measure(trainer, result, reason="")
    assert incident.tensors == ()
    assert incident.notes == ("norms of single tensors are not known: the step was looked at after step 1",)
    assert incident.weights == "the weights after step 1"


def test_what_is_cut_is_said(gpt2_of: Make) -> None:
    trainer = trainer_of(gpt2_of())
    incident = measure(trainer, trainer.take_step(), reason="", most=2, decode=lambda _: "x" * 2001)
    assert len(incident.samples) == 2
    assert incident.windows is not None
    assert len(incident.windows) == 6
    assert {len(sample.text or "") for sample in incident.samples} == {2000}
    assert incident.notes == (
        "only the first 2 of 6 examples were measured; a replay measures all",
        "texts are cut after 2,000 characters",
    )


def test_a_loss_that_takes_no_single_row_costs_the_losses_and_not_the_run(gpt2_of: Make) -> None:
    def pairs(model: nn.Module, batch: Any) -> Tensor:
        if len(batch.inputs) != 2:
            raise ValueError("rows come in pairs")
        return token_loss(model, batch)

    trainer = trainer_of(gpt2_of(), loss=pairs)
    incident = measure(trainer, trainer.take_step(), reason="")
    assert incident.samples == ()
    assert incident.notes == ("losses of single examples are not known: ValueError: rows come in pairs",)
    assert all(module.training for module in trainer.model.modules())


def test_a_tensor_without_a_gradient_has_no_norm(gpt2_of: Make) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = gpt2_of()
            self.idle = nn.Parameter(torch.ones(3))

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.body(ids)
            return logits

    trainer = trainer_of(Idle())
    before: Before = look_before(trainer)
    incident: Incident = measure(trainer, trainer.take_step(), reason="", before=before)
    (idle,) = [tensor for tensor in incident.tensors if tensor.name == "idle"]
    assert (idle.grad_norm, idle.not_finite, idle.update_norm) == (None, 0, 0.0)


def test_a_source_of_batches_without_numbers_has_none() -> None:
    batches = batches_of()
    prefetch = Prefetch(batches)
    assert numbered(batches) is batches
    assert numbered(prefetch) is batches
    assert numbered(lambda step: None) is None
    prefetch.close()


@pytest.mark.slow
def test_a_compiled_model_is_not_compiled_for_a_single_row(gpt2_of: Make) -> None:
    compiled: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    torch._dynamo.reset()
    model = gpt2_of()
    fast: Any = torch.compile(model, backend=counting)
    trainer = trainer_of(model, loss=lambda _model, batch: token_loss(fast, batch))
    result = trainer.take_step()
    assert compiled
    known = len(compiled)
    measure(trainer, result, reason="")
    trainer.take_step()
    assert len(compiled) == known


class OnePlace:
    """Rows of a file with one place in it: whoever reads moves it for all."""

    def __init__(self) -> None:
        self.place = 0
        self.mixed = 0

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        self.place = index
        time.sleep(0.002)
        self.mixed += self.place != index
        return [self.place % 19] * 12, [self.place % 7] * 12


def test_nobody_reads_the_data_while_the_next_batch_is_prepared(gpt2_of: Make) -> None:
    examples = OnePlace()
    batches = Prefetch(Batches(examples, Sixes(), micro_batch=2, seed=1, device=CPU))
    trainer = trainer_of(gpt2_of(), batches=batches)
    for _ in range(3):
        measure(trainer, trainer.take_step(), reason="looked at")
    batches.close()
    assert examples.mixed == 0
