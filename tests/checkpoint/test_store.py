"""Saving, verifying, finding and removing: a checkpoint is there whole, or it is passed over with a reason."""

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from trainwell import faults
from trainwell.checkpoint.layout import MANIFEST, TENSORS, directory_of, saved_steps
from trainwell.checkpoint.state import Staging, same_bits
from trainwell.checkpoint.store import CheckpointStore
from trainwell.errors import ConfigError, StorageError


def state_of(step: int) -> dict[str, Any]:
    return {"trainer": {"step": step, "model": {"w": torch.full((3, 4), step / 7)}}, "kept": {}}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def found(store: CheckpointStore) -> tuple[int | None, list[str]]:
    """The newest step that verifies, and what was said of those passed over."""
    said: list[str] = []
    return store.newest(said.append), said


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_what_was_saved_is_loaded_with_its_meta(store: CheckpointStore) -> None:
    place = store.save(5, state_of(5), {"tokens": 80})
    state, meta = store.load(5)
    assert place == store.folder / "step-5"
    assert state["trainer"]["step"] == 5
    assert same_bits(state["trainer"]["model"]["w"], torch.full((3, 4), 5 / 7))
    assert meta == {"tokens": 80}


def test_a_tied_tensor_takes_its_room_once(store: CheckpointStore) -> None:
    weight = torch.zeros(1000)
    place = store.save(1, {"wte": weight, "head": weight}, {})
    assert (place / TENSORS).stat().st_size < 1.2 * 4 * 1000
    state, _ = store.load(1)
    assert state["wte"] is state["head"]


def test_views_of_one_tensor_are_saved_each_for_itself(store: CheckpointStore) -> None:
    rows = torch.arange(12.0).reshape(3, 4)
    store.save(1, {"all": rows, "first": rows[0], "across": rows.t(), "flat": rows.view(-1)}, {})
    state, _ = store.load(1)
    assert same_bits(state["all"], rows)
    assert same_bits(state["first"], rows[0])
    assert same_bits(state["across"], rows.t())
    assert same_bits(state["flat"], rows.view(-1))


def test_a_save_leaves_the_checkpoint_and_nothing_beside_it(store: CheckpointStore) -> None:
    place = store.save(5, state_of(5), {})
    assert names(store) == ["step-5"]
    assert sorted(path.name for path in place.iterdir()) == [MANIFEST, TENSORS]


def test_the_newest_three_are_kept(store: CheckpointStore) -> None:
    for step in (8, 9, 10, 11, 12):
        store.save(step, state_of(step), {})
    assert names(store) == ["step-10", "step-11", "step-12"]


def test_a_protected_one_is_kept_beside_the_newest(store: CheckpointStore) -> None:
    for step in range(1, 7):
        store.save(step, state_of(step), {}, protected={2})
    assert names(store) == ["step-2", "step-4", "step-5", "step-6"]
    store.save(7, state_of(7), {}, protected={5})
    assert names(store) == ["step-5", "step-6", "step-7"]


def test_one_that_can_be_fallen_back_on_is_always_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3):
        store.save(step, state_of(step), {})
    assert names(store) == ["step-2", "step-3"]


def test_foreign_names_are_never_touched(store: CheckpointStore) -> None:
    foreign = ["notes", "step-1-mine", "step-one", "best", "step-3.old", "step-3.tmp-mine"]
    for name in foreign:
        (store.folder / name).mkdir(parents=True)
        (store.folder / name / MANIFEST).write_text("mine")
    (store.folder / "README.txt").write_text("mine")
    for step in range(1, 6):
        store.save(step, state_of(step), {})
    assert names(store) == sorted([*foreign, "README.txt", "step-3", "step-4", "step-5"])


def test_what_a_killed_save_left_behind_is_removed_by_the_next(store: CheckpointStore) -> None:
    left = store.folder / "step-4.tmp-0a1b2c3d"
    left.mkdir(parents=True)
    (left / TENSORS).write_bytes(b"half of it")
    assert found(store) == (None, [])
    store.save(5, state_of(5), {})
    assert names(store) == ["step-5"]


