"""A checkpoint on disk: the manifest is what makes it one, and any change to it or to a file is noticed."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.checkpoint.layout import (
    MANIFEST,
    TENSORS,
    Manifest,
    directory_of,
    read_manifest,
    saved_steps,
    write_manifest,
)
from trainwell.errors import StorageError

CONTENT = b"tensors of any kind, as far as this module knows"
WRITTEN = Manifest(
    step=12, state={"step": 12}, tensors={"w": {"dtype": "float32", "shape": [2, 3]}}, meta={"tokens": 768}
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with one file and its manifest."""
    directory = directory_of(tmp_path, 12)
    directory.mkdir()
    (directory / TENSORS).write_bytes(CONTENT)
    write_manifest(directory, WRITTEN)
    return directory


def damage_of(directory: Path) -> str:
    """What is said of a directory that is no checkpoint."""
    with pytest.raises(StorageError) as refused:
        read_manifest(directory)
    assert str(directory) in str(refused.value)
    return str(refused.value)


def edit(directory: Path, **changes: Any) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(manifest | changes))


def test_what_a_manifest_says_is_read_back(checkpoint: Path) -> None:
    assert read_manifest(checkpoint) == WRITTEN


def test_a_manifest_names_every_file_with_size_and_hash(checkpoint: Path) -> None:
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert list(files) == [TENSORS]
    assert files[TENSORS]["size"] == len(CONTENT)
    assert len(files[TENSORS]["sha256"]) == 64


def test_a_manifest_is_readable_json(checkpoint: Path) -> None:
    assert json.loads((checkpoint / MANIFEST).read_text())["tensors"]["w"] == {"dtype": "float32", "shape": [2, 3]}


@pytest.mark.parametrize("changes", [{"step": 13}, {"state": {}}, {"meta": {"tokens": 769}}, {"files": {}}])
def test_a_manifest_that_was_edited_does_not_match_its_own_digest(checkpoint: Path, changes: dict[str, Any]) -> None:
    edit(checkpoint, **changes)
    assert "does not match its own digest" in damage_of(checkpoint)


def test_a_manifest_without_a_digest_is_refused(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["digest"]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert "does not match its own digest" in damage_of(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\N{SNOWMAN}"])
def test_a_manifest_that_is_no_json_object_cannot_be_read(checkpoint: Path, text: str) -> None:
    (checkpoint / MANIFEST).write_text(text)
    assert "its manifest cannot be read" in damage_of(checkpoint)


def test_a_directory_without_a_manifest_is_no_checkpoint(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()
    assert "not a complete checkpoint" in damage_of(checkpoint)


@given(place=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
def test_a_single_flipped_bit_of_a_file_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    directory = tmp_path_factory.mktemp("step")
    (directory / TENSORS).write_bytes(CONTENT)
    write_manifest(directory, WRITTEN)
    flipped = bytearray(CONTENT)
    flipped[place] ^= 1 << bit
    (directory / TENSORS).write_bytes(flipped)
    assert f"the SHA-256 of {TENSORS} differs" in damage_of(directory)


@pytest.mark.parametrize("length", [0, len(CONTENT) - 1])
def test_a_truncated_file_is_named_with_both_sizes(checkpoint: Path, length: int) -> None:
    (checkpoint / TENSORS).write_bytes(CONTENT[:length])
    assert f"{TENSORS} has {length} bytes instead of {len(CONTENT)}" in damage_of(checkpoint)


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / TENSORS).unlink()
    assert f"{TENSORS} is missing" in damage_of(checkpoint)


def test_a_bit_that_changes_no_value_is_damage_too(checkpoint: Path) -> None:
    text = (checkpoint / MANIFEST).read_text()
    (checkpoint / MANIFEST).write_text(text.replace("\n ", "\n  ", 1))
    assert "its manifest is not as it was written" in damage_of(checkpoint)


def test_a_newer_format_is_told_from_damage(tmp_path: Path) -> None:
    directory = tmp_path / "step-1"
    directory.mkdir()
    write_manifest(directory, WRITTEN)
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["digest"]
    newer = manifest | {"format": 3}
    digest = sha256(json.dumps(newer, sort_keys=True).encode()).hexdigest()
    (directory / MANIFEST).write_text(json.dumps(newer | {"digest": digest}))
    assert "format 3, this trainwell reads 1 and 2" in damage_of(directory)


def test_files_are_not_read_when_only_the_manifest_is_asked_for(checkpoint: Path) -> None:
    (checkpoint / TENSORS).unlink()
    assert read_manifest(checkpoint, verify_files=False) == WRITTEN


def test_saved_steps_are_counted_in_numbers_not_in_letters(tmp_path: Path) -> None:
    for step in (1000, 9, 20):
        directory_of(tmp_path, step).mkdir()
        write_manifest(directory_of(tmp_path, step), WRITTEN)
    assert saved_steps(tmp_path) == [9, 20, 1000]


@pytest.mark.parametrize("name", ["step-5.tmp-0a1b2c3d", "step-5.replaced-0a1b2c3d", "step-", "step-five", "my-step-5"])
def test_a_directory_of_another_name_is_no_saved_step(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write_manifest(tmp_path / name, WRITTEN)
    assert saved_steps(tmp_path) == []


def test_a_directory_without_a_manifest_is_no_saved_step(tmp_path: Path) -> None:
    directory_of(tmp_path, 5).mkdir()
    assert saved_steps(tmp_path) == []


def test_a_folder_that_does_not_exist_has_no_saved_steps(tmp_path: Path) -> None:
    assert saved_steps(tmp_path / "missing") == []
