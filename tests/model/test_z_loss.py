"""The z-loss: against its formula written out in float64, whole and in chunks, in training and outside of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.build import build
from trainwell.compiling import Compiled
from trainwell.errors import ConfigError
from trainwell.evaluate import evaluate
from trainwell.fit import fit
from trainwell.model.loss import Loss, Parts, head_loss, token_loss, with_parts, z_loss
from trainwell.run import Run
from trainwell.runs.metrics import MetricsFile

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Any]
IDS = 19
"""Of the models of this folder."""


@dataclass
class Rows:
    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None

    def __getitem__(self, cut: slice) -> "Rows":
        return Rows(self.inputs[cut], self.targets[cut], None if self.documents is None else self.documents[cut])


def asked(seed: int, rows: int, length: int, share_ignored: float, packed: bool = False) -> Rows:
    generator = Generator().manual_seed(seed)
    inputs, targets = torch.randint(IDS, (2, rows, length), generator=generator)
    targets[torch.rand((rows, length), generator=generator) < share_ignored] = -100
    documents = (torch.rand((rows, length), generator=generator) < 0.3).cumsum(dim=1)
    return Rows(inputs, targets, documents if packed else None)


ROWS = st.builds(
    asked,
    st.integers(0, 999),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.booleans(),
)
FORMS = st.sampled_from([None, 1, 70, 1 << 25])
WEIGHTS = st.sampled_from([1e-4, 0.1, 3.0])


def written_out(model: nn.Module, rows: Rows, weight: float) -> tuple[Tensor, Parts]:
    """The formula, a target at a time: log Z is the logarithm of a sum of exponentials."""
    known = {} if rows.documents is None else {"documents": rows.documents}
    logits = model(rows.inputs, **known).flatten(0, 1)
    entropy = z = logits.sum() * 0
    for row, target in zip(logits, rows.targets.flatten().tolist(), strict=True):
        if target != -100:
            log_z = row.exp().sum().log()
            entropy = entropy + log_z - row[target]
            z = z + weight * log_z**2
    return entropy + z, {"ce": entropy, "z": z}


def looked_at(model: nn.Module, loss: Any) -> tuple[Tensor, Parts, list[Tensor | None]]:
    """The loss, its parts and the gradients of all weights."""
    value, parts = with_parts(loss)
    model.zero_grad()
    value.backward()
    detached = {name: part.detach() for name, part in parts.items()}
    return value.detach(), detached, [weight.grad for weight in model.parameters()]


@given(rows=ROWS, weight=WEIGHTS, chunk=FORMS, tie_head=st.booleans())
@examples(max_examples=40)
def test_loss_parts_and_gradients_are_those_of_the_formula(
    either_of: Make, rows: Rows, weight: float, chunk: int | None, tie_head: bool
) -> None:
    model = either_of(dtype=torch.float64, tie_head=tie_head)
    expected = looked_at(model, written_out(model, rows, weight))
    found = looked_at(model, z_loss(weight, chunk=chunk)(model, rows))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(ROWS, FORMS, st.data())
@examples(max_examples=20)
def test_how_rows_are_cut_apart_changes_nothing(
    either_of: Make, rows: Rows, chunk: int | None, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(rows.inputs)))
    model, loss = either_of(dtype=torch.float64), z_loss(0.5, chunk=chunk)
    value, parts, gradients = looked_at(model, loss(model, rows))
    model.zero_grad()
    pieces = [with_parts(loss(model, rows[cut])) for cut in (slice(at), slice(at, None))]
    for piece, _ in pieces:
        piece.backward()
    sums = (
        sum(piece.detach() for piece, _ in pieces),
        {name: sum(p[name].detach() for _, p in pieces) for name in parts},
    )
    found = [weight.grad for weight in model.parameters()]
    torch.testing.assert_close((*sums, found), (value, parts, gradients), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 70])
def test_the_parts_cannot_be_differentiated_and_add_up_to_the_loss(either_of: Make, chunk: int | None) -> None:
    model, rows = either_of(), asked(1, 3, 12, 0.3)
    value, parts = with_parts(z_loss(0.1, chunk=chunk)(model, rows))
    assert list(parts) == ["ce", "z"]
    assert not any(part.requires_grad for part in parts.values())
    assert torch.equal(value, parts["ce"] + parts["z"])
    plain = token_loss(model, rows) if chunk is None else head_loss(model, rows, chunk=chunk)
    assert torch.equal(parts["ce"], plain), "the cross-entropy is the one there was, to the bit"


@pytest.mark.parametrize("chunk", [None, 70])
def test_outside_of_training_it_is_the_cross_entropy_and_so_are_bits_per_byte(
    either_of: Make, chunk: int | None
) -> None:
    model, batches = either_of(), [asked(seed, 3, 12, 0.3) for seed in range(3)]
    plain: Loss = token_loss if chunk is None else partial(head_loss, chunk=chunk)
    found: Any = evaluate(model, lambda: batches, z_loss(9.0, chunk=chunk), bytes_per_token=3.0)  # type: ignore[arg-type, return-value]
    assert found == evaluate(model, lambda: batches, plain, bytes_per_token=3.0)  # type: ignore[arg-type, return-value]
    assert found.parts == {}


class Infinite(nn.Module):
    """A body whose output cannot be used at the second position, as padding may be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3, 4))
        self.lm_head = nn.Linear(4, IDS, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.weight * torch.tensor([1.0, float("inf"), 1.0])[None, :, None]


def test_a_position_without_a_target_never_reaches_the_head() -> None:
    model = Infinite()
    rows = Rows(torch.zeros((1, 3), dtype=torch.int64), torch.tensor([[4, -100, 5]]))
    value, parts, _ = looked_at(model, z_loss(0.1, chunk=70)(model, rows))
    assert value.isfinite()
    assert parts["z"] > 0
    assert model.lm_head.weight.grad is not None
    assert model.lm_head.weight.grad.isfinite().all()


@pytest.mark.parametrize("chunk", [None, 70])
def test_without_a_target_all_of_it_is_zero(either_of: Make, chunk: int | None) -> None:
    model = either_of()
    value, parts, gradients = looked_at(model, z_loss(0.1, chunk=chunk)(model, asked(0, 2, 5, 1.0)))
    assert (value.item(), parts["ce"].item(), parts["z"].item()) == (0, 0, 0)
    assert not any(gradient is not None and gradient.any() for gradient in gradients)


def test_it_draws_log_z_to_zero_without_touching_what_is_likely() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.full((1, IDS), 5.0))

        def forward(self, ids: Tensor) -> Tensor:
            return self.logits[ids]

    model = Table()
    rows = Rows(torch.zeros((1, IDS), dtype=torch.int64), torch.arange(IDS)[None])  # each id once: nothing to learn
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.5), z_loss(0.1)
    for _ in range(200):
        optimizer.zero_grad()
        with_parts(loss(model, rows))[0].backward()
        optimizer.step()
    assert abs(model.logits.logsumexp(dim=1).item()) < 1e-3
    assert (model.logits.max() - model.logits.min()).item() < 1e-5


