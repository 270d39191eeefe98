"""A proof that cannot fail proves nothing: loops that are broken on purpose, and the promise that each breaks."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainwell.build import assemble
from trainwell.data.batches import Batch, MicroBatch, from_loader
from trainwell.errors import ConfigError
from trainwell.given import Data, Given
from trainwell.model.loss import token_loss
from trainwell.planning.target import Start, find_start
from trainwell.prove.checks import PROOFS, prove
from trainwell.prove.verdict import Verdict
from trainwell.run import Run
from trainwell.trainer import StepResult, Trainer

Proved = Callable[..., dict[str, Verdict]]
Failing = Callable[[Mapping[str, Verdict]], list[str]]

QUICK = tuple(proof.name for proof in PROOFS if proof.name != "ranks")


@pytest.mark.slow
def test_an_honest_loop_keeps_its_promises(proved: Proved, failing: Failing) -> None:
    verdicts = proved(*QUICK)
    assert failing(verdicts) == []
    assert [verdict.word for verdict in verdicts.values()] == ["PASS"] * 8 + ["SKIP"]
    assert "one thread" in verdicts["device"].detail
    assert verdicts["resume"].level == "bitwise"
    assert verdicts["micro-batches"].level == "rounding 2e-06 (fp32)"


@pytest.mark.slow
def test_nothing_is_written_and_no_generator_moves(proved: Proved, own_folders: Path) -> None:
    proved("rate")  # the text is prepared into the cache
    before = sorted(own_folders.rglob("*"))
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), random.getstate()
    proved("resume", "observing")
    assert sorted(own_folders.rglob("*")) == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


class Forgetful(torch.optim.AdamW):
    """AdamW that forgets its moments when it is saved."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


def forgetful(model: nn.Module) -> Forgetful:
    return Forgetful(model.parameters(), lr=3e-3)


def test_an_optimizer_that_forgets_its_state_breaks_resuming(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "observing", "kernels", "nan", given=Given(optimizer=forgetful))
    assert failing(verdicts) == ["resume"]
    found = verdicts["resume"]
    assert found.first_step == 4  # the first after the checkpoint that is resumed from
    assert found.first_tensor is not None
    assert found.first_tensor.startswith("model.")
    assert "state_dict" in found.look


class Noisy:
    """Map-style data with a generator that is carried from one example to the next."""

    def __init__(self) -> None:
        self.dice = random.Random(3)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        ids = [self.dice.randrange(19) for _ in range(9)]
        return ids[:-1], ids[1:]


def test_data_with_a_carried_generator_breaks_resuming_and_the_order(proved: Proved, failing: Failing) -> None:
    given = Given(data=Noisy())
    verdicts = proved("resume", "observing", "micro-batches", "order", given=given, model__pad_vocab_to=19)
    assert failing(verdicts) == ["resume", "order"]
    assert verdicts["resume"].where == "step 4, loss"


def test_a_loader_is_not_promised_to_resume_and_is_seen_not_to(proved: Proved) -> None:
    batches = [(torch.full((4, 8), number), torch.full((4, 8), number)) for number in range(9)]
    verdicts = proved("resume", "order", given=Given(data=from_loader(batches)), model__pad_vocab_to=19)
    assert [verdict.word for verdict in verdicts.values()] == ["FAIL", "SKIP"]


def mean_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    return token_loss(model, batch) / batch.targets.numel()


def test_a_loss_that_is_a_mean_breaks_micro_batches_and_evaluation(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "micro-batches", "kernels", "evaluation", given=Given(loss=mean_loss))
    assert failing(verdicts) == ["micro-batches", "evaluation"]
    assert verdicts["micro-batches"].where == "step 0, loss"
    assert "SUM" in verdicts["evaluation"].look


class MeanOfMeans(Trainer):
    """Averages the micro-batches' means, as many loops do."""

    def backward(self) -> Tensor:
        self.optimizer.zero_grad()
        micro_batches = self.batches(self.step).micro_batches
        total = torch.zeros(())
        for micro in micro_batches:
            loss = token_loss(self.model, micro) / (micro.targets != -100).sum() / len(micro_batches)
            loss.backward()
            total = total + loss.detach()
        return total


def with_trainer(kind: type[Trainer]) -> Callable[[Start, Given, Data], Run]:
    """Twins whose trainer is of another kind."""

    def make(start: Start, given: Given, data: Data) -> Run:
        run = assemble(start, given, data)
        run.trainer.__class__ = kind
        return run

    return make


def test_a_mean_of_means_breaks_micro_batches_alone(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "micro-batches", "evaluation", make=with_trainer(MeanOfMeans), micro_batch=4)
    assert failing(verdicts) == ["micro-batches"]


def watching_tokenizer(start: Start, given: Given, data: Data) -> Run:
    """A run that is touched when a sample is decoded: one weight changes."""
    run = assemble(start, given, data)
    tokenizer, weight = run.tokenizer, next(run.model.parameters())

    class Touching:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def decode(self, ids: list[int]) -> str:
            with torch.no_grad():
                weight[0, 0] += 1e-6
            return "a sample"

    run.tokenizer = Touching()  # type: ignore[assignment]
    return run


