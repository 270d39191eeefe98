"""Token shards: what was written is read, and any change to the file is noticed."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data.shards import Tokens, open_shard, token_dtype, write_shard
from trainwell.errors import DataError


@pytest.mark.parametrize(("vocab_size", "bits"), [(257, 16), (50_257, 16), (65_536, 16), (65_537, 32), (2**31, 32)])
def test_ids_are_stored_in_the_smaller_type_that_holds_them(vocab_size: int, bits: int) -> None:
    assert token_dtype(vocab_size) == np.dtype(f"<u{bits // 8}")


@given(tokens=st.lists(st.integers(0, 99_999), min_size=1), wide=st.booleans())
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, tokens: list[int], wide: bool) -> None:
    vocab_size = 100_000 if wide else 60_000
    path = tmp_path_factory.mktemp("shard") / "train.bin"
    ids = np.array(tokens) % vocab_size
    write_shard(path, [ids], vocab_size)
    read = open_shard(path, vocab_size=vocab_size)
    assert isinstance(read, np.memmap)
    assert not read.flags.writeable
    assert read.dtype == token_dtype(vocab_size)
    assert np.array_equal(read, ids)


@given(parts=st.lists(st.lists(st.integers(0, 299)), min_size=1).filter(any))
def test_how_the_tokens_came_leaves_no_trace(tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("shard")
    together = [token for part in parts for token in part]
    count = write_shard(folder / "parts.bin", (np.array(part, dtype=np.int64) for part in parts), 300)
    write_shard(folder / "whole.bin", [np.array(together, dtype=np.uint16)], 300)
    assert (folder / "parts.bin").read_bytes() == (folder / "whole.bin").read_bytes()
    assert count == len(together)


def test_tokens_that_stop_coming_leave_no_file(tmp_path: Path) -> None:
    def parts() -> Iterator[Tokens]:
        yield np.arange(10, dtype=np.uint16)
        (unfinished,) = tmp_path.iterdir()
        with pytest.raises(DataError, match="is damaged"):
            open_shard(unfinished)
        raise DataError("it broke")

    with pytest.raises(DataError, match="it broke"):
        write_shard(tmp_path / "train.bin", parts(), 300)
    assert not list(tmp_path.iterdir())


def test_a_shard_is_256_bytes_of_header_and_then_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    write_shard(path, [np.array([1, 2, 500])], 501)
    content = path.read_bytes()
    assert struct.unpack_from("<8sIIQQ", content) == (b"TRAINWEL", 1, 2, 3, 501)
    assert content[256:] == struct.pack("<3H", 1, 2, 500)
    assert [file.name for file in tmp_path.iterdir()] == ["train.bin"]


@pytest.mark.parametrize("token", [300, -1])
def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(DataError, match=rf"token id {token} is outside the vocabulary of 300 \(ids 0 to 299\)"):
        write_shard(tmp_path / "train.bin", [np.array([0, token, 299])], 300)
    with pytest.raises(DataError, match="is outside the vocabulary"):
        write_shard(tmp_path / "train.bin", [np.array([1, 2]), np.array([0, token])], 300)
    assert not list(tmp_path.iterdir())


def test_a_shard_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no tokens to store"):
        write_shard(tmp_path / "train.bin", [np.array([], dtype=np.int64)], 300)


@given(position=st.integers(0, 256 + 19), change=st.integers(1, 255))
def test_a_change_to_any_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, position: int, change: int) -> None:
    path = tmp_path_factory.mktemp("shard") / "train.bin"
    write_shard(path, [np.arange(10)], 257)
    content = bytearray(path.read_bytes())
    content[position] ^= change
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.bin is damaged: .* Delete it; the next run writes it again"):
        open_shard(path)


@pytest.mark.parametrize("kept", [0, 100, 256, 260])
def test_a_cut_shard_is_noticed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "train.bin"
    write_shard(path, [np.arange(10)], 257)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="is damaged: it has"):
        open_shard(path)


def test_a_shard_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.bin", [np.arange(10)], 257)
    with pytest.raises(DataError, match="has a vocabulary of 257, but 50,257 is expected"):
        open_shard(tmp_path / "train.bin", vocab_size=50_257)


def test_a_missing_shard_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.bin cannot be read: No such file"):
        open_shard(tmp_path / "train.bin")
