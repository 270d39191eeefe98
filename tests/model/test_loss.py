"""The loss is a sum over targets, so that how rows are put together cannot change it; the chunked one is the same."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from trainwell.compiling import Compiled
from trainwell.model.loss import head_loss, label_loss, token_loss, with_parts

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = 7
LABELS = ["ham", "spam", "eggs"]


@dataclass
class Rows:
    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None


class Lookup(nn.Module):
    """A model whose logits are rows of a table: what follows an id depends on that id alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


class WithLogits(Lookup):
    """The same, with the logits in an object as Hugging Face models have them."""

    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(ids), loss="not this one")


def drawn(seed: int, rows: int, length: int, share_ignored: float) -> Rows:
    generator = Generator().manual_seed(seed)
    inputs, targets = torch.randint(IDS, (2, rows, length), generator=generator)
    targets[torch.rand((rows, length), generator=generator) < share_ignored] = -100
    return Rows(inputs, targets)


def table(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((IDS, IDS), generator=Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ROWS = st.builds(
    drawn, st.integers(0, 999), st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.9, 1.0])
)


@given(ROWS)
@examples(max_examples=25)
def test_the_loss_is_the_sum_of_surprises_at_the_targets_that_count(rows: Rows) -> None:
    log_probabilities = table().log_softmax(dim=1)
    pairs = zip(rows.inputs.flatten().tolist(), rows.targets.flatten().tolist(), strict=True)
    surprise = -sum(log_probabilities[given, asked].item() for given, asked in pairs if asked != -100)
    assert token_loss(Lookup(table()), rows).item() == pytest.approx(surprise, rel=1e-12, abs=1e-12)


@given(ROWS, st.data())
@examples(max_examples=25)
def test_cutting_rows_apart_changes_nothing(rows: Rows, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows.inputs)))
    model = Lookup(table())
    parts = [Rows(rows.inputs[cut], rows.targets[cut]) for cut in (slice(at), slice(at, None))]
    cut_apart = sum((token_loss(model, part) for part in parts), torch.zeros(()))
    torch.testing.assert_close(cut_apart, token_loss(model, rows), rtol=1e-12, atol=1e-12)


@given(ROWS)
@examples(max_examples=30)
def test_gradients_are_those_of_torchs_mean_times_the_number_of_targets(rows: Rows) -> None:
    ours, torchs = Lookup(table()), Lookup(table())
    token_loss(ours, rows).backward()
    count = (rows.targets != -100).sum()
    if count == 0:
        assert ours.table.grad is not None
        assert not ours.table.grad.any()
        return
    logits = torchs(rows.inputs)
    (cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), ignore_index=-100) * count).backward()
    torch.testing.assert_close(ours.table.grad, torchs.table.grad, rtol=1e-12, atol=1e-12)


def test_rows_without_a_target_cost_nothing_and_are_not_nan() -> None:
    loss = token_loss(Lookup(table()), Rows(torch.zeros((2, 3), dtype=torch.int64), torch.full((2, 3), -100)))
    assert loss.item() == 0.0


def test_logits_may_come_in_an_object() -> None:
    rows = drawn(1, 3, 4, 0.2)
    assert torch.equal(token_loss(WithLogits(table()), rows), token_loss(Lookup(table()), rows))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_widened_before_the_sum(narrow: torch.dtype) -> None:
    rows = drawn(2, 5, 40, 0.1)
    loss = token_loss(Lookup(table(dtype=narrow)), rows)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, token_loss(Lookup(table(dtype=narrow).float()), rows))


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_wide_logits_keep_their_type(wide: torch.dtype) -> None:
    assert token_loss(Lookup(table(dtype=wide)), drawn(3, 2, 3, 0.0)).dtype == wide


def test_a_loss_without_parts_has_none() -> None:
    value = torch.ones(())
    parts = {"ce": torch.zeros(())}
    assert with_parts(value) == (value, {})
    assert with_parts((value, parts)) == (value, parts)


Make = Callable[..., Any]


def asked(seed: int, rows: int, length: int, share_ignored: float, packed: bool = False) -> Rows:
    """Ids and targets for the models of 19 ids, in documents where packed."""
    generator = Generator().manual_seed(seed)
    inputs, targets = torch.randint(19, (2, rows, length), generator=generator)
    targets[torch.rand((rows, length), generator=generator) < share_ignored] = -100
    documents = (torch.rand((rows, length), generator=generator) < 0.3).cumsum(dim=1)
    return Rows(inputs, targets, documents if packed else None)


ASKED = st.builds(
    asked,
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.booleans(),
)


def loss_and_gradients(model: nn.Module, loss: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    model.zero_grad()
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters()]


@given(rows=ASKED, tie_head=st.booleans(), chunk=st.sampled_from([1, 19, 70, 1 << 25]))
@examples(max_examples=40)
def test_the_chunked_loss_and_its_gradients_are_those_of_the_loss(
    either_of: Make, rows: Rows, tie_head: bool, chunk: int
) -> None:
    model = either_of(dtype=torch.float64, tie_head=tie_head)
    whole = loss_and_gradients(model, token_loss(model, rows))
    chunked = loss_and_gradients(model, head_loss(model, rows, chunk=chunk))
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)


