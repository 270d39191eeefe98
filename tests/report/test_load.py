"""A run read from its folder, whole, unfinished and damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainwell.errors import ConfigError, StorageError
from trainwell.report.load import load_run
from trainwell.runs.rundir import RunDir
from trainwell.runs.samples import SamplesFile

Maker = Callable[..., Path]


def test_everything_on_record_is_read(make_run: Maker) -> None:
    run = load_run(make_run())
    assert run.config.optim.lr == 3e-3
    assert run.plan is not None
    assert run.plan.warmup == 120
    assert len(run.train) == run.steps_done == run.num_steps == 1200
    assert [row["step"] for row in run.val] == [0, 200, 400, 600, 800, 1000, 1200]
    assert [(sample.step, sample.text) for sample in run.samples] == [
        (400, "The whe of the sat\nis a"),
        (800, "The with statement is used"),
    ]
    assert run.env["device"] == "cpu"


def test_only_checkpoints_with_a_manifest_count(make_run: Maker) -> None:
    assert load_run(make_run()).checkpoints == (400,)


def test_the_status_says_where_the_run_stands(make_run: Maker) -> None:
    path = make_run(taken=300, name="half")
    assert load_run(path).status == f"stopped after step 299 of 1200; continue it with: trainwell train {path}"
    assert load_run(make_run(name="whole")).status == "finished after 1200 steps"
    assert load_run(make_run(taken=0, name="none")).status == "not started"


def test_a_run_with_parts_of_a_script_is_continued_by_that_script(make_run: Maker) -> None:
    path = make_run(taken=300)
    config = RunDir(path).config_yaml
    config.write_text(config.read_text() + "\ncustom: {model: mine.py:MyGPT}\n")
    assert load_run(path).status.endswith("; continue it in the script that has its parts")


def test_a_run_that_somebody_trains_is_running(make_run: Maker) -> None:
    path = make_run(taken=300)
    with RunDir(path).lock():
        assert load_run(path).status.startswith("running, step 300 of 1200 (process ")


def test_a_run_that_does_not_say_its_data_is_still_planned_where_the_config_suffices(make_run: Maker) -> None:
    path = make_run()
    RunDir(path).env_json.unlink()
    run = load_run(path)
    assert run.env == {}
    assert run.num_steps == 1200


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run: it has no config\.yaml"):
        load_run(tmp_path)


def test_a_damaged_env_is_named(make_run: Maker) -> None:
    path = make_run()
    RunDir(path).env_json.write_text("{")
    with pytest.raises(StorageError, match=r"cannot read .*env\.json"):
        load_run(path)


def test_a_run_without_samples_has_none(tmp_path: Path) -> None:
    assert SamplesFile(tmp_path / "samples.txt").read() == ()


def test_a_sample_may_hold_any_text(tmp_path: Path) -> None:
    path = tmp_path / "samples.txt"
    path.write_text('=== step 5 | prompt "===" ===\n=== not a heading\n\n\x1b[2J\n=== step 6 | prompt "" ===\n\n')
    assert [(sample.step, sample.text) for sample in SamplesFile(path).read()] == [
        (5, "=== not a heading\n\n\x1b[2J"),
        (6, ""),
    ]


def test_without_the_counts_a_length_in_epochs_leaves_the_run_without_a_plan(make_run: Maker) -> None:
    path = make_run()
    RunDir(path).env_json.unlink()
    RunDir(path).config_yaml.write_text("name: demo\nduration: 3 epochs\n")
    run = load_run(path)
    assert run.plan is None
    assert run.status == "stopped after step 1199; continue it with: trainwell train " + str(path)
