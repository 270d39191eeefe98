"""`train --each`: a run for every combination, found wrong before any starts, gone on with where they were."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from trainwell.cli.each import parse_axes
from trainwell.errors import ConfigError
from trainwell.runs.gridfolder import read_results

Flags = Callable[..., list[str]]


def without_rate(flags: list[str]) -> list[str]:
    return [flag for flag in flags if flag not in {"--optim.lr", "3e-3"}]


def test_commas_in_brackets_belong_to_their_value() -> None:
    axes = parse_axes(["optim.betas=[0.9, 0.95],[0.9,0.99]", "seed=1, 2"], {})
    assert axes == {"optim.betas": ("[0.9, 0.95]", "[0.9,0.99]"), "seed": ("1", "2")}


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ("optim.lr", "write KEY=VALUE,VALUE"),
        ("optim.lr=1e-4,,3e-4", "write KEY=VALUE,VALUE"),
        ("optim.lrr=1", "there is no key 'optim.lrr'; did you mean optim.lr"),
        ("seed=1,2,1", "1 is there twice"),
        ("optim.eps=1e-8", "optim.eps is said elsewhere too"),
        ("name=a,b", "names the run"),
    ],
)
def test_what_is_no_axis_is_said(each: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_axes([each], {"optim.eps": "1e-9"})
    assert said in str(refused.value)


def test_a_value_that_cannot_be_is_found_before_anything_starts(
    refused: Callable[..., str], tiny_flags: Flags, own_folders: Path
) -> None:
    words = ["train", "demo", *tiny_flags(), "--each", "model.arch=gpt2,gpt3"]
    assert "model.arch=gpt3: " in refused(2, *words)
    assert not Path("runs").exists()
    assert "leave out --steps" in refused(2, *words, "--steps", "1")
    assert "name the folder for all of its branches" in refused(2, "train", "demo@5", "--each", "seed=1")


def test_a_dry_run_names_the_runs_and_writes_nothing(command: Command, tiny_flags: Flags, own_folders: Path) -> None:
    flags = tiny_flags()
    said = command("train", "demo", *flags, "--each", "optim.weight_decay=0,0.1", "--each", "seed=1,2", "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "optim.weight_decay=0,seed=1: 12 steps, 768 tokens", "optim.weight_decay=0,seed=2: 12 steps, 768 tokens",
        "optim.weight_decay=0.1,seed=1: 12 steps, 768 tokens", "optim.weight_decay=0.1,seed=2: 12 steps, 768 tokens",
        "folder: runs/demo (nothing was written)",
    ]  # fmt: skip
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_grid_is_trained_gone_on_with_extended_and_compared(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    words = ["train", "demo", *without_rate(tiny_flags()), "--run", "runs/lr", "-j", "2"]
    said = command(*words, "--each", "optim.lr=1e-3,1e9", "--each", "guard.policy=log")
    assert (said.code, said.err) == (0, "")
    assert "[1/2] optim.lr=1e-3,guard.policy=log: val " in said.out
    assert "next: trainwell compare runs/lr --by optim.lr" in said.out
    assert Path("runs/lr/logs/optim.lr=1e-3,guard.policy=log.log").stat().st_size > 0
    again = command(*words, "--each", "optim.lr=1e-3,1e9,1e-2", "--each", "guard.policy=log")
    assert again.code == 0
    assert "2 of 3 runs are done already" in again.out
    assert again.out.count("started") == 1
    other = command(*words, "--each", "seed=1,2")
    assert other.code == 2
    assert "another grid is there" in other.err
    assert command("compare", "runs/lr", "--by", "optim.lr").code == 0


@pytest.mark.slow
def test_a_grid_that_is_stopped_goes_on_where_it_was(tiny_flags: Flags, own_folders: Path) -> None:
    words = [sys.executable, "-m", "trainwell", "train", "demo", *tiny_flags(duration="100000", checkpoint__every="50")]
    words += ["--run", "runs/g", "--each", "seed=1,2,3", "-j", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    files = [Path(f"runs/g/seed={seed}/metrics.jsonl") for seed in (1, 2)]
    until = time.monotonic() + 120
    while not all(file.exists() for file in files) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "the same command with --run runs/g goes on" in err
    assert not Path("runs/g/seed=3").exists()
    assert read_results(Path("runs/g")) == {}
    assert all(any(Path(f"runs/g/seed={seed}/checkpoints").iterdir()) for seed in (1, 2))


@pytest.mark.slow
def test_an_own_script_has_grids_of_its_own_parts(tiny_flags: Flags, own_folders: Path) -> None:
    Path("own.py").write_text(
        "import torch\nimport trainwell.cli\n\n\ndef sgd(model):\n"
        "    return torch.optim.SGD(model.parameters(), lr=0.1)\n\n\n"
        "if __name__ == '__main__':\n    trainwell.cli.main(optimizer=sgd)\n"
    )
    words = [
        sys.executable,
        "own.py",
        "train",
        "demo",
        *without_rate(tiny_flags()),
        "--optim.lr",
        "0.1",
        "--each",
        "seed=1,2",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (1, 2):
        assert "optimizer: " in Path(f"runs/demo/seed={seed}/config.yaml").read_text()
