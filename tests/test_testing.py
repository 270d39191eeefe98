"""What users get for their tests: a tiny run, faults, processes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell import faults, testing
from trainwell.checkpoint.layout import saved_steps
from trainwell.errors import ConfigError

KILLED = """
import sys, torch
from trainwell.fit import fit
from trainwell.testing import tiny_run
torch.set_num_threads(1)
fit(tiny_run(sys.argv[1], checkpoint={"asynchronous": False}))  # in the background, step 4 may not be written yet
"""


def test_the_corpus_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = testing.tiny_corpus(tmp_path / "a").read_text()
    assert len(first) == 900
    assert testing.tiny_corpus(tmp_path / "b").read_text() == first
    assert testing.tiny_corpus(tmp_path / "b", seed=8).read_text() != first
    assert len(testing.tiny_corpus(tmp_path / "b", characters=20).read_text()) == 20


def test_the_tiny_run_trains_and_its_keys_can_be_changed_one_by_one(
    own_folders: Path, one_thread: None, tmp_path: Path
) -> None:
    from trainwell.fit import fit

    run = fit(testing.tiny_run(tmp_path, duration=4, model={"width": 32}, data={"seq_len": 8}))
    assert run.trainer.step == 4
    assert (run.config.model.width, run.config.model.num_heads) == (32, 2)
    assert (run.config.data.seq_len, run.config.data.val_fraction) == (8, 0.25)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [4]
    with pytest.raises(ConfigError, match="widht"):
        testing.tiny_run(tmp_path / "other", model={"widht": 32})


def test_a_fault_and_a_second_build_are_all_that_a_test_of_survival_needs(
    own_folders: Path, one_thread: None, tmp_path: Path, bits_of: Callable[[Any], Any]
) -> None:
    from trainwell.fit import fit

    def fail() -> None:
        raise ZeroDivisionError("made to fail")

    straight = fit(testing.tiny_run(tmp_path / "straight"))
    with testing.at("after_update@6", fail), pytest.raises(ZeroDivisionError):
        fit(testing.tiny_run(tmp_path / "cut"))
    again = fit(testing.tiny_run(tmp_path / "cut"))
    assert bits_of(again.trainer.state_dict()) == bits_of(straight.trainer.state_dict())


def test_points_and_at_are_those_of_faults() -> None:
    assert testing.POINTS is faults.POINTS
    assert testing.at is faults.at
    assert all(hasattr(testing, name) for name in testing.__all__)


@pytest.mark.slow
def test_a_fault_in_the_environment_kills_and_the_next_process_goes_on(tmp_path: Path) -> None:
    def train(**variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": "/usr/bin:/bin", "TRAINWELL_CACHE_DIR": str(tmp_path / "cache"), **variables}
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    killed = train(TRAINWELL_FAULT="after_update@6")
    assert killed.returncode == -9, killed.stderr
    assert saved_steps(tmp_path / "run" / "checkpoints") == [4]
    on = train()
    assert on.returncode == 0, on.stderr
    assert "from step 4 of 12" in on.stdout


@pytest.mark.slow
def test_a_function_runs_in_several_processes() -> None:
    assert testing.run_distributed(divmod, 2) == [(0, 0), (0, 1)]