def test_in_chunks_it_never_holds_all_logits(either_of: Make, largest: Callable[[], Any]) -> None:
    model, rows = either_of(vocab_size=300), asked(0, 20, 12, 0.0)
    with largest() as seen:
        looked_at(model, z_loss(0.1, chunk=10 * 300)(model, rows))
    assert seen.numbers < 20 * 12 * 300 / 4


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_under_autocast_both_forms_are_float32_and_near_the_truth(either_of: Make, narrow: torch.dtype) -> None:
    rows = asked(7, 4, 12, 0.3)
    exact = either_of(dtype=torch.float64)
    truth = looked_at(exact, written_out(exact, rows, 0.1))
    model = either_of()
    for chunk in (None, 70):
        with torch.autocast("cpu", narrow):
            loss = z_loss(0.1, chunk=chunk)(model, rows)
        value, parts, gradients = looked_at(model, loss)
        assert value.dtype == parts["ce"].dtype == parts["z"].dtype == torch.float32
        torch.testing.assert_close((value.double(), parts["z"].double()), (truth[0], truth[1]["z"]), rtol=0.02, atol=0)
        for ours, true in zip(gradients, truth[2], strict=True):
            assert ours is not None
            assert true is not None
            assert (ours.double() - true).norm() < 0.1 * true.norm() + 1e-3


