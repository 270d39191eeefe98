"""`train --nproc N` and bare torchrun: several processes train one run, and end with one message and one exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.checkpoint.layout import saved_steps
from trainwell.cli import ranks
from trainwell.cli.failures import speaks
from trainwell.errors import ConfigError, DataError, DivergedError
from trainwell.planning.target import Start
from trainwell.runs.exits import Exit, read_exit, write_exit

Refused = Callable[..., str]
Flags = Callable[..., list[str]]

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
LONG = {"duration": "100000", "checkpoint__every": "20", "eval__every": "none", "log__every": "1000"}


class Command:
    """`trainwell` in a folder of the test's own, as a process with processes of its own."""

    def __init__(self, folder: Path, *arguments: str, program: list[str] | None = None) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(exist_ok=True)
        own = {"TRAINWELL_CACHE_DIR": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*(program or [sys.executable, "-m", "trainwell"]), *arguments],
            cwd=folder,
            env=os.environ | own | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=180)
        return self.process.returncode, out, err

    def rank(self, number: int) -> int:
        """The process of a rank that says who it is."""
        (file,) = wait_for(lambda: list((self.folder / "tmp").glob(f"trainwell-launch-*/rank-{number}")))
        return int(file.read_text())

    def reached(self, run: str, step: int) -> None:
        """Wait until so many steps are on record."""
        record = self.folder / run / "metrics.jsonl"
        wait_for(lambda: record.exists() and len(record.read_text().splitlines()) >= step)


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)
    return found


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def weights(run: Path) -> dict[str, bytes]:
    last = run / "checkpoints" / f"step-{saved_steps(run / 'checkpoints')[-1]}"
    return {file.name: file.read_bytes() for file in sorted(last.glob("*.safetensors"))}


@pytest.mark.parametrize("given", ["0", "-1", "two", "2.5", "9999", "1e3"])
def test_what_is_no_number_of_processes_is_one_message(refused: Refused, given: str) -> None:
    said = refused(2, "train", "demo", "--nproc", given)
    assert said.startswith(f"--nproc: {given!r} is no number of processes; give one from 1 to 1024")
    assert said.count("\n") == 1


def test_mistakes_are_found_before_any_process_is_started(refused: Refused) -> None:
    assert "optim.lr: -1 is not allowed" in refused(2, "train", "demo", "--nproc", "2", "--optim.lr", "-1")
    assert "missing.txt does not exist" in refused(65, "train", "demo", "--nproc", "2", "--data.path", "missing.txt")
    assert "--profile looks at one process" in refused(2, "train", "demo", "--nproc", "2", "--profile")
    assert "--nproc would have no effect" in refused(2, "train", "runs/x@3", "--steps", "1", "--nproc", "2")


