"""Gradients do not depend on how a batch is split, padded, bucketed or packed: float64, to 1e-12."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainwell.data.batches import Batches
from trainwell.data.examples import IGNORED, Example, ExampleRows
from trainwell.model.gpt2 import GPT2, init_torch
from trainwell.model.llama import Llama, init_llama_torch
from trainwell.model.loss import Loss, head_loss, token_loss
from trainwell.optim.batch_plan import BatchPlan
from trainwell.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, SEQ_LEN = 23, 40
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "seq_len": SEQ_LEN, "num_layers": 2, "num_heads": 2, "width": 16}


def make_model(arch: str) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    if arch == "gpt2":
        gpt2 = GPT2(**SHAPE)
        init_torch(gpt2, generator)
        return gpt2.double()
    llama = Llama(**SHAPE, num_kv_heads=1, head_dim=8, mlp_width=24, qk_norm=True)
    init_llama_torch(llama, generator)
    return llama.double()


def example(length: int, mask: int) -> Example:
    """Ids that tell examples apart, and targets where `mask` has a bit; the last position always has one."""
    places = np.arange(length)
    ids = (places * 7 + length + mask) % VOCAB
    learned = (mask >> (places % 16)) & 1
    targets = np.where(learned, (ids + 1) % VOCAB, IGNORED).astype(np.int32)
    targets[-1] = ids[-1]
    return Example(ids, targets, held_out=False)


def silent(length: int) -> Example:
    """An example without any target; laid out last, it has a micro-batch of its own."""
    return Example(np.arange(length) % VOCAB, np.full(length, IGNORED, dtype=np.int32), held_out=False)


def gradients(
    arch: str, examples: Sequence[Example], loss: Loss, *, micro_batch: int, buckets: bool = False, packed: bool = False
) -> tuple[float, list[torch.Tensor]]:
    rows = ExampleRows(examples, seq_len=SEQ_LEN, pad=0, vocab_size=VOCAB, packed=packed)
    batches = Batches(
        rows,
        BatchPlan(len(rows), SEQ_LEN),
        micro_batch=micro_batch,
        seed=1,
        order="sequential",
        buckets=buckets,
        device=torch.device("cpu"),
    )
    model = make_model(arch)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), batches, schedules={}, loss=loss)
    value = trainer.backward()
    return float(value), [tensor.grad for tensor in model.parameters() if tensor.grad is not None]


ragged = st.lists(st.builds(example, st.integers(1, SEQ_LEN), st.integers(0, 2**16 - 1)), min_size=1, max_size=7)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("loss", [token_loss, head_loss])
@settings(max_examples=8)
@given(examples=ragged, micro_batch=st.integers(1, 4), quiet=st.integers(0, SEQ_LEN))
def test_splitting_padding_bucketing_and_packing_change_no_gradient(
    arch: str, loss: Loss, examples: list[Example], micro_batch: int, quiet: int
) -> None:
    value, expected = gradients(arch, examples, token_loss, micro_batch=len(examples))
    with_silence = [*examples, silent(quiet)] if quiet else examples
    for ways in (
        {"examples": examples, "buckets": False},
        {"examples": with_silence, "buckets": True},
        {"examples": with_silence, "packed": True},
        {"examples": with_silence, "packed": True, "buckets": True},
    ):
        other, found = gradients(arch, loss=loss, micro_batch=micro_batch, **ways)  # type: ignore[arg-type]
        assert other == pytest.approx(value, abs=1e-12, rel=1e-12)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
