"""Validation is a mean over tokens, however the rows come, and leaves no trace."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from trainwell.data.batches import MicroBatch, cut
from trainwell.data.examples import IGNORED
from trainwell.errors import ConfigError
from trainwell.evaluate import Evaluation, evaluate, evaluating
from trainwell.model.gpt2 import GPT2
from trainwell.model.loss import label_loss, token_loss

Make = Callable[..., GPT2]

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(share_ignored: float = 0.3, rows: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    inputs, targets = torch.randint(19, (2, rows, 8), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < share_ignored] = IGNORED
    return inputs, targets


def in_pieces(rows: tuple[Tensor, Tensor], size: int) -> Callable[[], list[MicroBatch]]:
    return lambda: cut(*rows, size, torch.device("cpu"))


@given(size=st.integers(1, 9), share_ignored=st.sampled_from([0.0, 0.5, 0.95]), seed=st.integers(0, 99))
@examples(max_examples=15)
def test_the_loss_is_the_mean_over_targets_whatever_the_micro_batch(
    gpt2_of: Make, size: int, share_ignored: float, seed: int
) -> None:
    model, rows = gpt2_of(dtype=torch.float64), drawn(share_ignored, seed=seed)
    evaluation = evaluate(model, in_pieces(rows, size))
    with torch.no_grad():
        expected = cross_entropy(model(rows[0]).flatten(0, 1), rows[1].flatten()).item()
    assert evaluation.targets == (rows[1] != IGNORED).sum().item()
    assert evaluation.loss == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_the_mean_over_no_target_is_not_a_number_and_so_never_the_best(gpt2_of: Make) -> None:
    inputs, targets = drawn(1.0)
    evaluation = evaluate(gpt2_of(), in_pieces((inputs, targets), 2), bytes_per_token=1.0)
    assert math.isnan(evaluation.loss)
    assert evaluation.targets == 0
    assert not evaluation.loss < math.inf


def test_in_float32_the_micro_batch_matters_to_rounding_only(gpt2_of: Make) -> None:
    model, rows = gpt2_of(), drawn(rows=64)
    losses = [evaluate(model, in_pieces(rows, size)).loss for size in (1, 3, 16, 64)]
    assert losses == [pytest.approx(losses[0], rel=2e-6)] * 4


def test_sums_are_kept_in_float64_so_that_small_ones_are_not_lost(gpt2_of: Make) -> None:
    def huge_once(model: nn.Module, batch: MicroBatch) -> Tensor:
        return torch.tensor(2.0**25 if batch.index == 0 else 1.0)

    evaluation = evaluate(gpt2_of(), in_pieces(drawn(0.0, rows=9), 1), huge_once)
    assert evaluation.loss * evaluation.targets == 2.0**25 + 8


def test_evaluating_again_gives_the_same_number(gpt2_of: Make) -> None:
    model = gpt2_of(dropout=0.5).train()
    assert evaluate(model, in_pieces(drawn(), 2)) == evaluate(model, in_pieces(drawn(), 2))


def test_dropout_is_off(gpt2_of: Make) -> None:
    with_dropout, without = gpt2_of(dropout=0.5).train(), gpt2_of(dropout=0.0)
    assert evaluate(with_dropout, in_pieces(drawn(), 2)) == evaluate(without, in_pieces(drawn(), 2))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_module_is_left_as_it_was(gpt2_of: Make, training: bool) -> None:
    model = gpt2_of(dropout=0.5).train(training)
    model.h[1].eval()  # frozen on purpose
    before = [module.training for module in model.modules()]
    evaluate(model, in_pieces(drawn(), 2))
    assert [module.training for module in model.modules()] == before


class Merges(nn.Module):
    """Does something of its own when its mode changes, as adapters do that are merged for evaluation."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.merged = False

    def train(self, mode: bool = True) -> "Merges":
        self.merged = not mode
        return super().train(mode)

    def forward(self, ids: Tensor) -> Tensor:
        assert self.merged
        return self.inner(ids)  # type: ignore[no-any-return]


def test_a_model_is_told_when_its_mode_changes(gpt2_of: Make) -> None:
    model = Merges(gpt2_of()).train()
    evaluate(model, in_pieces(drawn(), 2))
    assert not model.merged


