"""Compiled training: one piece of code for a whole run, the same numbers, and a model that stays what it was."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.compiling import CompiledLoss, How, keep_on_disk, worth_compiling
from trainwell.data.batches import Batch, MicroBatch, Rows, cut
from trainwell.errors import ConfigError
from trainwell.evaluate import evaluate
from trainwell.generate import generate
from trainwell.model.decoder import Decoder
from trainwell.model.gpt2 import GPT2
from trainwell.model.llama import Llama
from trainwell.model.loss import Loss, head_loss, label_loss, token_loss, with_parts, z_loss
from trainwell.trainer import Trainer

Make = Callable[..., GPT2]
CPU = torch.device("cpu")
LOSSES: dict[str, tuple[Loss, bool]] = {
    "tokens": (token_loss, True),
    "head": (head_loss, False),
    "z": (z_loss(0.1), True),
    "z by the head": (z_loss(0.1, chunk=70), False),
    "labels": (label_loss(["a", "b"]), True),
}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # torch looks at it itself, and hides what that says
]


class Counting:
    """A backend that runs what it is given as it is, and counts what that was."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def broken(_graph: Any, _inputs: Any) -> Any:
    raise RuntimeError("no compiler on this ship\nSet TORCH_LOGS for more")


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend() -> Counting:
    return Counting()


def llama() -> Llama:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "num_layers": 3,
        "num_heads": 2,
        "num_kv_heads": 1,
        "width": 16,
        "head_dim": 8,
        "mlp_width": 24,
    }
    return Llama(vocab_size=19, seq_len=12, **shape)


