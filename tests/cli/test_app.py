"""The command itself: help, exit codes, and that nothing heavy is loaded before it is needed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from trainwell.cli.app import VERBS, main, say_how_threads_wait

Command = Callable[..., Any]
Refused = Callable[..., str]

WITHOUT_TORCH = """
import json, sys
from trainwell.cli.app import run
for tokens in json.loads(sys.argv[1]):
    code = run(tokens)
    loaded = [name for name in ("torch", "matplotlib") if name in sys.modules]
    sys.stderr.write(f"exit code {code}, loaded {loaded}\\n")
"""
LIGHT = {
    ("--help",): 0,
    ("--version",): 0,
    ("train", "--help"): 0,
    ("train", "demo", "--optim.lr", "-1"): 2,
    ("train", "dmo"): 2,
    ("train", "missing.yaml"): 2,
    ("train", "demo", "--data.path", "missing.txt"): 65,
    ("train", "demo", "--dry-run"): 0,
    ("train", "demo", "--dry-run", "--restarts", "2"): 0,
    ("train", "demo", "--steps", "1"): 2,
    ("train", "demo", "--skip", "1"): 2,
    ("sample", "runs/missing"): 2,
    ("show", "demo"): 0,
    ("show", "demo", "--code"): 0,
    ("show", "gpt3-125m@100000"): 0,
    ("check", "gpt3-125m"): 0,
    ("compare", "gpt3-125m", "gpt3-350m"): 0,
}


def test_the_version_is_that_of_the_package(command: Command) -> None:
    said = command("--version")
    assert (said.code, said.out) == (0, f"trainwell {version('trainwell')}\n")


@pytest.mark.parametrize("tokens", [["--help"], []])
def test_help_names_every_verb_and_what_a_target_is(command: Command, tokens: list[str]) -> None:
    said = command(*tokens)
    assert said.code == 0
    text = " ".join(said.out.split())
    assert all(f"{verb} " in text and help_line.split(".")[0] in text for verb, help_line in VERBS.items())
    assert "runs/demo@1200" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(command: Command, verb: str) -> None:
    said = command(verb, "--help")
    assert said.code == 0
    assert f"Usage: trainwell {verb}" in said.out


def test_the_help_of_train_has_every_key_with_its_default(command: Command) -> None:
    text = " ".join(command("train", "--help").out.split())
    assert "--optim.lr" in text
    assert "--sample.prompt" in text
    assert "Default: 0.001" in text


def test_an_unknown_verb_suggests_the_nearest(refused: Refused) -> None:
    assert 'unknown command "trian". Did you mean "train"?' in refused(2, "trian", "demo")


def alone(*commands: Sequence[str]) -> list[str]:
    """Run command lines in a fresh interpreter; say how each ended and what was loaded by then."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [line for line in done.stderr.splitlines() if line.startswith("exit code")]


def test_what_needs_no_torch_never_loads_it(own_folders: Path) -> None:
    said = dict(zip(LIGHT, alone(*LIGHT), strict=True))
    assert said == {tokens: f"exit code {code}, loaded []" for tokens, code in LIGHT.items()}


def test_a_reader_that_goes_away_is_no_error(own_folders: Path) -> None:
    command = [sys.executable, "-m", "trainwell", "show", "demo", "--yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def ended(tokens: list[str], **parts: Any) -> int:
    """How an own script with these parts ends."""
    with pytest.raises(SystemExit) as end:
        main(tokens, parts)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_an_error_of_ours_says_so_and_how_to_see_more(
    tiny_flags: Callable[..., list[str]],
    own_folders: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(config: Any) -> Any:
        raise ZeroDivisionError("not what anyone wrote this for")

    assert ended(["train", "demo", *tiny_flags()], model=broken) == 3
    said = capsys.readouterr().err
    assert "ZeroDivisionError: not what anyone wrote this for" in said
    assert "TRAINWELL_TRACEBACK=1" in said
    monkeypatch.setenv("TRAINWELL_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["train", "demo", *tiny_flags()], {"model": broken})


def test_an_interrupt_before_the_first_step_is_a_stop(
    tiny_flags: Callable[..., list[str]], own_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Any) -> Any:
        raise KeyboardInterrupt

    assert ended(["train", "demo", *tiny_flags()], model=interrupted) == 75
    assert capsys.readouterr().err == "trainwell: interrupted\n"


def waiting_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: int | None, **given: str) -> dict[str, str]:
    """What is said of waiting threads on a machine where so many tasks run, this one included; None: no such file."""
    loads = tmp_path / "loadavg"
    if running is not None:
        loads.write_text(f"0.52 0.58 0.59 {running}/67 123\n")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    say_how_threads_wait(loads)
    return {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}


@pytest.mark.parametrize("running", [1, None])
def test_threads_spin_a_little_on_an_idle_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: int | None
) -> None:
    assert waiting_said(monkeypatch, tmp_path, running) == {"GOMP_SPINCOUNT": "10000"}


def test_threads_sleep_where_others_want_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert waiting_said(monkeypatch, tmp_path, 2) == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_what_the_user_said_of_threads_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert waiting_said(monkeypatch, tmp_path, 1, OMP_WAIT_POLICY="ACTIVE") == {"OMP_WAIT_POLICY": "ACTIVE"}
