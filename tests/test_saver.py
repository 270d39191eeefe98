"""Saving in the background: what is saved is the state of its step, training waits for a copy, no failure ends it."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from trainwell import faults
from trainwell.checkpoint.layout import saved_steps
from trainwell.checkpoint.store import CheckpointStore
from trainwell.errors import StorageError
from trainwell.evaluate import Evaluation
from trainwell.fit import fit, steps
from trainwell.run import Run

Build = Callable[..., Run]
BitsOf = Callable[[Any], Any]

HOW = [{"asynchronous": True}, {"asynchronous": False}]


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Once:
    """Fails the first time, and only then."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        if self.times == 1:
            no_room()


def test_training_goes_on_while_a_checkpoint_is_written_and_the_checkpoint_is_of_its_step(
    build_tiny: Build, bits_of: BitsOf
) -> None:
    run, written = build_tiny(run_dir="runs/a", checkpoint={"every": 4}), Event()
    with run, faults.at("ckpt.tmp_open@4", written.wait):
        for result in steps(run):
            if result.step == 3:
                then = bits_of(run.saver.state())
            if result.step == 6:
                assert saved_steps(run.run_dir.checkpoints) == []
                written.set()
                run.saver.join()
                assert bits_of(run.store.load(4)[0]) == then
                assert bits_of(run.saver.state()) != then
    assert saved_steps(run.run_dir.checkpoints) == [4, 8, 12]


def test_one_save_is_under_way_at_a_time(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"every": 1})
    with run:
        for result in steps(run):
            if result.step > 1:
                assert result.step - 1 in saved_steps(run.run_dir.checkpoints)


def test_background_or_not_the_same_bytes_are_saved(build_tiny: Build) -> None:
    files = [
        {
            path.relative_to(run.run_dir.checkpoints): path.read_bytes()
            for path in run.run_dir.checkpoints.rglob("*.safetensors")
        }
        for run in [fit(build_tiny(run_dir=f"runs/{number}", checkpoint=how)) for number, how in enumerate(HOW)]
    ]
    assert len(files[0]) == 3
    assert files[0] == files[1]


def test_the_memory_for_it_is_there_before_the_first_step_and_never_grows(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"every": 1})
    sizes = set()
    with run:
        for _ in steps(run):
            sizes.add(run.saver.buffers)
    (size,) = sizes
    assert size >= run.saver.estimate()
    without = build_tiny(run_dir="runs/b", checkpoint={"asynchronous": False})
    assert fit(without).saver.buffers == 0


def test_a_run_that_saves_at_its_end_alone_holds_no_buffers(build_tiny: Build) -> None:
    run = build_tiny(checkpoint={"every": None, "best": False, "asynchronous": True})
    assert fit(run).saver.buffers == 0
    assert saved_steps(run.run_dir.checkpoints) == [run.num_steps]


@pytest.mark.parametrize("how", HOW)
def test_a_failed_save_is_reported_training_goes_on_and_the_next_is_saved(
    build_tiny: Build, capsys: pytest.CaptureFixture[str], how: dict[str, Any]
) -> None:
    with faults.at("ckpt.before_manifest@8", no_room):
        run = fit(build_tiny(run_dir="runs/a", checkpoint=how))
    assert saved_steps(run.run_dir.checkpoints) == [4, 12]
    said = capsys.readouterr().out
    assert "step 8 is not saved, training goes on and saves when next due" in said
    assert "there is no room: free some, remove old checkpoints" in said
    assert run.finished


@pytest.mark.parametrize("how", HOW)
def test_the_last_state_is_tried_twice_before_it_is_given_up(build_tiny: Build, how: dict[str, Any]) -> None:
    with faults.at("ckpt.before_manifest@12", Once()):
        run = fit(build_tiny(run_dir="runs/a", checkpoint=how))
    assert saved_steps(run.run_dir.checkpoints) == [4, 8, 12]
    with faults.at("ckpt.mid_write@12", no_room), pytest.raises(StorageError, match="step-12 could not be written"):
        fit(build_tiny(run_dir="runs/b", checkpoint=how))
    again = fit(build_tiny(run_dir="runs/b", checkpoint=how))
    assert saved_steps(again.run_dir.checkpoints) == [4, 8, 12]
    same = [run.store.load(12)[0]["trainer"]["model"]["wte.weight"] for run in (run, again)]
    assert same[0].equal(same[1])


