"""A step taken again: equal to the record to the bit, from wherever the run can be taken up; and nothing is written."""

import json
import math
import random
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import sha256
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from trainwell.build import build
from trainwell.checkpoint.layout import saved_steps
from trainwell.config.load import load_recorded
from trainwell.errors import CheckError, ConfigError, DataError
from trainwell.fit import fit
from trainwell.model.loss import token_loss
from trainwell.planning.target import Start
from trainwell.replay import replay
from trainwell.run import Run
from trainwell.runs.incidents import Incident, incident_steps, read_incident, write_incident
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Build = Callable[..., Run]

EQUAL = "equal to the record, bit for bit"


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def said_by(target: str | Start, steps: int = 1, **parts: Any) -> str:
    stream = StringIO()
    console = Console(file=stream, width=160, highlight=False)
    replay(target, steps, show=lambda what: console.print(what, markup=False), **parts)
    return stream.getvalue()


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run of twelve steps with the checkpoints 4, 8 and 12, trained on one thread."""
    folder, threads = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    words = random.Random(7).choices(["the", "tide", "turns", "and", "every", "boat", "knows"], k=300)
    (folder / "words.txt").write_text(" ".join(words)[:900])
    keys: dict[str, Any] = {
        "data": {"path": "words.txt", "seq_len": 16, "val_fraction": 0.25},
        "duration": 12,
        "batch_size": 4,
    }
    keys |= {"model": {"num_layers": 1, "num_heads": 2, "width": 16}, "optim": {"lr": 3e-3}, "schedule": {"warmup": 1}}
    keys |= {
        "eval": {"every": None, "batches": 2},
        "sample": {"every": None},
        "checkpoint": {"every": 4, "best": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRAINWELL_CACHE_DIR", str(folder / "cache"))
        torch.set_num_threads(1)
        run = fit(build("demo", run_dir="runs/a", micro_batch=2, **keys))
        torch.set_num_threads(threads)
    assert saved_steps(folder / run.run_dir.checkpoints) == [4, 8, 12]
    return folder


@pytest.fixture
def finished(finished_once: Path, own_folders: Path, one_thread: None) -> Path:
    """That run, copied into this test's own folder."""
    shutil.copytree(finished_once, own_folders, dirs_exist_ok=True)
    return Path("runs/a")


def test_steps_from_a_checkpoint_on_equal_the_record_and_nothing_is_written(finished: Path) -> None:
    before = digest(finished)
    said = said_by(f"{finished}@4", 3)
    assert digest(finished) == before
    assert "from the checkpoint of step 4" in said
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in lines] == [4, 5, 6]
    assert all(EQUAL in line for line in lines)
    assert "example" not in said


def test_a_step_between_checkpoints_is_reached_from_the_one_before(finished: Path) -> None:
    said = said_by(f"{finished}@10")
    assert "from the checkpoint of step 8" in said
    assert "taking steps 8 to 9 again to get there (2)" in said
    assert f"all {EQUAL}" in said
    assert "step   10 | loss: " in said


def test_a_step_before_all_checkpoints_is_reached_from_the_initial_weights(finished: Path) -> None:
    said = said_by(f"{finished}@2", 2)
    assert "no checkpoint at or before step 2: from the initial weights, which are a function of the seed" in said
    assert said.count(EQUAL) == 3


def test_one_step_is_measured_whole(finished: Path) -> None:
    said = " ".join(said_by(f"{finished}@4").split())
    assert "nothing leapt out; no incident is on record for this step" in said
    assert "all 4 examples by loss, with the weights that the step was taken with, dropout off" in said
    assert "gradients by norm, before clipping" in said
    assert "wte.weight" in said


def test_a_damaged_checkpoint_is_passed_over(finished: Path) -> None:
    tensors = finished / "checkpoints" / "step-8" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    said = " ".join(said_by(f"{finished}@9").split())
    assert "passed over" in said
    assert "from the checkpoint of step 4" in said
    assert f"all {EQUAL}" in said


def test_a_record_that_says_something_else_ends_it_with_the_difference(finished: Path) -> None:
    file = RunDir(finished).metrics_jsonl
    row = MetricsFile(file).read().train[5]
    file.write_text(file.read_text().replace(repr(row["train/loss"]), repr(row["train/loss"] + 1e-15)))
    assert MetricsFile(file).read().train[5]["train/loss"] != row["train/loss"]
    with pytest.raises(CheckError, match=rf"{finished}: step 5 differs from the record, and on this machine"):
        said_by(f"{finished}@4", 2)
    with pytest.raises(CheckError, match="step 5 differs"):
        said_by(f"{finished}@7")


def test_a_difference_on_another_machine_is_said_and_is_no_failure(finished: Path) -> None:
    env, file = RunDir(finished).env_json, RunDir(finished).metrics_jsonl
    facts = json.loads(env.read_text())
    facts["versions"]["torch"] = "2.0.0"
    env.write_text(json.dumps(facts))
    row = MetricsFile(file).read().train[5]
    file.write_text(file.read_text().replace(repr(row["train/grad_norm"]), repr(row["train/grad_norm"] + 1e-3)))
    said = said_by(f"{finished}@5")
    assert "norm " in said
    assert "on record, " in said
    assert "equal bits are promised for the same machine and software only: torch 2.0.0 then" in said


