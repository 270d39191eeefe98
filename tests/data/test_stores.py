"""Token files of others as the data of a run: read in place, known again, and refused where they do not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.data.test_prepare import Settings

from trainwell.data.batches import Windows
from trainwell.data.stores import is_store, open_store
from trainwell.data.tokenizer import BytesTokenizer
from trainwell.errors import ConfigError, DataError

TEXT = "The quick brown fox jumps over the lazy dog. " * 20
IDS = BytesTokenizer().encode(TEXT)


def nanogpt(folder: Path) -> Settings:
    """Write train.bin and val.bin as nanoGPT does, with the text they are from beside them."""
    folder.mkdir(exist_ok=True)
    (folder / "input.txt").write_text(TEXT)
    IDS[:800].astype("<u2").tofile(folder / "train.bin")
    IDS[800:].astype("<u2").tofile(folder / "val.bin")
    return Settings(corpus=None, path=str(folder))


def test_a_folder_of_nanogpt_is_read_in_place(tmp_path: Path) -> None:
    store = open_store(nanogpt(tmp_path / "shakespeare"), cache=tmp_path / "cache")
    assert store.train[:].tolist() == IDS[:800].tolist()
    assert store.val[:].tolist() == IDS[800:].tolist()
    assert (store.info.train_tokens, store.info.val_tokens, store.info.val_bytes) == (800, 100, 100)


def test_windows_go_on_from_one_shard_to_the_next(tmp_path: Path) -> None:
    for number in range(9):
        np.save(tmp_path / f"fineweb_train_{number:06d}.npy", IDS[100 * number : 100 * number + 100])
    np.save(tmp_path / "fineweb_val_000000.npy", IDS[:50])
    store = open_store(Settings(corpus=None, path=str(tmp_path)), cache=tmp_path / "cache")
    ours, whole = Windows(store.train, 30, 30), Windows(IDS, 30, 30)
    assert len(ours) == len(whole)
    for index in range(len(ours)):
        assert ours[index][0].tolist() == whole[index][0].tolist()


@pytest.mark.parametrize("name", ["part-000.npy", "ids.bin"])
def test_without_a_file_held_out_the_end_is(name: str, tmp_path: Path) -> None:
    IDS.astype("<u2").tofile(tmp_path / name)
    settings = Settings(corpus=None, path=str(tmp_path / name), val_fraction=0.25)
    store = open_store(settings, cache=tmp_path / "cache")
    assert store.train[:].tolist() == IDS[:675].tolist()
    assert store.val[:].tolist() == IDS[675:].tolist()
    with pytest.raises(ConfigError, match="Hold out the tail"):
        open_store(replace(settings, split="documents"), cache=tmp_path / "cache")


def test_ids_of_another_tokenizer_are_one_message(tmp_path: Path) -> None:
    np.array([5, 50256, 7] * 100, dtype="<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(DataError, match=r"holds the id 50,256, and bytes has ids up to 256. Name the tokenizer"):
        open_store(Settings(corpus=None, path=str(tmp_path)), cache=tmp_path / "cache")


def test_characters_have_no_alphabet_without_a_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chars takes its alphabet from a text"):
        open_store(replace(nanogpt(tmp_path), tokenizer="chars"), cache=tmp_path / "cache")


def test_files_to_validate_on_alone_are_refused(tmp_path: Path) -> None:
    IDS.tofile(tmp_path / "val.bin")
    with pytest.raises(DataError, match="none to train on"):
        open_store(Settings(corpus=None, path=str(tmp_path)), cache=tmp_path / "cache")


def test_fewer_ids_than_a_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than one window"):
        open_store(replace(nanogpt(tmp_path), seq_len=200), cache=tmp_path / "cache")


def test_files_are_looked_into_once_and_again_when_they_change(tmp_path: Path) -> None:
    settings, read = nanogpt(tmp_path / "data"), list[int]()

    def looked(done: int, _total: int) -> None:
        read.append(done)

    first = open_store(settings, cache=tmp_path / "cache", on_progress=looked)
    assert read == [800, 900]
    assert open_store(settings, cache=tmp_path / "cache", on_progress=looked).info == first.info
    assert read == [800, 900]
    IDS[:700].astype("<u2").tofile(tmp_path / "data" / "train.bin")
    changed = open_store(settings, cache=tmp_path / "cache", on_progress=looked)
    assert read == [800, 900, 700]
    assert changed.info.fingerprint != first.info.fingerprint


def test_the_same_ids_elsewhere_are_the_same_data(tmp_path: Path) -> None:
    here, there = (open_store(nanogpt(tmp_path / name), cache=tmp_path / "cache") for name in ("a", "b"))
    assert here.info.fingerprint == there.info.fingerprint


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert open_store(nanogpt(tmp_path / "data"), cache=tmp_path / "file").info.train_tokens == 800


def test_a_manifest_of_another_kind_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "a.txt").write_text(TEXT)
    assert not is_store(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["train.bin", "val.bin", "input.txt"], True),
        (["part-0.npy", "part-1.npy"], True),
        (["readme.md", "weights.bin"], False),
        (["a.txt"], False),
        ([], False),
    ],
)
def test_a_folder_is_a_store_by_what_lies_in_it(files: list[str], found: bool, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"12")
    assert is_store(str(tmp_path)) is found
    assert not is_store(str(tmp_path / "missing"))
    assert not is_store(None)