@pytest.mark.parametrize("keys", [{}, {"data": {"tokenizer": "gpt2"}}], ids=["whole", "in chunks"])
def test_a_run_records_both_parts_and_validates_by_the_cross_entropy(
    build_tiny: Callable[..., Run], keys: dict[str, Any]
) -> None:
    run = fit(build_tiny(run_dir="runs/z", duration=3, optim={"z_loss": 0.1}, eval={"every": 1}, **keys))
    found = MetricsFile(run.run_dir.metrics_jsonl).read()
    assert len(found.train) == 3
    for row in found.train:
        assert row["train/z"] > 0
        assert row["train/loss"] == pytest.approx(row["train/ce"] + row["train/z"], rel=1e-6)
    assert run.val is not None
    plain = evaluate(run.model, run.val, head_loss if keys else token_loss, bytes_per_token=run.bytes_per_token)
    assert (found.val[-1]["val/loss"], found.val[-1]["val/bpb"]) == (plain.loss, plain.bits_per_byte)
    assert not any(name in found.val[-1] for name in ("val/ce", "val/z"))


def test_without_a_weight_a_run_is_the_one_it_was_and_records_no_parts(
    build_tiny: Callable[..., Run], bits_of: Callable[[Any], Any]
) -> None:
    runs = [fit(build_tiny(run_dir=f"runs/{name}", duration=3, **keys)) for name, keys in NONE.items()]
    assert len({str(bits_of(run.trainer.state_dict())) for run in runs}) == 1
    assert all("train/z" not in row for row in MetricsFile(runs[0].run_dir.metrics_jsonl).read().train)


NONE: dict[str, dict[str, Any]] = {"plain": {}, "zero": {"optim": {"z_loss": 0.0}}, "given": {"loss": token_loss}}


def test_a_loss_of_ones_own_is_not_added_to(build_tiny: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.z_loss: 0\.1 has no effect on a loss of your own"):
        build_tiny(loss=token_loss, optim={"z_loss": 0.1})


def test_answers_alone_count_in_the_z_loss_of_instructions(own_folders: Path) -> None:
    pairs = [{"instruction": "say it", "output": f"it is {number}"} for number in range(40)]
    Path("pairs.json").write_text(json.dumps(pairs))
    keys: dict[str, Any] = {"task": "instruct", "device": "cpu", "duration": 2, "batch_size": 4, "micro_batch": 2}
    keys |= {"data": {"path": "pairs.json", "seq_len": 256}, "model": {"num_layers": 1, "num_heads": 2, "width": 16}}
    keys |= {"eval": {"every": None}, "sample": {"every": None}, "optim": {"z_loss": 0.1}}
    with build("demo", run_dir="runs/answers", **keys) as run:
        run.trainer.model.train()
        micro = run.trainer.batches(0).micro_batches[0]
        assert 0 < (micro.targets != -100).sum() < micro.targets.numel() / 2
        value, parts = with_parts(run.loss(run.model, micro))
        expected, theirs = written_out(run.model, micro, 0.1)  # type: ignore[arg-type]
        torch.testing.assert_close((value, parts), (expected, theirs), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_compiled_it_is_the_same(either_of: Make) -> None:
    model = either_of(dtype=torch.float64)
    compiled: Any = Compiled(model, backend="aot_eager")
    rows = asked(8, 3, 12, 0.3)
    for chunk in (None, 70):
        loss = z_loss(0.1, chunk=chunk)
        eager, fused = looked_at(model, loss(model, rows)), looked_at(model, loss(compiled, rows))
        torch.testing.assert_close(fused, eager, rtol=1e-12, atol=1e-12)
    model.eval()
    assert with_parts(z_loss(0.1)(compiled, rows))[1] == {}
