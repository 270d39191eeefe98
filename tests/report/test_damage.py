"""What is found in a run's folder after anything was done to it, against folders that were whole before."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.checkpoint.layout import Manifest, directory_of, write_manifest
from trainwell.errors import ConfigError
from trainwell.report.damage import Part, damaged, holds_run, inspect, inspect_checkpoint, summary
from trainwell.runs.incidents import Incident, write_incident
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir


def make(path: Path, *, steps: int = 12, saved: tuple[int, ...] = (4, 8, 12)) -> RunDir:
    """A run of `steps` steps whose checkpoints hold a few bytes."""
    run = RunDir(path)
    run.create()
    run.config_yaml.write_text("name: demo\nduration: 12\nbatch_size: 16\nmicro_batch: 16\n")
    run.env_json.write_text(json.dumps({"versions": {}, "parent": None}))
    rows = [{"step": step, "train/loss": 5.0 - step / 10} for step in range(steps)]
    MetricsFile(run.metrics_jsonl).append({"step": 0, "val/loss": 5.5}, *rows)
    for step in saved:
        directory = directory_of(run.checkpoints, step)
        directory.mkdir(parents=True)
        (directory / "tensors.safetensors").write_bytes(bytes(range(step + 40)))
        write_manifest(directory, Manifest(step, {}, {"w": {"dtype": "float32", "shape": [10]}}, {}))
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make(tmp_path / "demo")


def found(run: RunDir) -> dict[str, Part]:
    return {part.name: part for part in inspect(run)}


def tensors(run: RunDir, step: int) -> Path:
    return directory_of(run.checkpoints, step) / "tensors.safetensors"


def test_a_whole_run_is_whole_in_every_part(run: RunDir) -> None:
    parts = inspect(run)
    assert [part.name for part in parts] == [
        "config.yaml",
        "env.json",
        "checkpoints/step-4",
        "checkpoints/step-8",
        "checkpoints/step-12",
        "metrics.jsonl",
    ]
    assert {part.state for part in parts} == {"whole"}
    assert (damaged(parts), summary(parts)) == ([], "all of it is whole")
    assert parts[2].what.startswith("1 tensors, ")
    assert parts[-1].what == "12 steps"


@pytest.mark.parametrize(
    ("step", "advice"),
    [(8, "nothing needs it, the run continues from step 12"), (12, "the run falls back to step 8")],
)
def test_a_damaged_checkpoint_is_named_with_what_to_delete_and_where_the_run_goes_on(
    run: RunDir, step: int, advice: str
) -> None:
    content = bytearray(tensors(run, step).read_bytes())
    content[3] ^= 1
    tensors(run, step).write_bytes(content)
    part = found(run)[f"checkpoints/step-{step}"]
    assert part.state == "damaged"
    assert part.what == "the SHA-256 of tensors.safetensors differs"
    assert part.advice == f"delete {directory_of(run.checkpoints, step)}; {advice}"
    assert damaged(inspect(run)) == [part.name]


def test_where_no_checkpoint_is_whole_nothing_is_to_be_deleted(run: RunDir) -> None:
    for step in (4, 8, 12):
        tensors(run, step).unlink()
    part = found(run)["checkpoints/step-12"]
    assert part.what == "tensors.safetensors is missing"
    assert part.advice == "bring it back from a copy: no other checkpoint is whole"


def test_a_folder_without_a_manifest_and_one_under_another_name_are_damaged(run: RunDir) -> None:
    (directory_of(run.checkpoints, 4) / "manifest.json").unlink()
    directory_of(run.checkpoints, 8).rename(directory_of(run.checkpoints, 9))
    parts = found(run)
    assert "its manifest is missing" in parts["checkpoints/step-4"].what
    assert parts["checkpoints/step-9"].what == "its manifest is that of step 8"


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), step=st.sampled_from([4, 8, 12]), manifest=st.booleans())
def test_any_bit_that_flips_in_a_checkpoint_is_found(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, step: int, manifest: bool
) -> None:
    run = RunDir(tmp_path_factory.getbasetemp() / "flipped")
    if not run.path.exists():
        make(run.path)
    path = tensors(run, step).with_name("manifest.json") if manifest else tensors(run, step)
    before = path.read_bytes()
    content = bytearray(before)
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    parts = inspect_checkpoint(run, step)
    path.write_bytes(before)
    assert damaged(parts) == [f"checkpoints/step-{step}"]
    assert damaged(inspect_checkpoint(run, step)) == []


def test_a_checkpoint_is_looked_at_alone(run: RunDir) -> None:
    tensors(run, 12).unlink()
    assert [part.state for part in inspect_checkpoint(run, 8)] == ["whole"]
    assert summary(inspect_checkpoint(run, 12)) == "damaged"
    with pytest.raises(ConfigError, match="has no checkpoint of step 5; it has: 4, 8, 12"):
        inspect_checkpoint(run, 5)


def test_what_a_killed_save_left_is_a_note_and_under_a_save_it_is_no_damage(run: RunDir) -> None:
    for name in ("step-16.tmp-0123abcd", "step-8.replaced-0123abcd", "step-2.removed-0123abcd", "foreign.tmp-0123abcd"):
        (run.checkpoints / name).mkdir()
    parts = found(run)
    notes = [name for name, part in parts.items() if part.state == "note"]
    assert len(notes) == 3
    assert damaged(inspect(run)) == []
    assert parts["checkpoints/step-16.tmp-0123abcd"].advice == "the next save removes it"
    with run.lock():
        assert found(run)["checkpoints/step-16.tmp-0123abcd"].what == "a save under way"


def test_a_torn_last_line_is_a_note_and_a_line_being_written_is_none(run: RunDir) -> None:
    with run.metrics_jsonl.open("a") as file:
        file.write('{"step": 12, "tra')
    part = found(run)["metrics.jsonl"]
    assert (part.state, part.what) == ("note", "12 steps; its last line is torn, as a kill leaves it")
    with run.lock():
        assert found(run)["metrics.jsonl"].state == "whole"


def test_lines_that_cannot_be_read_are_named_with_the_steps_that_are_lost(run: RunDir) -> None:
    lines = run.metrics_jsonl.read_text().splitlines(keepends=True)
    lines[4], lines[5], lines[9] = "\x00\x00\n", "[1]\n", '{"step": "8"}\n'
    run.metrics_jsonl.write_text("".join(lines))
    part = found(run)["metrics.jsonl"]
    assert part.state == "damaged"
    assert part.what == "lines 5 to 6, 10 cannot be read; steps 3 to 4, 8 are missing"
    assert part.advice.startswith(f"remove lines 5 to 6, 10 of {run.metrics_jsonl}; the run continues")


def test_steps_that_are_missing_or_there_twice_are_named(run: RunDir) -> None:
    lines = run.metrics_jsonl.read_text().splitlines(keepends=True)
    run.metrics_jsonl.write_text("".join([*lines[:3], *lines[4:11], lines[7]]))
    assert found(run)["metrics.jsonl"].what == "steps 2, 10 to 11 are missing; step 6 is there more than once"
    run.metrics_jsonl.unlink()
    assert found(run)["metrics.jsonl"].what == "missing, and with it the numbers of all steps"


def test_a_branch_begins_at_the_step_of_its_parent(tmp_path: Path) -> None:
    run = make(tmp_path / "branch", saved=())
    run.env_json.write_text(json.dumps({"parent": "runs/a@200"}))
    run.metrics_jsonl.unlink()
    MetricsFile(run.metrics_jsonl).append({"step": 200, "train/loss": 1.0}, {"step": 201, "train/loss": 1.0})
    assert found(run)["metrics.jsonl"].what == "2 steps"


def test_a_run_that_has_not_begun_is_whole(tmp_path: Path) -> None:
    run = make(tmp_path / "new", steps=0, saved=())
    run.metrics_jsonl.unlink()
    assert found(run)["metrics.jsonl"] == Part("metrics.jsonl", "whole", "no step is on record yet")


@pytest.mark.parametrize("content", ["model: [", "optim: {lr: -1}\n", None])
def test_a_configuration_that_cannot_be_read_or_is_gone_is_damage(run: RunDir, content: str | None) -> None:
    if content is None:
        run.config_yaml.unlink()
    else:
        run.config_yaml.write_text(content)
    assert holds_run(run.path)
    part = found(run)["config.yaml"]
    assert (part.state, "\n" in part.what) == ("damaged", False)
    assert "bring it back from a copy" in part.advice


def test_small_files_are_read_and_one_that_is_missing_is_a_note(run: RunDir) -> None:
    run.env_json.write_text("{")
    run.template_json.write_text("[]")
    assert {"env.json", "template.json"} == {*damaged(inspect(run))}
    run.env_json.unlink()
    assert found(run)["env.json"].state == "note"


def test_an_incident_that_cannot_be_read_is_damage_and_the_others_are_counted(run: RunDir) -> None:
    for step in (3, 5):
        write_incident(run, Incident(step, "", False, 1.0, 1.0, 1e-3))
    assert found(run)["incidents"].what == "2 steps that leapt out or broke"
    (run.incidents / "step-3.json").write_text("{")
    parts = found(run)
    assert parts["incidents/step-3.json"].state == "damaged"
    assert parts["incidents"].what == "1 step that leapt out or broke"


def test_a_folder_that_is_no_run_holds_none(tmp_path: Path, run: RunDir) -> None:
    assert not holds_run(tmp_path)
    assert not holds_run(tmp_path / "nothing")
    assert holds_run(run.path)


def test_nothing_is_written(run: RunDir, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "copy")
    inspect(run)
    look: Callable[[Path], dict[str, bytes]] = lambda folder: {  # noqa: E731
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert look(run.path) == look(copy)