def test_a_manifest_says_what_the_state_is_of(build_tiny: Build) -> None:
    run = fit(build_tiny(run_dir="runs/a"))
    _, meta = run.store.load(8)
    assert meta["tokens"] == 8 * 4 * 16
    assert meta["skipped"] == 0
    assert meta["world_size"] == 1
    assert len(meta["config_sha256"]) == 64
    assert meta["data"] == run.facts
    assert {"python", "torch", "trainwell"} <= meta["versions"].keys()


def test_a_run_that_fails_says_why_and_not_that_it_could_not_be_saved(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a")

    def fail_after_a_save() -> None:
        with run:
            for result in steps(run):
                if result.step == 5:
                    raise ZeroDivisionError

    with faults.at("ckpt.mid_write@4", no_room), pytest.raises(ZeroDivisionError):
        fail_after_a_save()


def test_a_start_that_was_killed_before_the_folder_was_a_run_begins_again(build_tiny: Build, own_folders: Path) -> None:
    folder = own_folders / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "env.json").write_text("")
    (folder / "tokenizer.json").write_text("{")
    (folder / ".config.yaml").write_text("optim:")
    run = fit(build_tiny(run_dir="runs/a"))
    assert run.finished
    assert json.loads((folder / "env.json").read_text())["settings"]["micro_batch"] == 2
    assert json.loads((folder / "tokenizer.json").read_text())
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        ".lock", "config.yaml", "env.json", "metrics.jsonl", "starts.jsonl", "tokenizer.json"
    ]  # fmt: skip


def test_the_best_that_could_not_be_saved_does_not_cost_the_best_that_was(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"keep": 2, "every": None})
    losses = {4: 1.0, 6: 0.5, 8: 2.0, 10: 2.0, 12: 2.0}
    with run, faults.at("ckpt.before_manifest@6", no_room):
        run.restore()
        for step, loss in losses.items():
            run.trainer.step = step
            run.save()
            run.record(Evaluation(loss, 10))
        run.finish()
    assert saved_steps(run.run_dir.checkpoints) == [4, 10, 12]


def test_room_is_asked_for_those_that_are_kept_for_good_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, keep_every=5)
    assert store.to_come(0, 100) == 3 + 20
    for step in (5, 10, 12):
        store.save(step, {"step": step}, {})
    assert store.to_come(12, 100) == 2 + 18
    assert CheckpointStore(tmp_path, keep=2).to_come(12, 100) == 1


def test_a_restored_state_does_not_hang_on_its_file(build_tiny: Build, advance: Callable[[Run, int], None]) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    run = build_tiny(run_dir="runs/a")
    with run:
        run.restore()
        assert "tensors.safetensors" not in Path("/proc/self/maps").read_text()


def test_a_state_saved_by_another_torch_goes_on_and_says_so(
    build_tiny: Build, advance: Callable[[Run, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_tiny(run_dir="runs/a")
    advance(run, 5)
    state, meta = run.store.load(4)
    run.store.save(4, state, meta | {"versions": meta["versions"] | {"torch": "2.11.0"}})
    fit(build_tiny(run_dir="runs/a"))
    assert "saved by other versions (torch: 2.11.0 then, " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_goes_on_with_the_settings_it_has_now(
    build_tiny: Build, advance: Callable[[Run, int], None], name: str
) -> None:
    advance(build_tiny(run_dir="runs/a", optim={"name": name}), 5)
    run = fit(build_tiny(run_dir="runs/a", optim={"name": name}, kernels="reference"))
    assert {group["fused"] for group in run.trainer.optimizer.param_groups if "fused" in group} == {False}