def drawn(seed: int, rows: int = 2, length: int = 12, ids: int = 19, *, packed: bool = False) -> Rows:
    tokens = torch.randint(ids, (rows, length + 1), generator=Generator().manual_seed(seed))
    documents = (torch.arange(length) // 5).expand(rows, length) if packed else None
    return Rows(tokens[:, :-1], tokens[:, 1:], documents)


def looked_at(loss: Loss, model: nn.Module, rows: Rows) -> tuple[Tensor, ...]:
    """The loss, its parts and the gradients, dropout seeded."""
    torch.manual_seed(3)
    value, parts = with_parts(loss(model, rows))
    return value, *parts.values(), *torch.autograd.grad(value, list(model.parameters()))


def ramped(step: int) -> Batch:
    """Two rows, three rows, four rows and so on, two at a time."""
    inputs, targets, _ = drawn(step, 2 + step)
    return Batch(cut(inputs, targets, 2, CPU), targets.numel(), 0.0)


def trained(model: Decoder, loss: Loss) -> list[float]:
    """The losses of a few steps, the rate and the batch other at each, with all that looks at a model in between."""
    trainer = Trainer(
        model,
        torch.optim.AdamW(model.parameters(), fused=True),
        ramped,
        schedules={"lr": lambda step: 1e-3 / (1 + step)},
        loss=loss,
        seed=7,
    )
    found = []
    for result in trainer.steps(4):
        found += [float(result.loss), float(result.grad_norm)]
        rows = drawn(99, rows=1 + result.step, length=7)
        found.append(evaluate(model, lambda rows=rows: [MicroBatch(rows.inputs, rows.targets, 0)], loss).loss)  # type: ignore[misc]
        found += generate(model, [1, 2], max_tokens=3)
    return found


@pytest.mark.parametrize("how", [True, "blocks"])
def test_a_run_is_compiled_once_and_trains_as_without(gpt2_of: Make, backend: Counting, how: How) -> None:
    model = gpt2_of(num_layers=3, dropout=0.2)
    plain = trained(copy.deepcopy(model), token_loss)
    assert trained(model, CompiledLoss(token_loss, model, how, one_graph=True, backend=backend)) == plain
    assert backend.graphs == 1


@pytest.mark.parametrize("how", [True, "blocks"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_graph_and_gives_what_it_gave(gpt2_of: Make, backend: Counting, name: str, how: How) -> None:
    (loss, one_graph), model = LOSSES[name], gpt2_of(dropout=0.2)
    compiled = CompiledLoss(loss, model, how, one_graph=one_graph, backend=backend)
    for seed in range(2):
        rows = drawn(seed, ids=2)
        expected = looked_at(loss, copy.deepcopy(model), rows)
        assert all(map(torch.equal, looked_at(compiled, model, rows), expected))
    assert backend.graphs == 1


@pytest.mark.parametrize("how", [True, "blocks"])
def test_documents_in_a_row_stay_apart_in_every_architecture(backend: Counting, how: How) -> None:
    model, rows = llama(), drawn(1, packed=True)
    expected = looked_at(token_loss, copy.deepcopy(model), rows)
    assert not torch.equal(expected[0], token_loss(model, drawn(1)))
    compiled = CompiledLoss(token_loss, model, how, one_graph=True, backend=backend)
    for found, plain in zip(looked_at(compiled, model, rows), expected, strict=True):
        torch.testing.assert_close(found, plain)
    assert backend.graphs == 1


@pytest.mark.parametrize("how", [True, "blocks"])
def test_blocks_that_are_computed_again_drop_the_same(gpt2_of: Make, how: How) -> None:
    model, rows = gpt2_of(dropout=0.2), drawn(2)
    expected = looked_at(token_loss, copy.deepcopy(model), rows)
    model.recompute = True
    compiled = CompiledLoss(token_loss, model, how, one_graph=True, backend="aot_eager")  # `eager` alone draws anew
    for found, plain in zip(looked_at(compiled, model, rows), expected, strict=True):
        torch.testing.assert_close(found, plain)


def test_micro_batches_of_several_widths_share_their_code(gpt2_of: Make, backend: Counting) -> None:
    model = gpt2_of()
    compiled = CompiledLoss(token_loss, model, one_graph=True, shapes_vary=True, backend=backend)
    for length in (4, 8, 12):
        rows = drawn(length, rows=3, length=length)
        torch.testing.assert_close(looked_at(compiled, model, rows), looked_at(token_loss, model, rows))
    assert backend.graphs == 1


def test_a_model_in_blocks_keeps_its_names_and_its_copies_are_their_own(gpt2_of: Make, backend: Counting) -> None:
    model, rows = gpt2_of(), drawn(3)
    names, kind = list(model.state_dict()), type(model.h[0])
    CompiledLoss(token_loss, model, "blocks", one_graph=True, backend=backend)
    assert list(model.state_dict()) == names
    assert isinstance(model.h[1], kind)
    other: Any = copy.deepcopy(model)
    with torch.no_grad():
        other.h[0].mlp.c_fc.weight.zero_()
        assert not torch.equal(other(rows.inputs), model(rows.inputs))


def test_a_model_without_blocks_is_compiled_whole(backend: Counting) -> None:
    model = nn.Sequential(nn.Embedding(19, 8), nn.Linear(8, 19))
    compiled = CompiledLoss(token_loss, model, "blocks", one_graph=False, backend=backend)
    assert all(map(torch.equal, looked_at(compiled, model, drawn(4)), looked_at(token_loss, model, drawn(4))))
    assert backend.graphs == 1


def test_another_model_is_called_as_it_is(gpt2_of: Make, backend: Counting) -> None:
    model, other = gpt2_of(), gpt2_of(seed=1)
    compiled = CompiledLoss(token_loss, model, one_graph=True, backend=backend)
    assert compiled(other, drawn(5)) == token_loss(other, drawn(5))
    assert backend.graphs == 0


def test_preparing_compiles_and_leaves_no_trace(gpt2_of: Make, backend: Counting) -> None:
    model, rows = gpt2_of(dropout=0.2).eval(), drawn(6)
    compiled = CompiledLoss(token_loss, model, one_graph=True, backend=backend)
    before = torch.get_rng_state()
    compiled.prepare(MicroBatch(rows.inputs, rows.targets, 0), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.grad is None for tensor in model.parameters())
    assert not model.training
    with torch.autocast("cpu", torch.bfloat16):
        compiled(model.train(), rows)
    assert backend.graphs == 1


@pytest.mark.parametrize("how", [True, "blocks"])
def test_what_cannot_be_compiled_is_one_message(gpt2_of: Make, how: How) -> None:
    model, rows = gpt2_of(), drawn(7)
    compiled = CompiledLoss(token_loss, model, how, one_graph=True, backend=broken)
    with pytest.raises(
        ConfigError, match=r"^compile: .*no compiler on this ship; give compile false to train without$"
    ):
        compiled.prepare(MicroBatch(rows.inputs, rows.targets, 0), None)


@pytest.mark.parametrize("how", [True, "blocks"])
def test_what_need_not_be_compiled_is_trained_without_after_a_word(gpt2_of: Make, how: How) -> None:
    model, rows, said = gpt2_of(dropout=0.2), drawn(7), list[str]()
    expected = looked_at(token_loss, copy.deepcopy(model), rows)
    compiled = CompiledLoss(token_loss, model, how, one_graph=True, say=said.append, backend=broken)
    for _ in range(2):
        assert all(map(torch.equal, looked_at(compiled, model, rows), expected))
    (line,) = said
    assert line.startswith("torch could not compile the model, which is trained without: ")
    assert line.endswith("no compiler on this ship")


@pytest.mark.parametrize(
    ("steps", "seconds", "gain", "compiling", "pays"),
    [
        (100_000, 0.25, 1.3, 60, True),  # saves 5,769 s
        (2000, 0.25, 1.3, 60, False),  # saves 115 s, and 120 are asked for
        (2100, 0.25, 1.3, 60, True),
        (10**6, 1.0, 1.0, 20, False),
        (10**6, 1.0, 0.9, 20, False),
        (0, 1.0, 2.0, 0, False),
    ],
)
def test_compiling_is_worth_it_when_it_is_paid_back_twice(
    steps: int, seconds: float, gain: float, compiling: float, pays: bool
) -> None:
    assert worth_compiling(steps, seconds, gain, compiling) == pays


@given(st.integers(0, 10**6), st.floats(0, 100), st.floats(0.5, 4), st.floats(0.1, 1000))
def test_no_run_shorter_than_compiling_is_compiled(steps: int, seconds: float, gain: float, compiling: float) -> None:
    if steps * seconds <= compiling:
        assert not worth_compiling(steps, seconds, gain, compiling)


def test_compiled_code_is_kept_in_the_cache_unless_told_where(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_on_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_on_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(own_folders / "cache" / "compiled")
    assert torch._inductor.config.fx_graph_cache


@pytest.mark.slow
def test_a_missing_compiler_is_one_message_before_step_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainwell", "train", "demo", "--compile", "true", "--duration", "2"]
    own = {
        "CXX": "/nowhere/c++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept"),
        "TRAINWELL_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "compiler" in done.stderr
    assert done.stderr.rstrip().endswith("give compile false to train without")
    assert "step    0" not in done.stdout
