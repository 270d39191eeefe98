"""What `auto` comes to: decided once, recorded, and used again; what cannot be kept is said."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.distributed.launch import threads_each
from trainwell.distributed.local import run_distributed
from trainwell.distributed.world import World
from trainwell.errors import ConfigError, StorageError
from trainwell.machine import native_bf16
from trainwell.planning.resolve import resolve
from trainwell.runs.rundir import RunDir
from trainwell.settings import (
    Settings,
    _compile,
    _parallel,
    decide,
    decide_together,
    environment,
    recorded_settings,
    threads_of_rank,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def decided(recorded: dict[str, Any] | None = None, said: list[str] | None = None, **keys: object) -> Settings:
    config = load("demo", flags={"device": "cpu", **keys})
    return decide(config, resolve(config), recorded, (said if said is not None else []).append)


def test_named_choices_are_taken_as_they_are() -> None:
    settings = decided(precision="bf16", compile=True, micro_batch=4)
    assert (settings.device, settings.precision, settings.compile, settings.micro_batch) == ("cpu", "bf16", True, 4)
    assert settings.autocast == torch.bfloat16
    assert settings.fused


def test_a_cpu_run_is_always_deterministic() -> None:
    assert decided(deterministic=False).deterministic


def test_a_cpu_does_not_compile_unless_asked() -> None:
    assert not decided(compile="auto", duration=10**6).compile


def test_reference_kernels_are_plain_eager_and_fp32_unless_the_precision_is_named() -> None:
    settings = decided(kernels="reference", precision="auto")
    assert (settings.fused, settings.compile, settings.precision, settings.autocast) == (False, False, "fp32", None)
    assert decided(kernels="reference", precision="bf16").precision == "bf16"


def test_fp16_is_refused_where_auto_comes_to_a_cpu() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("auto comes to an accelerator here")
    with pytest.raises(ConfigError, match=r"precision: fp16 is not for training on a CPU.*fp32 or bf16"):
        decided(device="auto", precision="fp16")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_naming_those_that_are(device: str) -> None:
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]:
        pytest.skip(f"this machine has {device}")
    with pytest.raises(ConfigError, match=rf"device: {device} is not to be had on this machine; allowed here are auto"):
        decided(device=device)


def test_what_was_decided_before_is_decided_again_in_silence() -> None:
    said: list[str] = []
    first = decided(precision="auto", micro_batch="auto")
    before = asdict(replace(first, precision="bf16", micro_batch=1, compile=True))
    again = decided(before, said, precision="auto", micro_batch="auto", compile="auto")
    assert (again.precision, again.micro_batch, again.compile, again.threads) == ("bf16", 1, True, first.threads)
    assert said == []


def test_the_threads_of_before_are_used_again() -> None:
    before = asdict(decided()) | {"threads": min(2, os.cpu_count() or 1)}
    assert decided(before).threads == before["threads"]
    assert torch.get_num_threads() == before["threads"]


def test_what_the_configuration_names_goes_before_what_was_decided() -> None:
    before = asdict(decided(precision="fp32", micro_batch=8, compile=False))
    named = decided(before, precision="bf16", micro_batch=2, compile=True, kernels="auto")
    assert (named.precision, named.micro_batch, named.compile) == ("bf16", 2, True)
    assert decided(before, micro_batch=10**6, batch_size=6).micro_batch == 6


def test_a_run_in_fp16_continues_on_a_cpu_in_fp32_and_says_so() -> None:
    said: list[str] = []
    before = asdict(decided()) | {"precision": "fp16"}
    assert decided(before, said, precision="auto", duration=1).precision == "fp32"  # too short for a race of kernels
    assert said == [
        "the run computed in fp16, which is not for training on a CPU: it continues in fp32, not bitwise the same"
    ]


def test_more_threads_than_the_machine_has_are_not_promised() -> None:
    said: list[str] = []
    assert decided(asdict(decided()) | {"threads": 10_000}, said).threads == torch.get_num_threads() < 10_000
    assert len(said) == 1
    assert "fewer than the 10000 threads the run used: the next steps are no longer bitwise the same" in said[0]


def test_another_device_or_chip_is_said() -> None:
    said: list[str] = []
    before = asdict(decided()) | {"device": "xpu", "device_name": "Deep Thought"}
    assert decided(before, said, device="auto").device in {"cpu", "cuda", "mps"}
    text = "\n".join(said)
    assert "the run was on xpu, which this machine does not have" in text
    assert "the run was on Deep Thought and continues on" in text


def test_an_estimated_micro_batch_is_the_whole_batch_or_a_power_of_two() -> None:
    sizes = [decided(micro_batch="auto", batch_size=size).micro_batch for size in (1, 3, 16, 5000)]
    assert sizes[:3] == [1, 3, 16]
    assert sizes[3] < 5000
    assert sizes[3].bit_count() == 1


def test_a_larger_model_gets_a_smaller_micro_batch() -> None:
    small = decided(micro_batch="auto", batch_size=4096)
    large = decided(micro_batch="auto", batch_size=4096, model={"width": 1024, "num_layers": 24})
    assert large.micro_batch < small.micro_batch


def test_the_choices_are_one_line() -> None:
    line = decided(precision="bf16", kernels="reference", micro_batch=4).line()
    assert line.startswith("cpu (")
    assert ", bf16, eager, plain optimizer, attention by flash, micro-batch 4, " in line


def test_the_record_is_read_back(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert recorded_settings(run_dir) is None
    settings = decided()
    run_dir.env_json.write_text(json.dumps(environment(settings)))
    assert recorded_settings(run_dir) is None, "a start that was killed before config.yaml is no record"
    run_dir.config_yaml.touch()
    assert recorded_settings(run_dir) == asdict(settings)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_a_record_that_cannot_be_read_is_a_message(tmp_path: Path, text: str) -> None:
    RunDir(tmp_path).env_json.write_text(text)
    RunDir(tmp_path).config_yaml.touch()
    with pytest.raises(StorageError, match=r"env\.json cannot be read .*; restore it, or start anew with --run OTHER"):
        recorded_settings(RunDir(tmp_path))


def test_the_environment_names_the_versions_that_decide_the_bits() -> None:
    versions = environment(decided())["versions"]
    assert versions["torch"] == torch.__version__
    assert versions.keys() >= {"python", "trainwell", "numpy", "safetensors"}


def test_the_configuration_is_not_changed_by_deciding() -> None:
    config: RunConfig = load("demo", flags={"device": "cpu"})
    decide(config, resolve(config), None, print)
    assert config == load("demo", flags={"device": "cpu"})


@pytest.mark.skipif(native_bf16(), reason="this CPU has bf16 of its own")
def test_bf16_that_would_be_emulated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision: bf16 would be emulated on this CPU.*give fp32, or auto"):
        decided(precision="bf16")


def test_a_run_from_before_there_were_kernels_to_choose_keeps_its_own() -> None:
    keys: dict[str, Any] = {"precision": "fp32", "model.dropout": 0.1}
    before = asdict(decided(**keys))
    assert decided(before, **keys).fast.attention == "products"
    del before["fast"]
    assert decided(before, **keys).fast.attention == "sdpa"


def test_on_another_device_kernels_are_chosen_anew() -> None:
    before = asdict(decided()) | {"device": "cuda", "fast": {"attention": "cudnn"}}
    assert decided(before, []).fast.attention == "sdpa"


TWO = World(rank=0, size=2)


def shared_as(parallel: str, before: dict[str, Any] | None = None, *, world: World = TWO, **more: Any) -> str:
    """How ranks share a step: with `parallel` configured, as it was before, on a device and with a model."""
    config, said = load("demo", flags={"parallel": parallel}), list[str]()
    device, own_model = more.get("device", "cpu"), more.get("own_model", True)
    how = _parallel(config, resolve(config), device, "fp32", world, own_model, before or {}, said.append)
    assert (said != []) == (world.size == 1 and parallel in {"ddp", "fsdp"})
    return how


@pytest.mark.parametrize(
    ("asked", "parallel", "before", "found"),
    [
        ("blocks", "fsdp", {}, "blocks"),
        ("auto", "fsdp", {}, False),
        ("auto", "fsdp", {"parallel": "fsdp", "compile": "blocks"}, "blocks"),
        ("auto", "fsdp", {"parallel": "ddp", "compile": True}, False),
        ("auto", "ddp", {"parallel": "fsdp", "compile": "blocks"}, False),
        ("auto", "ddp", {"parallel": "none", "compile": True}, True),
        ("auto", "none", {"compile": True}, True),
    ],
)
def test_a_run_is_compiled_as_it_was_unless_its_weights_are_in_parts_now_or_no_longer(
    asked: str, parallel: Any, before: dict[str, Any], found: bool | str
) -> None:
    config = load("demo", flags={"compile": asked})
    assert _compile(config, resolve(config), "cpu", parallel, True, before) == found


@pytest.mark.parametrize(
    ("asked", "own", "allowed"), [(True, True, "blocks, false or auto"), ("blocks", False, "false")]
)
def test_fsdp_compiles_no_more_than_blocks_of_our_own_models(asked: bool | str, own: bool, allowed: str) -> None:
    config = load("demo", flags={"compile": asked})
    with pytest.raises(ConfigError, match=f"compile: {asked} does not go with parallel fsdp; give compile {allowed}"):
        _compile(config, resolve(config), "cpu", "fsdp", own, {})


@pytest.mark.parametrize("parallel", ["auto", "none", "ddp", "fsdp"])
def test_one_process_shares_with_nobody_whatever_is_configured(parallel: str) -> None:
    assert shared_as(parallel, world=World()) == "none"


def test_several_ranks_share_as_configured_and_not_at_all_is_refused() -> None:
    assert shared_as("ddp") == "ddp"
    assert shared_as("fsdp", {"world_size": 2, "parallel": "ddp"}) == "fsdp"
    with pytest.raises(ConfigError, match=r"^parallel: none, and 2 processes were started"):
        shared_as("none")


@pytest.mark.parametrize(
    ("before", "how"),
    [
        ({"world_size": 2, "parallel": "fsdp"}, "fsdp"),
        ({"world_size": 2, "parallel": "ddp"}, "ddp"),
        ({"world_size": 3, "parallel": "fsdp"}, "ddp"),
        ({"world_size": 1, "parallel": "none"}, "ddp"),
        ({"world_size": 2, "parallel": "none"}, "ddp"),
        ({}, "ddp"),
    ],
)
def test_auto_is_as_it_was_before_on_as_many_ranks_and_else_ddp_on_a_cpu(before: dict[str, Any], how: str) -> None:
    assert shared_as("auto", before) == how


def test_auto_is_ddp_for_a_given_model_which_cannot_be_cut_by_blocks() -> None:
    assert shared_as("auto", device="cuda", own_model=False) == "ddp"


@given(size=st.integers(1, 64), here=st.integers(1, 64))
def test_threads_of_ranks_on_a_machine_are_its_cores_shared_out_and_never_none(size: int, here: int) -> None:
    cores = os.cpu_count() or 1
    torch.set_num_threads(max(2, cores))
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("OMP_NUM_THREADS", raising=False)
        environment.setenv("LOCAL_WORLD_SIZE", str(here))
        threads = threads_of_rank(World(rank=0, size=size))
        assert threads >= 1
        assert threads == torch.get_num_threads() if size == 1 else threads * here <= max(cores, here)
        environment.setenv("OMP_NUM_THREADS", "7")
        assert threads_of_rank(World(rank=0, size=size)) == torch.get_num_threads()


def test_a_rank_has_no_more_threads_than_its_process() -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("OMP_NUM_THREADS", raising=False)
        environment.setenv("LOCAL_WORLD_SIZE", "1")
        torch.set_num_threads(1)
        assert threads_of_rank(TWO) == 1


@given(processes=st.integers(1, 2000))
def test_threads_for_each_process_are_the_cores_it_may_use_shared_out(processes: int) -> None:
    cores = threads_each(1)
    assert threads_each(processes) == max(1, cores // processes)


def test_alone_decide_together_is_decide(tmp_path: Path) -> None:
    config = load("demo", flags={"device": "cpu"})
    plan, said = resolve(config), list[str]()
    together = decide_together(config, plan, RunDir(tmp_path), World(), own_model=True, say=said.append)
    assert together == decide(config, plan, None, said.append)


def decided_by_a_rank(rank: int, world_size: int, folder: str, keys: dict[str, Any]) -> tuple[Any, list[str]]:
    """The choices that a rank comes to, or the error; and what it says."""
    from trainwell.distributed.world import current

    config, run_dir, said = load("demo", flags={"device": "cpu", **keys}), RunDir(Path(folder)), list[str]()
    if rank == 1:
        os.environ["LOCAL_WORLD_SIZE"] = "1"  # it would choose more threads by itself
    try:
        made = decide_together(config, resolve(config), run_dir, current(), own_model=True, say=said.append)
    except ConfigError as error:
        return str(error), said
    return asdict(made), said


@pytest.mark.slow
def test_all_ranks_decide_as_the_first_does_which_alone_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one_row = {"micro_batch": 8, "batch_size": 1}
    (first, told), (second, other) = run_distributed(decided_by_a_rank, 2, str(tmp_path), one_row)
    assert first == second
    assert first["parallel"] == "ddp"
    assert [line[:33] for line in told] == ["only 1 of the 2 ranks have work i"]
    assert other == []
    (first, told), (second, other) = run_distributed(decided_by_a_rank, 2, str(tmp_path), {"parallel": "none"})
    assert first == second
    assert str(first).startswith("parallel: none, and 2 processes")
