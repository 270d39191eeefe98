"""What a step takes, against what torch really keeps for the backward pass of the models."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.model.gpt2 import GPT2
from trainwell.model.llama import Llama
from trainwell.model.loss import head_loss
from trainwell.optim.groups import hidden_matrices
from trainwell.planning.memory import CHUNK, MemoryEstimate, in_bytes, memory, memory_line, planned_memory
from trainwell.planning.resolve import resolve

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY, SEQ_LEN, MICRO_BATCH = 40, 64, 2
SHAPES: dict[str, dict[str, object]] = {
    "gpt2": {"arch": "gpt2"},
    "gpt2 without biases": {"arch": "gpt2", "qkv_bias": False},
    "gpt2 with norms": {"arch": "gpt2", "qk_norm": True},
    "llama": {"arch": "llama"},
    "llama with one head of keys": {"arch": "llama", "num_kv_heads": 1},
    "qwen3": {"arch": "llama", "num_kv_heads": 2, "head_dim": 32, "mlp_width": 100, "qk_norm": True},
}


def config_of(model: dict[str, object], **keys: object) -> RunConfig:
    return RunConfig.model_validate({"model": {"num_layers": 2, "num_heads": 4, "width": 64} | model} | keys)


def built(config: RunConfig, num_labels: int | None = None) -> nn.Module:
    model = config.model
    outer: dict[str, Any] = {"vocab_size": VOCABULARY, "seq_len": SEQ_LEN, "num_labels": num_labels}
    outer |= {"num_layers": model.num_layers, "num_heads": model.num_heads, "width": model.width}
    outer |= {"qkv_bias": model.has_qkv_bias, "tie_head": model.tie_head}
    if model.arch == "gpt2":
        return GPT2(qk_norm=model.qk_norm, **outer)
    inner: dict[str, Any] = {"head_dim": model.size_of_head, "mlp_width": model.width_of_mlp, "qk_norm": model.qk_norm}
    return Llama(num_kv_heads=model.kv_heads, **inner, **outer)


def kept_bytes(model: nn.Module, autocast: bool) -> int:
    """Bytes that the logits of a micro-batch leave for the backward pass, weights aside, each storage counted once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    ids = torch.randint(VOCABULARY, (MICRO_BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimate(config: RunConfig, precision: Literal["fp32", "bf16"] = "fp32", **more: Any) -> MemoryEstimate:
    return memory(config, VOCABULARY, SEQ_LEN, MICRO_BATCH, precision, **more)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_and_copies_are_what_torch_keeps_within_three_per_cent(
    shape: str, precision: Literal["fp32", "bf16"]
) -> None:
    config = config_of(SHAPES[shape])
    expected = estimate(config, precision)
    kept = kept_bytes(built(config), precision == "bf16")
    assert expected.activations + expected.copies == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_computed_again_keep_their_inputs_and_are_there_one_at_a_time(
    shape: str, precision: Literal["fp32", "bf16"]
) -> None:
    def plain(num_layers: int) -> int:
        config = config_of(SHAPES[shape] | {"num_layers": num_layers})
        return kept_bytes(built(config), precision == "bf16") - estimate(config, precision).copies

    config = config_of(SHAPES[shape] | {"num_layers": 6}, recompute=True)
    model: Any = built(config)
    model.recompute = True
    head = 2 * VOCABULARY * 64 if precision == "bf16" else 0
    left = kept_bytes(model, precision == "bf16") - head
    one_block = plain(3) - plain(2)
    entering = 4 * 64 * SEQ_LEN * MICRO_BATCH
    assert estimate(config, precision).activations == pytest.approx(left + one_block - entering, rel=0.03)
    assert left < plain(6) / 4


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_classifier_of_which_the_last_block_learns_keeps_one_block(arch: str) -> None:
    config = config_of({"arch": arch, "num_layers": 5}, optim={"train": "last-block"})
    model: Any = built(config, num_labels=3)
    model.requires_grad_(False)
    trained = [*model.blocks[-1].parameters(), *model.final_norm.parameters(), *model.lm_head.parameters()]
    for tensor in trained:
        tensor.requires_grad_(True)
    expected = estimate(config, num_labels=3)
    # the first norm need not keep its input, to which no gradient goes
    assert expected.activations == pytest.approx(kept_bytes(model, autocast=False), rel=0.05)
    assert expected.gradients == 4 * sum(tensor.numel() for tensor in trained)
    assert expected.parameters == 4 * sum(tensor.numel() for tensor in model.parameters())
    assert expected.optimizer == 2 * expected.gradients


@pytest.mark.parametrize("shape", ["gpt2", "qwen3"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_gradients_and_moments_are_those_of_the_optimizers(shape: str, name: Literal["adamw", "muon"]) -> None:
    config = config_of(SHAPES[shape], optim={"name": name})
    model = built(config)
    matrices = hidden_matrices(model, VOCABULARY) if name == "muon" else []
    rest = [tensor for tensor in model.parameters() if not any(tensor is matrix for matrix in matrices)]
    optimizers: list[Optimizer] = [torch.optim.AdamW(rest)] + ([torch.optim.Muon(matrices)] if matrices else [])
    for tensor in model.parameters():
        tensor.grad = torch.zeros_like(tensor)
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor) and value.dim()]
    expected = estimate(config)
    assert expected.optimizer == sum(value.nbytes for value in moments)
    assert expected.gradients == expected.parameters == sum(tensor.nbytes for tensor in model.parameters())


PEAK = """
import sys
from pathlib import Path

import torch

from trainwell.data.batches import MicroBatch
from trainwell.model.llama import Llama
from trainwell.model.loss import head_loss, token_loss

loss, autocast = {"head_loss": head_loss, "token_loss": token_loss}[sys.argv[1]], sys.argv[2] == "bf16"
torch.set_num_threads(1)
model = Llama(
    vocab_size=24576, seq_len=256, num_layers=4, num_heads=4, width=256, num_kv_heads=2, head_dim=64, mlp_width=1024
)


def backward(rows, length):
    ids = torch.randint(24576, (rows, length))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(model, MicroBatch(ids, ids, 0))
    value.backward()


def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


backward(1, 8)  # now the gradients are there
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = resident("VmRSS")
backward(8, 256)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read as Linux tells it")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", ["head_loss", "token_loss"])
def test_the_peak_of_a_process_is_what_was_estimated_within_ten_per_cent(
    loss: str, precision: Literal["fp32", "bf16"]
) -> None:
    shape: dict[str, object] = {"arch": "llama", "num_layers": 4, "width": 256, "num_kv_heads": 2, "mlp_width": 1024}
    config = config_of(shape, kernels="auto" if loss == "head_loss" else "reference")
    command = [sys.executable, "-c", PEAK, loss, precision]
    peaks = [int(subprocess.check_output(command, text=True, timeout=120)) for _ in range(2)]  # noise only lowers one
    expected = memory(config, 24576, 256, 8, precision)
    assert expected.of_micro_batch + expected.copies == pytest.approx(max(peaks), rel=0.1)


def test_a_chunk_is_as_large_as_the_loss_makes_it() -> None:
    assert inspect.signature(head_loss).parameters["chunk"].default == CHUNK


def test_logits_are_counted_whole_only_where_the_loss_holds_them_all() -> None:
    small, large, plain = config_of({}), config_of({"pad_vocab_to": 50304}), config_of({}, kernels="reference")
    whole = 12 * 50304 * 1024 * 16
    assert memory(small, 257, 1024, 16, "bf16").logits == 12 * 257 * 1024 * 16
    assert memory(plain, 50304, 1024, 16, "bf16").logits == whole
    assert memory(large, 50304, 1024, 16, "bf16").logits < whole / 10
    assert memory(config_of({}, task="instruct"), 257, 64, 2, "fp32").logits != 12 * 257 * 64 * 2


def test_a_larger_micro_batch_takes_more_of_what_grows_and_of_nothing_else() -> None:
    config = load("gpt2-124m")
    one, two = (memory(config, 50304, 1024, size, "bf16") for size in (16, 32))
    assert two.activations == 2 * one.activations
    assert two.total - one.total == two.of_micro_batch - one.of_micro_batch > 0


def test_computing_blocks_again_fits_a_larger_micro_batch() -> None:
    plain, again = (load("gpt2-124m", flags={"recompute": recompute}) for recompute in (False, True))
    before, after = (memory(config, 50304, 1024, 16, "bf16") for config in (plain, again))
    assert after.activations < before.activations / 4
    assert replace(after, activations=before.activations) == before


def test_dropout_keeps_a_byte_for_each_of_two_masks() -> None:
    without, with_dropout = (config_of({"dropout": dropout}) for dropout in (0.0, 0.1))
    masks = 2 * 2 * 64 * SEQ_LEN * MICRO_BATCH
    assert estimate(with_dropout).activations - estimate(without).activations == masks


def test_a_line_says_the_sum_its_assumptions_and_its_parts_largest_first() -> None:
    assert memory_line(resolve(load("demo"))) == (
        "39.7 MB in fp32 with micro-batches of 8: 26.2 MB activations, 5.15 MB AdamW, 3.16 MB head and loss, "
        "2.58 MB weights, 2.58 MB gradients; 7.73 MB on the host to save from in the background"
    )
    assert "on the host" not in str(memory_line(resolve(load("demo", flags={"checkpoint.asynchronous": False}))))


def test_what_the_configuration_leaves_open_is_assumed_in_the_open() -> None:
    plan = resolve(load("gpt2-124m", flags={"micro_batch": "auto", "optim.name": "muon"}))
    line = memory_line(plan)
    assert line is not None
    assert " in bf16 with micro-batches of 1, " in line
    assert " for each further sequence: " in line
    assert "Muon and AdamW" in line
    assert "249 MB weights in bf16" in line or "247 MB weights in bf16" in line
    plain = memory_line(resolve(load("gpt2-124m", flags={"kernels": "reference"})))
    assert plain is not None
    assert " in fp32 with micro-batches of 16: " in plain


def test_without_a_vocabulary_there_is_no_estimate() -> None:
    plan = resolve(load("demo", flags={"data.tokenizer": "chars"}))
    assert planned_memory(plan) is None
    assert memory_line(plan) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(950, "950 bytes"), (24_060_000, "24.1 MB"), (3 * 10**9, "3 GB"), (999_600_000, "1 GB"), (1500, "1.5 kB")],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert in_bytes(count) == text
