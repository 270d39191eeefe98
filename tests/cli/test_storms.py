"""What the machine and the world do to `train`, for real: no room, no right, no memory, torn files, hostile text."""

import ast
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trainwell
from trainwell import faults
from trainwell.checkpoint.layout import read_manifest, saved_steps
from trainwell.cli import out_of_memory, parts
from trainwell.config.load import load
from trainwell.planning.resolve import resolve
from trainwell.runs.metrics import MetricsFile

Command = Callable[..., Any]
Refused = Callable[..., str]
Flags = Callable[..., list[str]]

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\x00\x08\r\x7f"
"""A title, a cleared screen, colour by an 8-bit code, text that runs backwards, NUL, backspace, return, delete."""

needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="sets limits of this process as Linux knows them")


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """This process may write no file of more than `limit` bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def end_of(run: str) -> tuple[bytes, list[float]]:
    losses = [row["train/loss"] for row in MetricsFile(Path(run) / "metrics.jsonl").read().train]
    return (Path(run) / "checkpoints" / "step-12" / "tensors.safetensors").read_bytes(), losses


@needs_limits
def test_a_disk_without_room_for_a_checkpoint_is_seen_before_the_first_step(
    command: Command, tiny_flags: Flags, one_thread: None
) -> None:
    with small_files(30_000):
        said = command("train", "demo", "--run", "full", *tiny_flags())
    assert said.code == 74
    assert "full cannot take a checkpoint of 93" in said.err
    assert "there is no room: free some, remove old checkpoints, lower --checkpoint.keep" in said.err
    assert "step    0 | loss" not in said.out


@needs_limits
def test_a_disk_that_fills_up_during_a_run_loses_no_checkpoint_and_the_run_goes_on_to_the_same_bits(
    command: Command, tiny_flags: Flags, one_thread: None
) -> None:
    assert command("train", "demo", "--run", "straight", *tiny_flags()).code == 0
    full = small_files(30_000)
    with faults.at("after_update@5", full.__enter__):
        said = command("train", "demo", "--run", "full", *tiny_flags())
    full.__exit__(None, None, None)
    assert said.code == 74
    assert said.err.count("\n") == 1
    assert "could not be written" in said.err
    assert "free" in said.err
    assert "step 8 is not saved, training goes on" in said.out
    assert saved_steps(Path("full/checkpoints")) == [4]
    read_manifest(Path("full/checkpoints/step-4"))
    on = command("train", "full")
    assert (on.code, on.err) == (0, "")
    assert "continuing full from step 4 of 12" in on.out
    assert end_of("full") == end_of("straight")


@pytest.mark.parametrize("where", ["text.txt/run", "/proc/run", "/dev/null/run"])
def test_a_place_that_cannot_be_a_folder_is_74_and_names_it(
    command: Command, tiny_flags: Flags, one_thread: None, where: str
) -> None:
    if where.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    said = command("train", "demo", "--run", where, *tiny_flags())
    assert said.code == 74
    assert said.err.startswith(f"trainwell: cannot make the run folder {where}: ")
    assert said.err.endswith("; name another with --run\n")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes where it likes")
def test_a_folder_that_is_read_only_is_74_and_names_it(command: Command, tiny_flags: Flags, one_thread: None) -> None:
    Path("mine").mkdir(mode=0o555)
    said = command("train", "demo", "--run", "mine/run", *tiny_flags())
    assert said.code == 74
    assert "mine/run" in said.err


def in_three_gigabytes(*arguments: str) -> tuple[int, str]:
    """Exit code and errors of the command in a process of its own: the heap of this one may have room to spare."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
        "from trainwell.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@needs_limits
def test_a_model_that_no_memory_holds_is_71_with_the_estimate_and_the_key_to_lower(
    tiny_flags: Flags, own_folders: Path
) -> None:
    code, said = in_three_gigabytes("train", "demo", "--run", "large", *tiny_flags(model__width="32768"))
    assert code == 71
    assert said.startswith("trainwell: out of memory with micro_batch 2 x data.seq_len 16: most of it does not ")
    assert "lower --model.width or --model.num-layers" in said
    assert "A step is estimated to take 206 GB in fp32 with micro-batches of 2: 103 GB AdamW" in said
    assert "DefaultCPUAllocator: can't allocate memory" in said
    assert "Traceback" not in said
    assert not Path("large").exists()


@needs_limits
def test_a_batch_that_no_memory_holds_is_71_and_names_the_key_that_changes_no_result(
    tiny_flags: Flags, own_folders: Path
) -> None:
    flags = tiny_flags(batch_size="262144", micro_batch="262144", eval__every="none")
    code, said = in_three_gigabytes("train", "demo", "--run", "wide", *flags)
    assert code == 71
    assert "out of memory with micro_batch 262144 x data.seq_len 16: lower --micro-batch, which " in said
    assert "A step is estimated to take " in said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more lines"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory"),
    ],
)
def test_out_of_memory_is_known_in_every_way_it_is_said(
    command: Command, tiny_flags: Flags, own_folders: Path, error: Exception
) -> None:
    def model(config: Any) -> Any:
        raise error

    with parts.given({"model": model}):
        said = command("train", "demo", *tiny_flags())
    assert said.code == 71
    first = (str(error) or "MemoryError").splitlines()[0]
    assert said.err.endswith(f"\nWhat was said: {first}\n")


