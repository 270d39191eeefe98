"""Real signals to the process that trains, each in a phase that the code itself reaches, in this process."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from trainwell import faults
from trainwell.checkpoint.layout import read_manifest, saved_steps
from trainwell.cli import app, parts
from trainwell.cli.signals import stopping_on_signals
from trainwell.errors import StoppedError
from trainwell.runs.metrics import MetricsFile
from trainwell.supervise import STOP_SIGNALS, SUPERVISED

Command = Callable[..., Any]
Flags = Callable[..., list[str]]

SAMPLING = {"sample__every": "4", "sample__tokens": "3"}
PHASES = {
    "the first step": "after_backward@0",
    "a step": "after_update@5",
    "recording": "log.before_line@5",
    "evaluation at the start": "eval.mid@0",
    "evaluation": "eval.mid@4",
    "sampling": "sample.mid@8",
    "a save that has just begun": "ckpt.tmp_open@4",
    "a save without its manifest": "ckpt.before_manifest@8",
    "a save under its temporary name": "ckpt.before_rename@8",
    "a save that is not verified": "ckpt.after_rename@4",
}


def send(number: int) -> None:
    """Signal this process; where nobody handles it, it would end the tests."""
    assert callable(signal.getsignal(number)), "nobody handles it"
    os.kill(os.getpid(), number)
    if threading.current_thread() is not threading.main_thread():
        time.sleep(0.05)  # the main thread hears it meanwhile


def outcome(run: Path) -> Any:
    """The bytes of the last checkpoint, its scalars, and every loss and evaluation on record."""
    folder = run / "checkpoints" / f"step-{saved_steps(run / 'checkpoints')[-1]}"
    records = MetricsFile(run / "metrics.jsonl").read()
    losses = [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in records.train]
    evaluations = [(row["step"], row["val/loss"]) for row in records.val]
    tensors = {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
    return tensors, json.dumps(read_manifest(folder).state), losses, evaluations


@dataclass(frozen=True)
class Said:
    """What one command printed, past Python's buffers too, and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], own_folders: Path) -> Command:
    def call(*tokens: str) -> Said:
        capfd.readouterr()
        code = app.run(list(tokens))
        return Said(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {}


@pytest.fixture
def straight(known: dict[str, Any], command: Command, tiny_flags: Flags, one_thread: None) -> Any:
    """How the run ends that no signal meets; trained once."""
    if not known:
        assert command("train", "demo", "--run", "straight", *tiny_flags(**SAMPLING)).code == 0
        known["outcome"] = outcome(Path("straight"))
    return known["outcome"]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_the_run_goes_on_to_the_same_bits(
    command: Command, tiny_flags: Flags, straight: Any, phase: str
) -> None:
    before = handlers()
    with faults.at(PHASES[phase], lambda: send(signal.SIGTERM)):
        said = command("train", "demo", "--run", "met", *tiny_flags(**SAMPLING))
    assert said.code == 75
    first, _, last = said.err.partition("\n")
    assert first == "SIGTERM: finishing this step and saving; once more to end at once"
    (stopped,) = saved_steps(Path("met/checkpoints"))[-1:]
    assert last == f"trainwell: stopped at step {stopped} of 12 and saved; continue: trainwell train met\n"
    assert [row["step"] for row in MetricsFile(Path("met/metrics.jsonl")).read().train] == list(range(stopped))
    point, _, step = PHASES[phase].partition("@")
    assert point.startswith("ckpt.") or stopped <= int(step) + 1  # training goes on while a checkpoint is written
    assert handlers() == before
    assert command("train", "met").code == 0
    assert outcome(Path("met")) == straight


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_stop_signal_is_heard(command: Command, tiny_flags: Flags, one_thread: None, number: int) -> None:
    with faults.at("after_backward@2", lambda: send(number)):
        said = command("train", "demo", "--run", "met", *tiny_flags())
    assert said.code == 75
    assert said.err.startswith(f"{signal.Signals(number).name}: finishing this step and saving")
    assert saved_steps(Path("met/checkpoints"))[-1] == 3


def test_a_signal_in_the_last_step_leaves_the_last_evaluation_to_the_next_start(
    command: Command, tiny_flags: Flags, one_thread: None
) -> None:
    with faults.at("after_update@11", lambda: send(signal.SIGTERM)):
        said = command("train", "demo", "--run", "met", *tiny_flags())
    assert said.code == 75
    assert "stopped at step 12 of 12 and saved; continue: trainwell train met" in said.err
    assert saved_steps(Path("met/checkpoints"))[-1] == 12
    again = command("train", "met")
    assert (again.code, "What to try next" in again.out) == (0, True)
    assert [row["step"] for row in MetricsFile(Path("met/metrics.jsonl")).read().val] == [0, 4, 8, 12]


def test_a_signal_while_data_is_fetched_is_heard(command: Command, tiny_flags: Flags, one_thread: None) -> None:
    class Examples:
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
            if Path("met/metrics.jsonl").exists() and not sent:
                sent.append(index)
                send(signal.SIGTERM)
            return [index % 7] * 16, [index % 5] * 16

    sent: list[int] = []
    flags = tiny_flags(model__pad_vocab_to="16", eval__every="none")
    with parts.given({"data": Examples()}):
        said = command("train", "demo", "--run", "met", *flags)
        assert said.code == 75, said.err
        assert "finishing this step and saving" in said.err
        assert command("train", "met").code == 0
    assert saved_steps(Path("met/checkpoints"))[-1] == 12


def test_before_there_is_a_run_a_signal_ends_it_at_once(command: Command, tiny_flags: Flags, own_folders: Path) -> None:
    def model(config: Any) -> Any:
        send(signal.SIGUSR1)
        raise AssertionError("it was not heard")

    before = handlers()
    with parts.given({"model": model}):
        said = command("train", "demo", "--run", "met", *tiny_flags())
    assert (said.code, said.out) == (75, "")
    assert said.err == (
        "trainwell: SIGUSR1: stopped before the first step; nothing is lost, the same command starts it again\n"
    )
    assert not Path("met").exists()
    assert handlers() == before


def test_a_signal_that_others_take_for_an_error_of_theirs_still_ends_it(
    command: Command, tiny_flags: Flags, own_folders: Path, gpt2_of: Any
) -> None:
    def model(config: Any) -> Any:
        try:
            send(signal.SIGTERM)
        except BaseException:  # noqa: BLE001  as code between here and the handler may do
            return gpt2_of(vocab_size=257, seq_len=16)

    with parts.given({"model": model}):
        said = command("train", "demo", "--run", "met", *tiny_flags())
    assert said.code == 75
    assert "SIGTERM: stopped before the first step" in said.err
    assert not Path("met").exists()


def test_a_second_signal_ends_it_at_once_and_keeps_the_newest_checkpoint(
    command: Command, tiny_flags: Flags, one_thread: None
) -> None:
    def twice() -> None:
        send(signal.SIGTERM)
        send(signal.SIGINT)

    at_once = {"checkpoint.asynchronous": "false"}  # in the background, step 4 may not be written yet
    with faults.at("after_backward@6", twice):
        said = command("train", "demo", "--run", "met", *tiny_flags(**at_once))
    assert said.code == 75
    assert said.err.splitlines()[-1] == "trainwell: interrupted"
    assert saved_steps(Path("met/checkpoints")) == [4]
    assert "continuing met from step 4 of 12" in command("train", "met").out


def test_what_a_supervisor_repeats_is_no_second_signal(
    command: Command, tiny_flags: Flags, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        send(signal.SIGTERM)
        send(signal.SIGTERM)

    monkeypatch.setenv(SUPERVISED, "1")
    with faults.at("after_backward@6", twice):
        said = command("train", "demo", "--run", "met", *tiny_flags())
    assert said.code == 75
    assert "stopped at step 7 of 12 and saved" in said.err


def test_in_another_thread_there_are_no_signals_and_that_is_no_error() -> None:
    def enter() -> None:
        with stopping_on_signals() as stopping:
            heard.append(stopping.name)

    heard: list[str] = []
    before = handlers()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard == [""]
    assert handlers() == before


def test_a_screen_that_is_gone_does_not_keep_a_signal_from_being_heard(
    command: Command, tiny_flags: Flags, one_thread: None
) -> None:
    class Gone(StringIO):
        def fileno(self) -> int:
            raise OSError("closed")

    with redirect_stderr(Gone()), faults.at("after_backward@6", lambda: send(signal.SIGTERM)):
        assert app.run(["train", "demo", "--run", "met", *tiny_flags()]) == 75
    assert saved_steps(Path("met/checkpoints"))[-1] == 7


def test_a_signal_outside_of_everything_is_a_stop_with_its_name() -> None:
    with pytest.raises(StoppedError, match="SIGTERM: stopped before the first step"), stopping_on_signals():
        send(signal.SIGTERM)