def test_a_sample_that_touches_the_model_breaks_observing_alone(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "observing", "kernels", make=watching_tokenizer)
    assert failing(verdicts) == ["observing"]


def one_step_late(start: Start, given: Given, data: Data) -> Run:
    run = assemble(start, given, data)
    run.trainer.schedules = {"lr": lambda step: run.plan.lr(step + 1)}
    return run


class WrongLog(Trainer):
    """Reports the peak whatever it used."""

    def update(self, loss: Tensor) -> StepResult:
        return replace(super().update(loss), lr=3e-3)


class WrongRate(Trainer):
    """Reports the scheduled rate, and uses half of it."""

    def _set(self, key: str, value: float) -> None:
        super()._set(key, value / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one_step_late, "gives 0.000375 for step 0, but group 0 was updated with 0.00075"),
        (with_trainer(WrongLog), "gives 0.000375 for step 0, but metrics.jsonl says 0.003"),
        (with_trainer(WrongRate), "updated with 0.0001875 and group 1 was updated with 0.0001875 ("),
    ],
    ids=["one step late", "logged wrong", "used wrong"],
)
def test_a_rate_that_is_not_the_schedules_breaks_the_rate_alone(
    proved: Proved, failing: Failing, make: Any, said: str
) -> None:
    verdicts = proved("resume", "rate", "nan", make=make)
    assert failing(verdicts) == ["rate"]
    assert said.removesuffix(" (") in verdicts["rate"].detail
    assert verdicts["rate"].where == "step 0, lr"


class TimesZero(Trainer):
    """Skips by multiplying the gradients with zero: weights still decay, moments and counters still move."""

    def update(self, loss: Tensor) -> StepResult:
        if not loss.isfinite():
            for tensor in self.parameters:
                if tensor.grad is not None:
                    tensor.grad.zero_()
            self.optimizer.step()
        return super().update(loss)


def test_a_step_that_multiplies_by_zero_breaks_the_nan_proof_alone(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "rate", "nan", make=with_trainer(TimesZero))
    assert failing(verdicts) == ["nan"]
    assert verdicts["nan"].first_step == 2
    assert verdicts["nan"].first_tensor is not None
    assert verdicts["nan"].first_tensor.startswith("model.")


def with_replacement(start: Start, given: Given, data: Data) -> Run:
    """Batches that are a function of the step, and draw each of them from a few steps of the plan."""
    run = assemble(start, given, data)
    honest = run.batches

    def batches(step: int) -> Batch:
        return honest(random.Random(step).randrange(8))

    run.batches = run.trainer.batches = batches
    return run


def test_sampling_with_replacement_breaks_the_order_alone(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "micro-batches", "order", make=with_replacement)
    assert failing(verdicts) == ["order"]
    assert "comes again" in verdicts["order"].detail


def dropping_the_rest(start: Start, given: Given, data: Data) -> Run:
    """Batches that begin each epoch anew and leave out what does not fill a batch."""
    run = assemble(start, given, data)
    honest, whole = run.batches, len(data.train) // run.plan.batch.batch_size  # type: ignore[arg-type]
    run.batches = run.trainer.batches = lambda step: honest(step % whole)
    return run


def test_a_dropped_rest_breaks_the_order_alone(proved: Proved, failing: Failing) -> None:
    verdicts = proved("observing", "order", make=dropping_the_rest)
    assert failing(verdicts) == ["order"]


def other_reference(start: Start, given: Given, data: Data) -> Run:
    """Fast kernels that are wrong: they never clip."""
    run = assemble(start, given, data)
    if run.settings.kernels == "auto":
        run.trainer.max_grad_norm = None
    return run


def test_fast_kernels_that_compute_something_else_break_that_proof_alone(proved: Proved, failing: Failing) -> None:
    verdicts = proved("resume", "kernels", "micro-batches", make=other_reference, optim__max_grad_norm=0.01)
    assert failing(verdicts) == ["kernels"]
    assert verdicts["kernels"].first_tensor is not None
    assert verdicts["kernels"].first_tensor.startswith(("update of ", "exp_avg of ", "exp_avg_sq of "))


def breaking(start: Start, given: Given, data: Data) -> Run:
    run = assemble(start, given, data)
    run.trainer.batches = gone
    return run


def gone(step: int) -> Batch:
    raise RuntimeError(f"the disk is gone at step {step}")


def test_a_twin_that_ends_with_an_error_fails_its_proof_and_says_so(proved: Proved) -> None:
    found = proved("resume", make=breaking)["resume"]
    assert not found.passed
    assert found.detail == "a twin ended with RuntimeError: the disk is gone at step 0"


class Trembling(Trainer):
    """A device that is not deterministic: every gradient has noise of its own in the last bits."""

    def backward(self) -> Tensor:
        loss, dice = super().backward(), torch.Generator().manual_seed(random.SystemRandom().getrandbits(60))
        for tensor in self.parameters:
            if tensor.grad is not None:
                tensor.grad *= 1 + 1e-6 * torch.randn(tensor.shape, generator=dice)
        return loss


