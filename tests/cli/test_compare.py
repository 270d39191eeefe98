"""`trainwell compare`, from the command line to what is printed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.runs.rundir import RunDir

Command = Callable[..., Any]


def facts(command: Command, *names: str) -> dict[str, Any]:
    said = command("compare", *names, "--json")
    assert (said.code, said.err) == (0, "")
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_two_dialects_take_the_numbers_of_the_demo_and_say_so(command: Command) -> None:
    text = command("compare", "litgpt", "hf-cosine-with-min-lr").out
    assert "note: two dialects: their numbers are those of the recipe demo" in text
    assert "identical" in text


def test_a_dialect_takes_its_numbers_from_the_other_side(command: Command) -> None:
    found = facts(command, "gpt2-124m", "nanogpt")
    assert (found["left"]["kind"], found["right"]["kind"]) == ("recipe", "dialect")
    for key in ("num_steps", "warmup", "horizon", "tokens"):
        assert found["left"][key] == found["right"][key]
    assert found["notes"] == []
    assert facts(command, "nanogpt", "gpt2-124m")["left"]["kind"] == "dialect"


def test_nanogpt_and_build_nanogpt_differ_first_at_step_0(command: Command) -> None:
    found = facts(command, "nanogpt", "build-nanogpt")
    assert found["first_difference"]["step"] == 0
    assert found["largest_difference"]["step"] == found["left"]["warmup"] - 1
    assert found["area_ratio"] > 1
    assert not found["identical"]


def test_a_dialect_that_needs_an_initial_rate_gets_a_hundredth_of_the_peak(command: Command) -> None:
    found = facts(command, "demo", "dialect:book")
    assert "book needs an initial rate and demo has none: 1% of the peak is taken" in found["notes"]
    assert found["config"]["schedule.initial_lr"] == [None, "1%"]


def test_a_name_that_is_both_is_the_recipe_unless_dialect_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRAINWELL_DATA_DIR", str(tmp_path / "nothing"))
    without_text = facts(command, "book", "nanogpt")
    assert without_text["left"]["kind"] == "dialect"
    assert without_text["notes"][0] == (
        "the recipe book cannot be counted without its text, so this is the dialect book"
    )
    assert facts(command, "shakespeare-char", "nanogpt")["left"]["kind"] == "recipe"
    assert facts(command, "dialect:book", "nanogpt")["left"]["kind"] == "dialect"


def test_a_dialect_that_ends_at_its_horizon_is_cut_there(command: Command) -> None:
    found = facts(command, "gpt3-125m", "dialect:book")
    assert found["right"]["num_steps"] == found["left"]["horizon"]
    assert any("ends there" in note for note in found["notes"])


def test_files_and_runs_are_compared_too(command: Command, own_folders: Path) -> None:
    (own_folders / "mine.yaml").write_text("optim: {lr: 1.0e-3}\n")
    folder = RunDir(own_folders / "runs" / "demo")
    folder.create()
    folder.config_yaml.write_text("name: demo\nduration: 20\nbatch_size: 16\nmicro_batch: 16\n")
    found = facts(command, "mine.yaml", "runs/demo")
    assert (found["left"]["kind"], found["right"]["kind"]) == ("file", "run")
    assert found["common_steps"] == 20
    assert found["config"]["optim.lr"] == [1e-3, 3e-3]


def test_a_folder_of_a_run_is_the_run_before_it_is_a_recipe(command: Command, own_folders: Path) -> None:
    folder = RunDir(own_folders / "demo")
    folder.create()
    folder.config_yaml.write_text("name: demo\nduration: 20\nbatch_size: 16\nmicro_batch: 16\n")
    assert facts(command, "demo", "gpt2-124m")["left"]["kind"] == "run"


def test_pictures_are_written_and_named(command: Command, own_folders: Path) -> None:
    said = command("compare", "litgpt", "nanogpt", "--png", "a.png", "--svg", "a.svg")
    assert said.out == "wrote a.png\nwrote a.svg\n"
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("a.svg").read_text()


def test_an_unknown_name_suggests_the_nearest(refused: Callable[..., str]) -> None:
    assert "did you mean nanogpt?" in refused(2, "compare", "nanogtp", "demo")
    assert "did you mean gpt3-125m?" in refused(2, "compare", "demo", "gpt3-124m")
    assert "did you mean nanochat?" in refused(2, "compare", "dialect:nanochatt", "demo")


def test_a_step_is_no_schedule(refused: Callable[..., str]) -> None:
    assert "leave out the step, as in demo" in refused(2, "compare", "demo@3", "demo")


def test_a_branch_is_compared_behind_the_rows_of_its_parent(command: Command, finished: Path) -> None:
    assert command("train", f"{finished}@8", "--run", "runs/b", "--skip", "2", "--duration", "14").code == 0
    found = facts(command, "runs/tiny", "runs/b")
    measured = found["measured"]
    assert measured["right"]["runs"] == [["runs/tiny", 0], ["runs/b", 8]]
    assert measured["left"]["runs"] == [["runs/tiny", 0]]
    assert [step for step, _, _ in measured["train"]] == list(range(12))
    assert all(left == right for step, left, right in measured["train"] if step < 8)
    assert measured["first_difference"]["step"] == 8
    assert [step for step, _, _ in measured["val"]] == [0, 4, 8, 12]
    assert found["config"]["data.skip"] == [None, "8+2"]
    shutil.rmtree(finished)
    assert "note: runs/b begins at step 8 of runs/tiny, which is not there" in command("compare", "runs/b", "demo").out
    alone = facts(command, "runs/b", "runs/b")
    assert [step for step, _, _ in alone["measured"]["train"]] == list(range(8, 14))
    assert facts(command, "runs/b", "demo")["measured"] is None