def test_a_step_that_was_not_taken_yet_is_shown_without_comparison(
    build_tiny: Build, advance: Callable[[Run, int], None]
) -> None:
    run = build_tiny(run_dir="runs/a")
    advance(run, 5)
    said = said_by("runs/a@4", 3)
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert [line.rpartition(" | ")[2] for line in lines] == [EQUAL, "not on record", "not on record"]


@pytest.mark.slow
def test_a_branch_begins_where_it_left_its_parent(build_tiny: Build) -> None:
    fit(build_tiny(run_dir="runs/a"))
    fit(build_tiny("runs/a@4", run_dir="runs/b", optim={"lr": 1e-3}, checkpoint={"every": None}))
    said = said_by("runs/b@6")
    assert "from runs/a@4, which it branches from" in said
    assert f"all {EQUAL}" in said
    with pytest.raises(ConfigError, match="the steps before it are that run's: trainwell train runs/a@2 --steps 1"):
        said_by("runs/b@2")


@pytest.mark.slow
def test_parts_that_were_given_are_given_again(build_tiny: Build, gpt2_of: Callable[..., Any]) -> None:
    def model(_config: Any) -> Any:
        return gpt2_of(vocab_size=257, seq_len=16, dropout=0.1)

    fit(build_tiny(run_dir="runs/a", model=model, checkpoint={"every": None}))
    assert said_by("runs/a@3", 2, model=model).count(EQUAL) == 3
    with pytest.raises(ConfigError, match="made with parts given in Python"):
        said_by("runs/a@3", 2)


def test_the_incident_on_file_says_why_and_what_comes_next(finished: Path) -> None:
    write_incident(RunDir(finished), Incident(9, "the loss leapt out, it was said", False, 5.0, 1.0, 1e-3))
    said = " ".join(said_by(f"{finished}@9").split())
    assert "nothing leapt out; the loss leapt out, it was said" in said
    assert ", no outlier: an outlier is above " in said
    assert f"trainwell train {finished}@8 --run NEW --skip 200" in said


@pytest.mark.slow
def test_a_step_that_was_not_finite_is_found_again_with_the_example_that_did_it(build_tiny: Build, text: Path) -> None:
    window = torch.tensor(list(text.read_bytes()[48:64]))

    def loss(model: Any, batch: Any) -> Any:
        bad = (batch.inputs == window).all(dim=1).any()
        return token_loss(model, batch) * (math.nan if bad else 1.0)

    run = fit(build_tiny(run_dir="runs/a", loss=loss))
    (step, *_) = incident_steps(run.run_dir)
    on_file = read_incident(run.run_dir, step)
    assert on_file is not None
    assert (on_file.skipped, math.isnan(on_file.loss)) == (True, True)
    assert (on_file.samples[0].index, on_file.samples[0].text) == (3, text.read_text()[48:64])
    said = " ".join(said_by(f"runs/a@{step}", loss=loss).split())
    assert "loss: nan" in said
    assert f"| skipped | {EQUAL}" in said
    assert "reason loss is nan" in said
    assert "example 3: the loss is not finite; of the other 3 it is" in said


def test_by_itself_it_prints_and_a_character_that_the_terminal_lacks_becomes_an_escape(
    finished: Path,
) -> None:
    write_incident(RunDir(finished), Incident(9, "it leapt \u2191 \x1b[2J", False, 5.0, 1.0, 1e-3))
    raw = BytesIO()
    with redirect_stdout(TextIOWrapper(raw, encoding="ascii")) as screen:
        replay(f"{finished}@9")
        screen.flush()
    said = raw.getvalue().decode("ascii")
    assert "it leapt \\u2191 \\x1b[2J" in said
    assert f"{EQUAL}\n" in said


def test_a_start_with_a_parent_names_the_step_too(finished: Path) -> None:
    config = load_recorded(RunDir(finished).config_yaml)
    assert EQUAL in said_by(Start(config, RunDir(Path("runs/new")), (RunDir(finished), 4)))


@pytest.mark.parametrize(
    ("target", "steps", "message"),
    [
        ("@11", 2, r"--steps 2: runs/a has 12 steps, the last is @11, so from @11 there are 1"),
        ("@40", 1, r"from @40 there are 0"),
        ("", 1, r"name it, as in runs/a@1200"),
    ],
)
def test_a_step_the_run_has_not_is_refused(finished: Path, target: str, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        said_by(f"{finished}{target}", steps)


def test_what_is_no_run_and_what_would_change_the_step_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match="runs/none is not a run"):
        said_by("runs/none@3")
    with pytest.raises(ConfigError, match=r"seed: a step is taken again as it was"):
        said_by(f"{finished}@3", seed=3)


def test_another_text_is_refused(finished: Path) -> None:
    Path("words.txt").write_text("another text " * 70)
    with pytest.raises(DataError, match="the data is not what runs/a was trained on: "):
        said_by(f"{finished}@3")