def trembling(start: Start, given: Given, data: Data) -> Run:
    run = with_trainer(Trembling)(start, given, data)
    run.settings = replace(run.settings, deterministic=False)
    return run


@pytest.mark.slow
def test_where_the_device_is_not_deterministic_two_identical_twins_are_the_yardstick(proved: Proved) -> None:
    found = proved("observing", "resume", make=trembling, optim__eps=1e-2)
    assert all(verdict.passed for verdict in found.values())
    assert found["resume"].level.startswith("statistical: at most 3 x what two identical twins differ by")
    forgotten = proved("resume", make=trembling, given=Given(optimizer=forgetful))["resume"]
    assert not forgotten.passed
    assert forgotten.first_step is not None


def test_what_keeps_the_run_from_starting_is_an_error_and_not_a_verdict(proved: Proved) -> None:
    with pytest.raises(ConfigError, match="schedule's peak is"):
        proved("resume", given=Given(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1)))


def test_parts_that_cannot_be_copied_are_refused_with_what_to_give_instead(proved: Proved) -> None:
    stream = from_loader(iter([(torch.zeros(2, 8), torch.zeros(2, 8))]))
    stream.loader = (pair for pair in [(torch.zeros(2, 8), torch.zeros(2, 8))])
    with pytest.raises(ConfigError, match=r"cannot be copied .* each twin needs its own"):
        proved("resume", given=Given(data=stream))


def test_a_run_is_proved_with_the_settings_it_recorded(start_of: Callable[..., Start]) -> None:
    from trainwell.fit import fit

    start = start_of(duration=3, micro_batch=1, schedule__warmup=1)
    fit(assemble(start, Given()))
    before = {path: path.read_bytes() for path in start.run_dir.path.rglob("*") if path.is_file()}
    heard: list[str] = []
    verdicts = prove(find_start(str(start.run_dir.path)), only=["observing", "evaluation"], say=heard.append)
    assert [verdict.word for verdict in verdicts] == ["PASS", "SKIP"]
    assert "micro-batch 1," in heard[0]
    assert heard[1] == "the schedule is laid out over 24 steps here, not over 3"
    assert {path: path.read_bytes() for path in start.run_dir.path.rglob("*") if path.is_file()} == before


def test_small_says_what_was_scaled(start_of: Callable[..., Start]) -> None:
    heard: list[str] = []
    prove(start_of(batch_size=12, model__width=96), small=True, say=heard.append, only=["rate"])
    assert heard[1] == "scaled down: model.width 96 -> 64, batch_size 12 -> 4"
    json.dumps(heard)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["muon", "ramp"])
def test_other_optimizers_and_ramps_keep_their_promises(proved: Proved, failing: Failing, task: str) -> None:
    muon = {"optim__name": "muon", "model__dropout": 0.1}
    ramp = {"batch_ramp__from_tokens": 32, "batch_ramp__over": "512 tokens", "data__skip": "3+2"}
    assert failing(proved(*QUICK, **(muon if task == "muon" else ramp))) == []


def indices_begin_anew(start: Start, given: Given, data: Data) -> Run:
    """Micro-batches that all say they are the first, so that all have the same dropout."""
    run = assemble(start, given, data)
    honest = run.batches

    def batches(step: int) -> Batch:
        batch = honest(step)
        return replace(batch, micro_batches=[replace(micro, index=0) for micro in batch.micro_batches])

    run.batches = run.trainer.batches = batches
    return run


@pytest.mark.slow
def test_two_ranks_equal_one_and_a_loop_without_indices_breaks_it(
    proved: Proved, failing: Failing, importable: None
) -> None:
    honest = proved("ranks", model__dropout=0.2)
    assert failing(honest) == []
    assert not honest["ranks"].skipped
    broken = proved("ranks", "resume", make=indices_begin_anew, model__dropout=0.2)
    assert failing(broken) == ["ranks"]
    assert broken["ranks"].first_step == 0


def test_parts_that_cannot_be_sent_to_a_process_leave_the_ranks_out_with_the_reason(proved: Proved) -> None:
    found = proved("ranks", given=Given(loss=lambda model, batch: token_loss(model, batch)))["ranks"]
    assert found.skipped
    assert "top level of a module" in found.detail


@pytest.mark.slow
def test_with_threads_to_compare_the_device_is_proved_and_a_loss_that_counts_them_breaks_it(
    start_of: Callable[..., Start],
) -> None:
    start = start_of()
    torch.set_num_threads(2)  # one_thread puts it back
    (honest,) = prove(start, only=["device"])
    assert honest.word == "PASS"
    assert "one thread against 2" in honest.detail

    def counting(model: nn.Module, batch: MicroBatch) -> Tensor:
        return token_loss(model, batch) * (1 + 1e-3 * torch.get_num_threads())

    (broken,) = prove(start, Given(loss=counting), only=["device"])
    assert (broken.word, broken.where) == ("FAIL", "step 0, loss")