def test_other_errors_are_not_taken_for_it(command: Command, tiny_flags: Flags, own_folders: Path) -> None:
    def model(config: Any) -> Any:
        raise RuntimeError("shapes differ")

    with parts.given({"model": model}):
        assert command("train", "demo", *tiny_flags()).code == 3
    assert not out_of_memory.ran_out(ValueError("memory of a goldfish"))


def test_the_key_to_lower_is_that_of_what_takes_most() -> None:
    def lower(**flags: object) -> str:
        keys = {"data.corpus": "python-docs", "data.tokenizer": "gpt2", "micro_batch": 8, **flags}
        config = load("demo", flags=keys)
        return out_of_memory.advice(config, resolve(config), MemoryError())

    assert "lower --micro-batch, which changes no result, then" in lower(micro_batch=32, **{"data.seq_len": 1024})
    assert "micro_batch is 1 already, so lower --data.seq-len" in lower(micro_batch=1, **{"data.seq_len": 16384})
    assert "so lower --model.width or --model.num-layers" in lower(**{"model.width": 4096, "data.seq_len": 8})
    without = out_of_memory.advice(load("demo"), None, MemoryError())
    assert "lower --micro-batch" in without
    assert "estimated" not in without


@pytest.mark.parametrize("torn", ['{"step": 12, "train/lo', '{"step": 12}', "\x00\x00\x00", "{"])
def test_a_torn_last_line_of_metrics_is_kept_as_evidence_and_the_run_goes_on(
    command: Command, finished: Path, torn: str
) -> None:
    whole = MetricsFile(finished / "metrics.jsonl").read()
    for step in saved_steps(finished / "checkpoints")[1:]:
        shutil.rmtree(finished / "checkpoints" / f"step-{step}")
    with (finished / "metrics.jsonl").open("a") as file:
        file.write(torn)
    said = command("train", str(finished))
    assert (said.code, said.err) == (0, "")
    again = MetricsFile(finished / "metrics.jsonl").read()
    assert [row["train/loss"] for row in again.train] == [row["train/loss"] for row in whole.train]
    assert [(row["step"], row["val/loss"]) for row in again.val] == [
        (row["step"], row["val/loss"]) for row in whole.val
    ]
    assert torn in (finished / "attempts" / "001.jsonl").read_text()


def steers(text: str) -> list[str]:
    """The characters in it that a terminal obeys."""
    return [
        char for char in text if (unicodedata.category(char) in {"Cc", "Cf"} and char not in "\n\t") or char == "\x9b"
    ]


def test_hostile_text_in_data_prompt_and_samples_never_reaches_the_terminal(
    command: Command, tiny_flags: Flags, own_folders: Path, one_thread: None
) -> None:
    assert steers(HOSTILE)
    (own_folders / "hostile.txt").write_text(f"the tide {HOSTILE} turns\n" * 60)
    flags = tiny_flags(data__path="hostile.txt", sample__every="4", sample__tokens="60", sample__prompt=HOSTILE)
    trained = command("train", "demo", "--run", "runs/h", *flags)
    shown = command("show", "runs/h")
    step = command("show", "runs/h@8")
    sampled = command("sample", "runs/h", "--tokens", "300", "--temperature", "2")
    asked = command("sample", "runs/h", "--prompt", HOSTILE, "--tokens", "20")
    for said in (trained, shown, step, sampled, asked):
        assert said.code == 0, said.err
        assert steers(said.out + said.err) == []
    assert "\\x1b]0;owned\\x07" in trained.out
    assert "\\u202eevil" in asked.out
    assert "\\x1b" in step.out


def test_hostile_names_in_a_command_never_reach_the_terminal(command: Command, own_folders: Path) -> None:
    for tokens in (["train", HOSTILE], ["train", "demo", "--run", f"x{HOSTILE}", "--data.path", HOSTILE], [HOSTILE]):
        said = command(*tokens)
        assert said.code in {2, 65}
        assert steers(said.out + said.err) == []


MOMENTS = {"starts.py", "sinks.py", "index.py"}
"""They say when something was, or hold a moment against that of a file, and measure no duration."""


def test_no_duration_is_measured_with_a_clock_that_can_jump() -> None:
    jumping = {
        ("time", "time"),
        ("time", "time_ns"),
        ("datetime", "now"),
        ("datetime", "utcnow"),
        ("datetime", "today"),
    }
    found = []
    for path in Path(trainwell.__file__).parent.rglob("*.py"):
        if path.name in MOMENTS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if called and (node.value.id, node.attr) in jumping:  # type: ignore[attr-defined]
                found.append(f"{path.name}:{node.lineno}")  # type: ignore[attr-defined]
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found += [f"{path.name}:{node.lineno}" for name in node.names if ("time", name.name) in jumping]
    assert found == []
