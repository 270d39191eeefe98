"""Files of ids in the layouts of others, written here as their programs document them, and read back id for id."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainwell.data.shards import write_shard
from trainwell.data.token_files import open_token_file, token_paths
from trainwell.errors import DataError

IDS = np.array([50256, 0, 1, 2, 40000, 50256, 65535, 7], dtype=np.uint32)
LARGE = np.array([128_000, 5, 128_255, 9], dtype=np.uint32)


def llm_c(path: Path, ids: np.ndarray, magic: int, version: int, dtype: str) -> None:
    path.write_bytes(struct.pack("<3i", magic, version, len(ids)).ljust(1024, b"\0") + ids.astype(dtype).tobytes())


WRITERS: dict[str, tuple[Callable[[Path], object], np.ndarray, str]] = {
    "nanoGPT": (lambda path: IDS.astype("<u2").tofile(path), IDS, "raw"),
    "llm.c": (lambda path: llm_c(path, IDS, 20240520, 1, "<u2"), IDS, "llm.c"),
    "llm.c for Llama 3": (lambda path: llm_c(path, LARGE, 20240801, 7, "<u4"), LARGE, "llm.c llama"),
    "trainwell": (lambda path: write_shard(path, [IDS], 65536), IDS, "trainwell"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_layout_is_known_by_how_it_begins_and_read_back(name: str, tmp_path: Path) -> None:
    write, ids, layout = WRITERS[name]
    write(tmp_path / "train.bin")
    found = open_token_file(tmp_path / "train.bin")
    assert found.layout == layout
    assert found.ids.tolist() == ids.tolist()
    assert not found.ids.flags.writeable


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "int64"])
def test_shards_of_build_nanogpt_are_arrays_of_numpy(dtype: str, tmp_path: Path) -> None:
    ids = IDS[:5] if dtype == "uint16" else LARGE
    np.save(tmp_path / "edufineweb_train_000001.npy", ids.astype(dtype))
    found = open_token_file(tmp_path / "edufineweb_train_000001.npy")
    assert found.layout == "npy"
    assert found.ids.tolist() == ids.tolist()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50280, "<u2"), (100278, "<u4")])
def test_ids_of_olmo_have_no_header_and_are_as_wide_as_the_vocabulary_needs(
    vocab_size: int, dtype: str, tmp_path: Path
) -> None:
    ids = np.array([0, vocab_size - 1, 3], dtype=dtype)
    ids.tofile(tmp_path / "part-000-00000.npy")
    found = open_token_file(tmp_path / "part-000-00000.npy", vocab_size)
    assert (found.layout, found.ids.tolist()) == ("raw", ids.tolist())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no ids"),
        (b"\1\2\3", "there are 3, not whole ids of 2 bytes"),
        (struct.pack("<3i", 20240520, 1, 9).ljust(1024, b"\0") + bytes(16), "not 9 ids of 2 bytes"),
        (b"\x93NUMPY\x01\x00 torn", "is damaged, or no array"),
        (b"TRAINWEL and then something else", "is damaged"),
    ],
)
def test_a_file_that_is_damaged_is_one_message(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_token_file(tmp_path / "train.bin")


@pytest.mark.parametrize("array", [np.zeros((2, 2), dtype=np.uint16), np.zeros(3), np.zeros(0, dtype=np.uint16)])
def test_an_array_that_is_no_row_of_ids_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="ids are one row of integers"):
        open_token_file(tmp_path / "a.npy")


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="damaged, or no array"):
        open_token_file(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("val.bin", True),
        ("fineweb_val_000000.bin", True),
        ("edufineweb_val_000000.npy", True),
        ("TinyStories_VALID.bin", True),
        ("train.bin", False),
        ("evaluations.bin", False),
        ("interval_train_1.npy", False),
    ],
)
def test_a_name_says_whether_a_file_is_for_validation(name: str, held_out: bool, tmp_path: Path) -> None:
    np.arange(4, dtype="<u2").tofile(tmp_path / name)
    assert open_token_file(tmp_path / name).is_held_out is held_out


def test_the_files_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.bin", "a.npy", "meta.pkl", "c.txt"):
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "d.bin").mkdir()
    assert [file.name for file in token_paths(tmp_path)] == ["a.npy", "b.bin"]
    assert token_paths(tmp_path / "c.txt") == []
    assert token_paths(tmp_path / "missing.bin") == []