def test_random_numbers_weights_and_gradients_are_left_alone(gpt2_of: Make) -> None:
    model, rows = gpt2_of(dropout=0.5).train(), drawn()
    token_loss(model, in_pieces(rows, 7)()[0]).backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    weights = [weight.detach().clone() for weight in model.parameters()]
    state = torch.get_rng_state()
    evaluate(model, in_pieces(rows, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    left = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(torch.equal(*pair) for pair in zip(gradients, left, strict=True))


def test_the_mode_comes_back_and_gradients_flow_again_when_evaluation_fails(gpt2_of: Make) -> None:
    def broken() -> Iterator[MicroBatch]:
        yield in_pieces(drawn(), 2)()[0]
        raise OSError("the disk is gone")

    model = gpt2_of().train()
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate(model, broken)
    assert model.training
    assert torch.is_grad_enabled()


def test_nothing_is_differentiated_while_evaluating(gpt2_of: Make) -> None:
    model = gpt2_of().train()
    with evaluating(model):
        assert not model.training
        assert not model(drawn()[0]).requires_grad
    assert model(drawn()[0]).requires_grad


def test_a_loss_of_ones_own_is_evaluated_by_its_sum(gpt2_of: Make) -> None:
    def doubled(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        ce = token_loss(model, batch)
        return 2 * ce, {"ce": ce}

    model = gpt2_of()
    expected = 2 * evaluate(model, in_pieces(drawn(), 2)).loss
    assert evaluate(model, in_pieces(drawn(), 2), doubled).loss == pytest.approx(expected, rel=1e-12)


def test_a_narrow_forward_pass_is_near_the_wide_one(gpt2_of: Make) -> None:
    model = gpt2_of()
    wide = evaluate(model, in_pieces(drawn(), 7)).loss
    narrow = evaluate(model, in_pieces(drawn(), 7), autocast=torch.bfloat16).loss
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=1e-2)


@given(st.floats(0, 1000))
def test_perplexity_is_e_to_the_loss_and_infinite_only_where_that_overflows(loss: float) -> None:
    perplexity = Evaluation(loss, 1).perplexity
    assert perplexity == (math.exp(loss) if loss <= 709.78 else perplexity)
    assert math.isinf(perplexity) == (loss > 709.782712893384)


def test_the_perplexity_of_a_loss_that_is_not_a_number_is_none_either() -> None:
    assert math.isnan(Evaluation(math.nan, 1).perplexity)
    assert Evaluation(math.inf, 1).perplexity == math.inf


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits_per_token(gpt2_of: Make) -> None:
    model = gpt2_of(vocab_size=16, tie_head=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    inputs, targets = (ids % 16 for ids in drawn(0.0))
    evaluation = evaluate(model, in_pieces((inputs, targets), 2), bytes_per_token=2.5)
    assert evaluation.loss == pytest.approx(math.log(16), rel=1e-6)
    assert evaluation.perplexity == pytest.approx(16, rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(4 / 2.5, rel=1e-6)
    assert evaluate(model, in_pieces((inputs, targets), 2)).bits_per_byte is None


def test_parts_are_means_over_targets_and_classes_have_their_own_accuracy(gpt2_of: Make) -> None:
    model = gpt2_of(num_labels=3)
    inputs = drawn()[0]
    targets = torch.full_like(inputs, IGNORED)
    targets[:, -1] = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    evaluation = evaluate(model, in_pieces((inputs, targets), 2), label_loss(["x", "y", "z"]))
    right = model(inputs)[:, -1].argmax(1) == targets[:, -1]
    assert evaluation.targets == 7
    assert evaluation.parts.keys() == {"accuracy", "accuracy/x", "accuracy/y", "accuracy/z"}
    assert evaluation.parts["accuracy"] == pytest.approx(right.double().mean().item())
    assert evaluation.parts["accuracy/x"] == pytest.approx(right[:5].double().mean().item())
    assert evaluation.parts["accuracy/y"] == pytest.approx(right[5:].double().mean().item())
    assert math.isnan(evaluation.parts["accuracy/z"])


def test_the_parts_of_a_loss_of_ones_own_are_measured_too(gpt2_of: Make) -> None:
    def both(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = token_loss(model, batch)
        return 2 * loss, {"half": loss}

    evaluation = evaluate(gpt2_of(), in_pieces(drawn(), 3), both)
    assert evaluation.parts == {"half": pytest.approx(evaluation.loss / 2)}


def test_a_part_that_is_called_like_a_count_is_a_part(gpt2_of: Make) -> None:
    def named(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = token_loss(model, batch)
        return loss, {"of/x": loss, "correct/y": 2 * loss}

    evaluation = evaluate(gpt2_of(), in_pieces(drawn(), 3), named)
    assert evaluation.parts == {"of/x": pytest.approx(evaluation.loss), "correct/y": pytest.approx(2 * evaluation.loss)}


def test_a_model_with_fewer_outputs_than_labels_is_refused(gpt2_of: Make) -> None:
    with pytest.raises(ConfigError, match="the model gives 2 numbers for a token, and there are 3 labels"):
        evaluate(gpt2_of(num_labels=2), in_pieces(drawn(), 3), label_loss(["x", "y", "z"]))
