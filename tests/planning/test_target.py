"""What `train TARGET` means: a run that continues, with what it may change; a branch, with what it leaves out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.load import load
from trainwell.config.render import to_yaml
from trainwell.config.values import parse_skips
from trainwell.errors import ConfigError, StorageError
from trainwell.planning.target import Start, find_start, parent_of, with_skip
from trainwell.runs.rundir import RunDir

SETTINGS = {"device": "cpu", "precision": "fp32", "compile": False, "deterministic": True, "micro_batch": 2}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(own_folders: Path) -> MakeRun:
    """The folder of a run that has checkpoints of steps 4 and 8 of 12, as far as `find_start` looks at it."""

    def make(name: str = "runs/a", parent: str | None = None, **keys: object) -> Path:
        folder = RunDir(Path(name))
        folder.create()
        numbers: dict[str, object] = {"duration": 12, "batch_size": 4, "micro_batch": 2, "schedule.warmup": 1}
        config = load("demo", flags=numbers | {key.replace("__", "."): value for key, value in keys.items()})
        folder.config_yaml.write_text(to_yaml(config))
        folder.env_json.write_text(json.dumps({"settings": SETTINGS, "parent": parent}))
        for step in (4, 8):
            checkpoint = folder.checkpoints / f"step-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "manifest.json").write_text("{}")
        return folder.path

    return make


def started(target: str, *allow: str, run: str | None = None, skip: int | None = None, **keys: Any) -> Start:
    flags = {key.replace("__", "."): value for key, value in keys.items()}
    return find_start(target, flags=flags, run=None if run is None else Path(run), allow=allow, skip=skip)


def refusal(*args: str, **how: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        started(*args, **how)
    return str(refused.value)


def test_a_run_that_continues_as_it_is_has_nothing_to_say(make_run: MakeRun) -> None:
    path = make_run()
    start = started(str(path))
    assert (start.run_dir.path, start.parent, start.notes) == (path, None, ())
    assert start.config == load(str(RunDir(path).config_yaml))


def test_a_free_key_changes_without_a_word(make_run: MakeRun) -> None:
    start = started(str(make_run()), log__every="3", eval__every="none", data__path="moved.txt")
    assert (start.config.log.every, start.config.eval.every, start.config.data.path) == (3, None, "moved.txt")
    assert start.notes == ()


def test_another_micro_batch_is_taken_and_said(make_run: MakeRun) -> None:
    start = started(str(make_run()), micro_batch="4")
    assert start.config.micro_batch == 4
    assert start.notes[0].startswith("changed: micro_batch is 4 and was 2: sums are taken in another order")


def test_saying_what_the_run_has_chosen_changes_nothing(make_run: MakeRun) -> None:
    start = started(str(make_run()), device="cpu", precision="fp32", compile="false", deterministic="true")
    assert start.notes == ()
    other = started("runs/a", precision="bf16", kernels="reference")
    assert (other.config.precision, other.config.kernels) == ("bf16", "reference")
    assert len(other.notes) == 2


def test_going_back_to_what_was_chosen_first_is_a_change_too(make_run: MakeRun) -> None:
    start = started(str(make_run(precision="bf16")), precision="fp32")
    assert start.config.precision == "fp32"
    assert start.notes[0].startswith("changed: precision is fp32 and was bf16")


def test_mathematics_changes_only_when_it_is_allowed(make_run: MakeRun) -> None:
    path = str(make_run())
    said = refusal(path, optim__lr="1e-4")
    assert "runs/a already holds a run with other settings:\n  optim.lr: 0.003 there, 0.0001 wanted" in said
    assert "--allow-change optim.lr" in said
    start = started(path, "optim.lr", optim__lr="1e-4")
    assert start.config.optim.lr == 1e-4
    assert "allowed by --allow-change optim.lr" in start.notes[0]
    assert "schedule.warmup" in refusal(path, "optim.lr", optim__lr="1e-4", schedule__warmup="2")


def test_allowing_what_does_not_change_is_no_harm_so_that_a_command_may_be_repeated(make_run: MakeRun) -> None:
    assert started(str(make_run()), "optim.lr", "model.width").notes == ()
    assert started("demo", "optim.lr", run="runs/new").config.name == "demo"
    assert "did you mean optim.lr?" in refusal("demo", "optim.lrr")


@pytest.mark.parametrize(
    "change",
    [
        {"model__width": "64"},
        {"seed": "3"},
        {"data__tokenizer": "chars"},
        {"optim__name": "muon"},
        {"batch_size": "8"},
        {"data__skip": "9+1"},
        {"data__order": "sequential"},
    ],
)
def test_what_would_not_fit_is_never_allowed(make_run: MakeRun, change: dict[str, str]) -> None:
    key = next(iter(change)).replace("__", ".")
    said = refusal(str(make_run()), key, **change)
    assert f"--allow-change {key} cannot make it fit" in said
    assert "start anew with --run OTHER" in said
    fits = key in {"seed", "batch_size", "data.skip", "data.order"}
    assert ("; or branch: trainwell train runs/a@last --run NEW" in said) is fits


def test_the_duration_is_free_with_a_horizon_and_says_so_without(make_run: MakeRun) -> None:
    make_run("runs/a", schedule__horizon=40)
    assert started("runs/a", duration="30").notes == ()
    make_run("runs/b")
    assert "(with schedule.horizon set, the duration would be free)" in refusal("runs/b", duration="30")
    assert started("runs/b", "duration", duration="30").config.duration.amount == 30


def test_a_branch_that_continues_knows_its_parent(make_run: MakeRun) -> None:
    make_run("runs/a")
    make_run("runs/b", parent="runs/a@8")
    assert started("runs/b").parent == (RunDir(Path("runs/a")), 8)


def test_a_parent_that_was_moved_along_is_found_beside(make_run: MakeRun) -> None:
    make_run("elsewhere/a")
    make_run("elsewhere/b", parent="/gone/runs/a@8")
    assert parent_of(RunDir(Path("elsewhere/b"))) == (RunDir(Path("elsewhere/a")), 8)
    make_run("alone/c", parent="/gone/runs/x@8")
    assert parent_of(RunDir(Path("alone/c"))) == (RunDir(Path("/gone/runs/x")), 8)


def test_a_record_that_cannot_be_read_is_named(make_run: MakeRun) -> None:
    RunDir(make_run()).env_json.write_text("{")
    with pytest.raises(StorageError, match=r"env\.json cannot be read .*; restore it, or start anew with --run OTHER"):
        started("runs/a")


def test_the_command_that_began_a_branch_continues_it_though_its_source_went_on(make_run: MakeRun) -> None:
    source = make_run("runs/a")
    make_run("runs/b", parent="runs/a@4", data__skip="4+2")
    for target in ("runs/a@4", "runs/a@last", "runs/a@best"):
        assert started(target, run="runs/b", skip=2).parent == (RunDir(source), 4)
    assert started("runs/a@last", run="runs/b", skip=2).config.data.skip == "4+2"
    (source / "checkpoints" / "step-4" / "manifest.json").unlink()  # gone with time, and not needed any more
    assert started("runs/a@4", run="runs/b", skip=2).run_dir.path == Path("runs/b")


def test_a_folder_with_another_branch_or_none_is_not_taken_for_this_one(make_run: MakeRun) -> None:
    make_run("runs/a")
    make_run("runs/b", parent="runs/a@4")
    make_run("runs/c")
    assert "it branches from runs/a@4, and runs/a@8 was asked for" in refusal("runs/a@8", run="runs/b")
    assert "it branches from runs/a@4, and runs/c@4 was asked for" in refusal("runs/c@4", run="runs/b")
    assert "it holds a run that is no branch of runs/a" in refusal("runs/a@8", run="runs/c")


def test_a_branch_killed_before_it_wrote_down_its_parent_begins_again(make_run: MakeRun) -> None:
    make_run("runs/a")
    make_run("runs/b")
    RunDir(Path("runs/b")).env_json.unlink()
    assert started("runs/a@8", run="runs/b").parent == (RunDir(Path("runs/a")), 8)


def test_a_branch_of_a_branch_is_one_of_the_branch(make_run: MakeRun) -> None:
    make_run("runs/a")
    make_run("runs/b", parent="runs/a@4", data__skip="4+2")
    start = started("runs/b@8", run="runs/c", skip=3)
    assert start.parent == (RunDir(Path("runs/b")), 8)
    assert start.config.data.skip == "4+2, 8+3"


def test_a_branch_may_have_another_rate_length_and_text(make_run: MakeRun) -> None:
    make_run("runs/a")
    config = started("runs/a@8", run="runs/b", optim__lr="1e-4", duration="20", data__path="other.txt").config
    assert (config.name, config.optim.lr, config.data.path) == ("b", 1e-4, "other.txt")
    assert config.duration.amount == 20


def test_a_branch_that_would_end_where_it_begins_is_refused(make_run: MakeRun) -> None:
    make_run("runs/a")
    said = refusal("runs/a@8", run="runs/b", duration="8")
    assert said == (
        "duration: 8 steps ends where the branch from runs/a@8 begins, or before; give more, such as --duration 16"
    )


def test_batches_are_left_out_where_a_branch_begins(make_run: MakeRun) -> None:
    make_run("runs/a")
    assert started("runs/a@8", run="runs/b", skip=2).config.data.skip == "8+2"
    assert started("runs/a@last", run="runs/b", skip=2).config.data.skip == "8+2"


@pytest.mark.parametrize("target", ["demo", "runs/a"])
def test_nothing_is_left_out_of_what_is_no_branch(make_run: MakeRun, target: str) -> None:
    make_run("runs/a")
    assert refusal(target, skip=2) == (
        f"--skip 2: batches are left out where a branch begins; write trainwell train {target}@STEP --run NEW --skip 2"
    )
    assert "at least 1" in refusal("runs/a@8", run="runs/b", skip=0)


def test_a_loader_cannot_leave_batches_out(make_run: MakeRun) -> None:
    make_run("runs/a")
    with pytest.raises(ConfigError, match=r"data\.skip: 8\+2, but from_loader's batches come as they come"):
        find_start("runs/a@8", run=Path("runs/b"), skip=2, data=iter(()))
    assert find_start("runs/a@8", run=Path("runs/b"), skip=2, data=[1]).config.data.skip == "8+2"


SKIPS = st.dictionaries(st.integers(0, 99), st.integers(1, 99), max_size=5)


@given(SKIPS, st.integers(0, 99), st.integers(1, 99))
def test_a_skip_is_added_to_those_there_are_and_adds_up_at_its_own_step(
    skips: dict[int, int], step: int, batches: int
) -> None:
    before = ", ".join(f"{at}+{skips[at]}" for at in sorted(skips)) or None
    after = dict(parse_skips(with_skip(before, step, batches)))
    assert after == skips | {step: skips.get(step, 0) + batches}