@given(ASKED, st.data())
@examples(max_examples=20)
def test_no_gradient_of_the_chunked_loss_depends_on_how_rows_are_cut_apart(
    either_of: Make, rows: Rows, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(rows.inputs)))
    model = either_of(dtype=torch.float64)
    together = loss_and_gradients(model, head_loss(model, rows))
    model.zero_grad()
    for cut in (slice(at), slice(at, None)):
        head_loss(model, asked_in(rows, cut)).backward()
    torch.testing.assert_close([weight.grad for weight in model.parameters()], together[1], rtol=1e-12, atol=1e-12)


def asked_in(rows: Rows, cut: slice) -> Rows:
    return Rows(rows.inputs[cut], rows.targets[cut], None if rows.documents is None else rows.documents[cut])


def test_without_a_target_the_chunked_loss_is_zero_and_so_are_gradients_that_exist(either_of: Make) -> None:
    model = either_of()
    loss, gradients = loss_and_gradients(model, head_loss(model, asked(0, 2, 5, 1.0)))
    assert loss.item() == 0.0
    for gradient in gradients:
        assert gradient is not None
        assert not gradient.any()


class Infinite(nn.Module):
    """A body whose output cannot be used at the second position, as padding may be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3, 4))
        self.lm_head = nn.Linear(4, 19, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.weight * torch.tensor([1.0, float("inf"), 1.0])[None, :, None]


def test_a_position_without_a_target_never_reaches_the_head() -> None:
    model = Infinite()
    loss = head_loss(model, Rows(torch.zeros((1, 3), dtype=torch.int64), torch.tensor([[4, -100, 5]])))
    loss.backward()
    assert loss.isfinite()
    assert model.lm_head.weight.grad is not None
    assert model.lm_head.weight.grad.isfinite().all()


def test_the_chunked_loss_never_holds_all_logits(either_of: Make, largest: Callable[[], Any]) -> None:
    model = either_of(vocab_size=300)
    rows = asked(0, 20, 12, 0.0)
    with largest() as whole:
        token_loss(model, rows).backward()
    with largest() as chunked:
        head_loss(model, rows, chunk=10 * 300).backward()
    assert whole.numbers == 20 * 12 * 300
    assert chunked.numbers < whole.numbers / 4


@pytest.mark.parametrize("frozen", ["head", "body"])
def test_what_is_frozen_gets_no_gradient_and_changes_none(either_of: Make, frozen: str) -> None:
    rows = asked(3, 3, 12, 0.3)
    model = either_of(dtype=torch.float64, tie_head=False)
    for name, weight in model.named_parameters():
        weight.requires_grad = name.startswith("lm_head") is (frozen == "body")
    whole = loss_and_gradients(model, token_loss(model, rows))
    chunked = loss_and_gradients(model, head_loss(model, rows))
    assert sum(gradient is not None for gradient in chunked[1]) in (1, len(chunked[1]) - 1)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)


def test_evaluating_the_chunked_loss_builds_no_graph(either_of: Make) -> None:
    model, rows = either_of(), asked(4, 2, 12, 0.3)
    with torch.no_grad():
        loss = head_loss(model, rows)
    assert not loss.requires_grad
    assert torch.equal(loss, head_loss(model, rows).detach())


def test_a_scaled_loss_has_gradients_scaled_to_the_bit(either_of: Make) -> None:
    model, rows = either_of(), asked(5, 2, 12, 0.3)
    _, plain = loss_and_gradients(model, head_loss(model, rows))
    _, scaled = loss_and_gradients(model, head_loss(model, rows) * 2.0**10)
    for gradient, by_scale in zip(plain, scaled, strict=True):
        assert gradient is not None
        assert by_scale is not None
        assert torch.equal(gradient * 2.0**10, by_scale)


def test_the_chunked_loss_can_be_followed_backward_twice(either_of: Make) -> None:
    model, rows = either_of(dtype=torch.float64), asked(6, 2, 12, 0.3)
    loss = head_loss(model, rows)
    loss.backward(retain_graph=True)
    once = [weight.grad.clone() for weight in model.parameters()]
    loss.backward()
    twice = [weight.grad / 2 for weight in model.parameters()]
    torch.testing.assert_close(twice, once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("as_weights", [False, True])
def test_in_a_narrow_type_the_chunked_loss_is_as_close_to_the_truth_as_the_loss(
    either_of: Make, narrow: torch.dtype, as_weights: bool
) -> None:
    rows = asked(7, 4, 12, 0.3)
    exact = either_of(dtype=torch.float64)
    truth, true_gradients = loss_and_gradients(exact, token_loss(exact, rows))
    model = either_of(dtype=narrow if as_weights else torch.float32)

    def errors(of: Callable[..., Tensor]) -> Tensor:
        with torch.autocast("cpu", narrow, enabled=not as_weights):
            loss = of(model, rows)
        assert loss.dtype == torch.float32
        found, gradients = loss_and_gradients(model, loss)
        distances = [(found - truth).abs() / truth]
        for ours, true in zip(gradients, true_gradients, strict=True):
            assert ours is not None
            assert true is not None
            distances.append((ours.double() - true).norm() / true.norm())
        return torch.stack(distances)

    whole, chunked = errors(token_loss), errors(lambda *parts: head_loss(*parts, chunk=5 * 19))
    assert chunked[0] < whole[0] + 1e-6
    assert (chunked < 1.2 * whole + 1e-3).all()


def test_autocast_leaves_float64_alone_in_both_losses(either_of: Make) -> None:
    model, rows = either_of(dtype=torch.float64), asked(7, 4, 12, 0.3)
    for loss in (token_loss, head_loss):
        with torch.autocast("cpu", torch.bfloat16):
            narrowed = loss(model, rows)
        assert narrowed.dtype == torch.float64
        torch.testing.assert_close(narrowed, loss(model, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_compiled_a_model_has_the_same_losses_and_stays_eager_for_others(either_of: Make) -> None:
    model = either_of(dtype=torch.float64)
    compiled: Any = Compiled(model, backend="aot_eager")  # captured whole, but no C++ is compiled
    for packed in (False, True):
        rows = asked(8, 3, 12, 0.3, packed)
        for of in (token_loss, head_loss):
            eager = loss_and_gradients(model, of(model, rows))
            fused = loss_and_gradients(model, of(compiled, rows))
            torch.testing.assert_close(fused, eager, rtol=1e-12, atol=1e-12)
    model.eval()
    assert not compiled.training
    assert compiled.lm_head is model.lm_head
    assert not any("orig_mod" in name for name, _ in model.named_parameters())


def test_documents_go_along_where_there_are_any(either_of: Make) -> None:
    model = either_of(dtype=torch.float64)
    rows = asked(9, 2, 12, 0.0, packed=True)
    apart = Rows(rows.inputs, rows.targets)
    for of in (token_loss, head_loss):
        assert abs(of(model, rows) - of(model, apart)) > 1e-6
    assert token_loss(Lookup(table()), drawn(0, 2, 3, 0.0)) > 0  # a model that knows of none is not asked to


def classified(seed: int, rows: int) -> Rows:
    """Texts of three to twelve ids, filled up with zeros, whose class is asked for at their last id."""
    generator = Generator().manual_seed(seed)
    inputs = torch.randint(1, 19, (rows, 12), generator=generator)
    targets = torch.full((rows, 12), -100)
    for row, length in enumerate(torch.randint(3, 13, (rows,), generator=generator).tolist()):
        inputs[row, length:] = 0
        targets[row, length - 1] = int(torch.randint(3, (), generator=generator))
    return Rows(inputs, targets)


@given(st.integers(0, 99), st.integers(1, 9), st.booleans())
@examples(max_examples=10)
def test_a_classifiers_loss_is_the_token_loss_and_counts_what_is_right(
    either_of: Make, seed: int, rows: int, training: bool
) -> None:
    model = either_of(num_labels=3, seed=seed % 5).train(training)
    batch = classified(seed, rows)
    value, parts = with_parts(label_loss(LABELS)(model, batch))
    assert torch.equal(value, token_loss(model, batch))
    counts = dict.fromkeys([f"{kind}/{name}" for name in LABELS for kind in ("correct", "of")], 0)
    for row, (at, label) in zip(batch.inputs, last_of(batch.targets), strict=True):
        likeliest = int(model(row[None])[0, at].argmax())
        counts[f"of/{LABELS[label]}"] += 1
        counts[f"correct/{LABELS[label]}"] += likeliest == label
    assert parts["accuracy"] == sum(counts[f"correct/{name}"] for name in LABELS)
    assert {name: part.item() for name, part in parts.items() if name != "accuracy"} == ({} if training else counts)
    assert not any(part.requires_grad for part in parts.values())


def last_of(targets: Tensor) -> list[tuple[int, int]]:
    found = [next((at, label) for at, label in enumerate(row) if label != -100) for row in targets.tolist()]
    assert ((targets != -100).sum(dim=1) == 1).all()
    return found


def test_what_follows_the_last_token_of_a_text_changes_nothing(either_of: Make) -> None:
    model = either_of(num_labels=3, dtype=torch.float64)
    batch = classified(1, 8)
    filled_otherwise = Rows(torch.where(batch.inputs == 0, 7, batch.inputs), batch.targets)
    loss = label_loss(LABELS)
    torch.testing.assert_close(
        loss_and_gradients(model, with_parts(loss(model, batch))[0])[0],
        loss_and_gradients(model, with_parts(loss(model, filled_otherwise))[0])[0],
        rtol=1e-12,
        atol=1e-12,
    )