def test_a_rank_starts_no_ranks_and_does_nothing_that_is_for_one_process(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "this process is rank 0 of 2 already" in refused(2, "train", "demo", "--nproc", "2")
    assert "trainwell train --nproc N --restarts K" in refused(2, "train", "demo", "--restarts", "2")
    assert "--profile and --dry-run: this is one of 2" in refused(2, "train", "demo", "--profile", "--dry-run")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert "name one: --run runs/NAME" in refused(2, "train", "demo")


@pytest.mark.parametrize(
    ("rank", "local", "beginning"), [(None, None, ""), ("0", "0", ""), ("1", "1", None), ("4", "0", "rank 4: ")]
)
def test_what_all_ranks_would_say_is_said_by_one_of_each_machine(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, local: str | None, beginning: str | None
) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": None if rank is None else "8"}
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert speaks() == beginning


@pytest.mark.parametrize(
    ("code", "kind"), [(2, ConfigError), (65, DataError), (70, DivergedError), (3, None), (75, None), (74, None)]
)
def test_a_rank_that_is_started_again_ends_at_once_after_an_end_that_would_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception] | None
) -> None:
    from trainwell.config.tree import RunConfig
    from trainwell.runs.rundir import RunDir

    worked = []
    write_exit(tmp_path, Exit(code, 1, "rank 1: it was so"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    start = Start(RunConfig(name="it"), RunDir(tmp_path))

    def call() -> int:
        return ranks.take_part(start, lambda _start, _world: worked.append(1), lambda: False)

    if kind is not None:
        with pytest.raises(kind, match="rank 1: it was so"):
            call()
        assert worked == []
        return
    assert call() == 0
    assert worked == [1]
    assert read_exit(tmp_path) is None


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_one_of_them_speaks(tmp_path: Path, tiny_flags: Flags) -> None:
    code, alone, err = Command(tmp_path, "train", "demo", "--run", "one", *tiny_flags()).end()
    assert (code, err) == (0, "")
    code, together, err = Command(tmp_path, "train", "demo", "--run", "two", "--nproc", "2", *tiny_flags()).end()
    assert (code, err) == (0, "")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-6)
    assert "2 ranks, ddp" in together
    assert together.count("What to try next:") == alone.count("What to try next:") == 1
    assert not (tmp_path / "two" / "exit.json").exists()


@pytest.mark.slow
def test_one_process_of_nproc_is_this_one(tmp_path: Path, tiny_flags: Flags) -> None:
    code, out, err = Command(tmp_path, "train", "demo", "--nproc", "1", *tiny_flags()).end()
    assert (code, err) == (0, "")
    assert "ranks" not in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_one_that_started_them_saves_and_ends_all_with_75(
    tmp_path: Path, tiny_flags: Flags, number: signal.Signals
) -> None:
    run = Command(tmp_path, "train", "demo", "--run", "it", "--nproc", "2", *tiny_flags(**LONG))
    run.reached("it", 30)
    os.kill(run.process.pid, number)
    code, _, err = run.end()
    first, last = err.splitlines()
    assert code == 75
    assert first == f"trainwell: {number.name}: finishing this step and saving; once more to end at once"
    stopped = saved_steps(tmp_path / "it" / "checkpoints")[-1]
    assert last == f"trainwell: stopped at step {stopped} of 100,000 and saved; continue: trainwell train it".replace(
        f"step {stopped} ", f"step {stopped:,} "
    )
    assert len(losses(tmp_path / "it")) == stopped


@pytest.mark.slow
def test_a_killed_rank_is_named_and_ends_all(tmp_path: Path, tiny_flags: Flags) -> None:
    run = Command(tmp_path, "train", "demo", "--run", "it", "--nproc", "2", *tiny_flags(**LONG))
    run.reached("it", 30)
    os.kill(run.rank(1), signal.SIGKILL)
    code, _, err = run.end()
    assert code == 128 + signal.SIGKILL
    assert err == "trainwell: rank 1 was killed by SIGKILL\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_run_whose_rank_was_killed_is_started_again_and_ends_with_the_same_weights(
    tmp_path: Path, tiny_flags: Flags, number: int
) -> None:
    keys = {**LONG, "duration": "400"}
    assert Command(tmp_path, "train", "demo", "--run", "straight", "--nproc", "2", *tiny_flags(**keys)).end()[0] == 0
    more = ("--nproc", "2", "--restarts", "3")
    run = Command(tmp_path, "train", "demo", "--run", "killed", *more, *tiny_flags(**keys))
    run.reached("killed", 50)
    os.kill(run.rank(number), signal.SIGKILL)
    code, _, err = run.end()
    assert code == 0, err
    assert f"rank {number} was killed by SIGKILL" in err
    assert "restart 1 of 3" in err
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")


@pytest.mark.slow
def test_ranks_whose_starter_is_killed_save_and_end(tmp_path: Path, tiny_flags: Flags) -> None:
    run = Command(tmp_path, "train", "demo", "--run", "it", "--nproc", "2", *tiny_flags(**LONG))
    run.reached("it", 30)
    processes = [run.rank(0), run.rank(1)]
    run.process.kill()
    wait_for(lambda: not any(Path(f"/proc/{each}").exists() for each in processes), 60)
    saved = saved_steps(tmp_path / "it" / "checkpoints")[-1]
    assert len(losses(tmp_path / "it")) == saved
    run.end()


@pytest.mark.slow
def test_a_folder_that_is_in_use_is_said_once_and_its_exit_json_is_left_alone(
    tmp_path: Path, tiny_flags: Flags
) -> None:
    from trainwell.runs.rundir import RunDir

    with RunDir(tmp_path / "it").lock():
        code, _, err = Command(tmp_path, "train", "demo", "--run", "it", "--nproc", "2", *tiny_flags()).end()
    assert code == 73
    assert err.startswith("trainwell: it is in use by process ")
    assert err.count("is in use") == 1
    assert read_exit(tmp_path / "it") is None


@pytest.mark.slow
def test_bare_torchrun_trains_the_same_and_says_a_mistake_once(tmp_path: Path, tiny_flags: Flags) -> None:
    program = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "--", "trainwell"]
    code, out, _ = Command(tmp_path, "train", "demo", "--run", "it", *tiny_flags(), program=program).end()
    assert code == 0
    assert out.count("What to try next:") == 1
    code, _, err = Command(tmp_path, "train", "demo", "--optim.lr", "-1", program=program).end()
    assert code == 1
    assert err.count("trainwell: command line: optim.lr: -1 is not allowed") == 1


@pytest.mark.slow
def test_ranks_that_diverge_say_so_once_in_exit_json_too(tmp_path: Path, tiny_flags: Flags) -> None:
    keys = {**LONG, "optim__lr": "1e30", "optim__max_grad_norm": "none"}
    run = Command(tmp_path, "train", "demo", "--run", "it", "--nproc", "2", *tiny_flags(**keys))
    code, _, err = run.end()
    assert code == 70, err
    assert err.count("trainwell: ") == 1
    assert read_exit(tmp_path / "it") == Exit(70, 0, err.removeprefix("trainwell: ").rstrip("\n"))
