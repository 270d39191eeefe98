"""`trainwell sample`: text from a run or a step of it, the same for the same seed."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")


def text(command: Command, *tokens: str) -> str:
    said = command("sample", *tokens)
    assert (said.code, said.err) == (0, "")
    return str(said.out)


def test_text_continues_the_prompt_and_the_same_seed_gives_the_same(command: Command, finished: Path) -> None:
    first = text(command, str(finished), "--prompt", "the tide", "--tokens", "20")
    assert first.startswith("the tide")
    assert first.endswith("\n")
    assert first == text(command, str(finished), "--prompt", "the tide", "--tokens", "20", "--seed", "0")
    assert first != text(command, str(finished), "--prompt", "the tide", "--tokens", "20", "--seed", "1")


def test_without_a_prompt_it_takes_the_runs_own(command: Command, finished: Path) -> None:
    assert text(command, str(finished), "--tokens", "3").startswith("The ")


def test_a_prompt_may_begin_with_a_hyphen(command: Command, finished: Path) -> None:
    assert text(command, str(finished), "--prompt", "- the", "--tokens", "3").startswith("- the")


@pytest.mark.slow
def test_a_prompt_can_come_from_standard_input(finished: Path) -> None:
    tokens = [sys.executable, "-m", "trainwell", "sample", str(finished), "--prompt", "-", "--tokens", "3"]
    done = subprocess.run(tokens, input="every boat", capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("every boat")


@pytest.mark.parametrize("options", [["--temperature", "0"], ["--top-k", "1"], ["--top-p", "1e-9"]])
def test_three_ways_to_take_the_likeliest_agree_whatever_the_seed(
    command: Command, finished: Path, options: list[str]
) -> None:
    likeliest = text(command, str(finished), "--prompt", "the", "--tokens", "12", "--temperature", "0")
    assert text(command, str(finished), "--prompt", "the", "--tokens", "12", *options, "--seed", "9") == likeliest


def test_several_samples_are_separated_and_numbered_by_seed(command: Command, finished: Path) -> None:
    both = text(command, str(finished), "--prompt", "the", "--tokens", "8", "--count", "2").split("\n---\n")
    alone = [text(command, str(finished), "--prompt", "the", "--tokens", "8", "--seed", seed) for seed in ("0", "1")]
    assert [both[0] + "\n", both[1]] == alone


def test_an_earlier_step_says_other_things(command: Command, finished: Path) -> None:
    options = ["--prompt", "the", "--tokens", "30"]
    assert text(command, f"{finished}@last", *options) == text(command, str(finished), *options)
    assert text(command, f"{finished}@4", *options) != text(command, str(finished), *options)
    assert text(command, f"{finished}@best", *options) == text(command, f"{finished}@12", *options)


def test_what_steers_a_terminal_is_shown_and_not_sent(command: Command, finished: Path) -> None:
    said = text(command, str(finished), "--prompt", "the\x1b[2J", "--tokens", "300", "--temperature", "5")
    assert said.startswith("the\\x1b[2J")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


def test_bytes_that_are_no_text_are_replaced(command: Command, finished: Path) -> None:
    assert "\ufffd" in text(command, str(finished), "--prompt", "the", "--tokens", "300", "--temperature", "5")


def test_sampling_writes_nothing_into_the_run(command: Command, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    text(command, str(finished), "--tokens", "3")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["runs/none"], "runs/none is not a run; train one first (trainwell train demo)"),
        (["demo"], "demo is not a run"),
        ([], "requires an argument"),
        (["runs/tiny@7"], "runs/tiny has no checkpoint of step 7; it has"),
        (["runs/tiny@soon"], "'soon' is not a step"),
        (["runs/tiny", "--prompt", ""], "--prompt: it is empty; give at least one character"),
        (["runs/tiny", "--temperature", "-1"], "--temperature"),
        (["runs/tiny", "--top-p", "0"], "--top-p"),
        (["runs/tiny", "--top-k", "0"], "--top-k"),
        (["runs/tiny", "--tokens", "none"], "--tokens"),
        (["runs/tiny", "--device", "tpu"], "device: 'tpu' is not allowed"),
    ],
)
def test_bad_usage_is_a_message(refused: Refused, finished: Path, tokens: list[str], message: str) -> None:
    assert message in refused(2, "sample", *tokens)


def test_a_damaged_checkpoint_is_74(refused: Refused, finished: Path) -> None:
    (finished / "checkpoints" / "step-12" / "tensors.safetensors").write_bytes(b"gone")
    assert "tensors.safetensors has 4 bytes" in refused(74, "sample", str(finished))