def test_without_checkpoints_there_is_no_newest(store: CheckpointStore) -> None:
    assert found(store) == (None, [])


def test_the_newest_is_the_last_saved(store: CheckpointStore) -> None:
    for step in (9, 10):
        store.save(step, state_of(step), {})
    assert found(store) == (10, [])


def flip(path: Path, at: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the SHA-256 of tensors.safetensors differs": lambda place: flip(place / TENSORS),
    "tensors.safetensors is missing": lambda place: (place / TENSORS).unlink(),
    "bytes instead of": lambda place: os.truncate(place / TENSORS, 40),
    "does not match its own digest": lambda place: (place / MANIFEST).write_text(
        (place / MANIFEST).read_text().replace('"step": 2', '"step": 3', 1)
    ),
    "cannot be read": lambda place: os.truncate(place / MANIFEST, 40),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(store: CheckpointStore, reason: str) -> None:
    for step in (1, 2):
        store.save(step, state_of(step), {})
    DAMAGE[reason](store.folder / "step-2")
    newest, said = found(store)
    assert newest == 1
    assert len(said) == 1
    assert said[0].startswith(f"passed over {store.folder / 'step-2'}: ")
    assert reason in said[0]
    with pytest.raises(StorageError, match=reason):
        store.load(2)


def test_one_without_a_manifest_is_passed_over_with_the_reason(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(step, state_of(step), {})
    (store.folder / "step-2" / MANIFEST).unlink()
    newest, said = found(store)
    assert newest == 1
    assert "not a complete checkpoint" in said[0]


def test_where_none_is_whole_nothing_is_begun_anew_by_itself(store: CheckpointStore) -> None:
    for step in (1, 2):
        flip(store.save(step, state_of(step), {}) / TENSORS)
    with pytest.raises(
        StorageError, match=r"none of its checkpoints is whole \(steps 1, 2\); bring one back from a copy"
    ):
        found(store)


def test_a_checkpoint_under_the_name_of_another_step_is_noticed(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(step, state_of(step), {})
    shutil.rmtree(store.folder / "step-2")
    shutil.copytree(store.folder / "step-1", store.folder / "step-2")
    newest, said = found(store)
    assert newest == 1
    assert "its manifest is that of step 1" in said[0]


def test_nothing_goes_before_two_good_ones_are_there(store: CheckpointStore) -> None:
    for step in range(1, 4):
        store.save(step, state_of(step), {})
    for step in range(4, 8):
        flip(store.folder / f"step-{step - 1}" / TENSORS)
        store.save(step, state_of(step), {})
    assert found(store)[0] == 7
    flip(store.folder / "step-7" / TENSORS)
    assert found(store)[0] == 2
    for step in (8, 9):
        store.save(step, state_of(step), {})
    assert names(store) == ["step-7", "step-8", "step-9"]


def test_the_first_of_every_stretch_is_kept_for_good(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, keep_every=10)
    for step in range(4, 40, 4):
        store.save(step, state_of(step), {})
    assert names(store) == ["step-12", "step-20", "step-32", "step-36"]


def test_the_first_bytes_of_a_state_are_copied_into_memory_that_exists_already() -> None:
    state = {"a": torch.arange(5.0), "b": torch.ones(3, 2, dtype=torch.bfloat16).t(), "none": torch.zeros(0)}
    staging = Staging(1000)
    place = staging.copy(state)["a"].data_ptr()
    copied = staging.copy(state)
    assert copied["a"].data_ptr() == place
    assert all(same_bits(copied[name], tensor) for name, tensor in state.items())
    assert copied["a"].data_ptr() != state["a"].data_ptr()
    assert staging.size == 1000
    assert same_bits(staging.copy({"large": torch.ones(1000)})["large"], torch.ones(1000))
    assert staging.size >= 4000


def test_a_save_takes_the_place_of_a_damaged_directory(store: CheckpointStore) -> None:
    store.save(1, state_of(1), {})
    flip(store.save(2, state_of(2), {}) / TENSORS)
    store.save(2, state_of(2), {"second": True})
    assert found(store) == (2, [])
    assert store.load(2)[1] == {"second": True}
    assert names(store) == ["step-1", "step-2"]


def test_a_save_takes_the_place_of_a_directory_without_a_manifest(store: CheckpointStore) -> None:
    (store.folder / "step-2").mkdir(parents=True)
    (store.folder / "step-2" / "rubbish").write_text("from elsewhere")
    store.save(2, state_of(2), {})
    assert found(store) == (2, [])
    assert names(store) == ["step-2"]


def test_a_step_that_is_not_there_is_refused_naming_those_that_are(store: CheckpointStore) -> None:
    store.save(3, state_of(3), {})
    store.save(6, state_of(6), {})
    with pytest.raises(StorageError, match="has no checkpoint of step 4; it has: 3, 6"):
        store.load(4)
    with pytest.raises(StorageError, match="it has: none"):
        CheckpointStore(store.folder / "missing").load(4)


def test_a_state_that_cannot_be_stored_leaves_what_was_there(store: CheckpointStore) -> None:
    store.save(1, state_of(1), {})
    with pytest.raises(ConfigError, match=r"^kept\.schedule is a function"):
        store.save(2, {"kept": {"schedule": lambda step: step}}, {})
    assert names(store) == ["step-1"]
    assert found(store) == (1, [])


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_read_from_a_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    sung = tmp_path / "sung"
    pickle.loads(pickle.dumps(Canary(sung)))
    assert sung.is_dir(), "the canary can sing"
    sung.rmdir()
    store.save(1, state_of(1), {})
    place = store.save(2, state_of(2), {})
    for name in (TENSORS, MANIFEST):
        content = (place / name).read_bytes()
        (place / name).write_bytes(pickle.dumps(Canary(sung)))
        with pytest.raises(StorageError):
            store.load(2)
        assert found(store)[0] == 1
        (place / name).write_bytes(content)
    assert not sung.exists()


def test_a_tensor_file_is_one_that_others_can_read(store: CheckpointStore) -> None:
    place = store.save(5, state_of(5), {})
    with safe_open(place / TENSORS, framework="np") as file:
        assert list(file.keys()) == ["trainer.model.w"]


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_full_disk_is_a_message_and_costs_no_older_checkpoint(
    store: CheckpointStore, no_longer_than: Callable[[int], AbstractContextManager[None]], size: int
) -> None:
    for step in (1, 2, 3):
        store.save(step, state_of(step), {})
    with (
        no_longer_than(size),
        pytest.raises(StorageError, match=r"step-4 could not be written: .*; there is no room: free some"),
    ):
        store.save(4, {"w": torch.zeros(100_000)}, {})
    assert names(store) == ["step-1", "step-2", "step-3"]
    assert found(store) == (3, [])


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"step-1 could not be written.*--run"):
        CheckpointStore(tmp_path / "file" / "checkpoints").save(1, state_of(1), {})


def test_a_disk_that_does_not_keep_what_is_written_leaves_no_checkpoint(store: CheckpointStore) -> None:
    store.save(1, state_of(1), {})
    with faults.at("ckpt.mid_write@2", lambda: None), pytest.raises(StorageError, match="step-2 could not be written"):
        store.save(2, state_of(2), {})
    assert found(store) == (1, [])
    with (
        faults.at("ckpt.after_rename@2", lambda: flip(store.folder / "step-2" / TENSORS, -1)),
        pytest.raises(StorageError, match=r"step-2: trainer\.model\.w reads back differently"),
    ):
        store.save(2, state_of(2), {})
    assert found(store) == (1, [])


def test_where_a_step_lies_is_no_secret(tmp_path: Path) -> None:
    assert directory_of(tmp_path, 1200) == tmp_path / "step-1200"
    assert saved_steps(tmp_path) == []
