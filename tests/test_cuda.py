"""On a GPU: what a CPU computes, nothing waited for in a step, resume to the bit; skipped where there is none."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwell.fit import fit, steps
from trainwell.profiling import fit_profiled
from trainwell.run import Run
from trainwell.testing import tiny_corpus

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, of compiling and profiling, differ from version to version
]

Build = Callable[..., Run]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What runs set for the whole process is taken back."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Inside, whatever would wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def losses(run: Run) -> list[float]:
    """Those of all steps."""
    with run:
        return [float(result.loss) for result in steps(run)]


@pytest.mark.parametrize("model", [{}, {"arch": "llama"}, {"dropout": 0.0, "qk_norm": True}])
def test_twenty_losses_are_those_of_a_cpu(build_tiny: Build, model: dict[str, Any]) -> None:
    keys: dict[str, Any] = {"precision": "fp32", "compile": False, "duration": 20, "model": model}
    here = losses(build_tiny(device="cuda", run_dir="runs/here", **keys))
    there = losses(build_tiny(device="cpu", run_dir="runs/there", **keys))
    assert here == pytest.approx(there, abs=2e-5)


@pytest.mark.parametrize("compiled", [False, True, "blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_sixteen_bits_and_compiled_code_train_as_fp32_does(
    build_tiny: Build, precision: str, compiled: bool | str
) -> None:
    keys: dict[str, Any] = {"device": "cuda", "duration": 20}
    plain = losses(build_tiny(run_dir="runs/plain", precision="fp32", compile=False, **keys))
    found = losses(build_tiny(run_dir="runs/found", precision=precision, compile=compiled, **keys))
    assert found == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize("compiled", [False, True, "blocks"])
@pytest.mark.parametrize(
    "changes", [{}, {"precision": "fp16"}, {"optim": {"z_loss": 1e-4}}, {"guard": {"policy": "skip"}}]
)
def test_a_step_waits_for_nothing(build_tiny: Build, compiled: bool | str, changes: dict[str, Any]) -> None:
    run = build_tiny(device="cuda", compile=compiled, **changes)
    with run:
        run.trainer.take_step()  # what is compiled or chosen once, is now
        with nothing_waits():
            for _ in islice(run.trainer.steps(until=run.num_steps), 5):
                pass


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_resumes_to_the_bit(
    build_tiny: Build,
    advance: Callable[[Run, int], None],
    bits_of: Callable[[Any], Any],
    precision: str,
    compiled: bool,
) -> None:
    keys = {"device": "cuda", "deterministic": True, "precision": precision, "compile": compiled}
    keys["model"] = {"dropout": 0.1}
    whole = fit(build_tiny(run_dir="runs/whole", **keys))
    advance(build_tiny(run_dir="runs/parts", **keys), 5)
    parts = build_tiny(run_dir="runs/parts", **keys)
    fit(parts)
    assert bits_of(parts.trainer.state_dict()) == bits_of(whole.trainer.state_dict())


def test_the_micro_batch_that_fits_is_written_down_and_used_again(build_tiny: Build, own_folders: Path) -> None:
    run = fit(build_tiny(device="cuda", micro_batch="auto", batch_size=8, run_dir="runs/fits"))
    assert run.settings.micro_batch == 8
    recorded = json.loads((run.run_dir.path / "env.json").read_text())["settings"]
    assert (recorded["device"], recorded["micro_batch"]) == ("cuda", 8)


def test_what_auto_comes_to_names_the_gpu_and_its_attention(build_tiny: Build) -> None:
    line = build_tiny(device="cuda", precision="bf16").settings.line()
    assert torch.cuda.get_device_name() in line
    assert "bf16" in line
    assert "attention by" in line


def test_too_little_memory_makes_the_micro_batch_smaller(build_tiny: Build, own_folders: Path) -> None:
    before = torch.cuda.get_per_process_memory_fraction()
    corpus = tiny_corpus(own_folders, characters=600_000)
    shape = {"num_layers": 2, "num_heads": 8, "width": 512}
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        run = build_tiny(
            device="cuda",
            compile=False,
            micro_batch="auto",
            batch_size=4096,
            duration=2,
            data={"path": corpus, "seq_len": 64},
            model=shape,
        )
        assert run.settings.micro_batch < 4096
        fit(run)
    finally:
        torch.cuda.set_per_process_memory_fraction(before)
        torch.cuda.empty_cache()


def test_a_profile_has_the_kernels_of_the_device(build_tiny: Build) -> None:
    run = fit_profiled(build_tiny(device="cuda", compile=False, duration=40))
    summary = (run.run_dir.path / "profile" / "summary.txt").read_text()
    assert "kernel" in summary.lower()
