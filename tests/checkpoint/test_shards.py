"""Tensors that lie on disk in rows of several ranks: put together again, as far as they are asked for."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trainwell.checkpoint.layout import shard_name
from trainwell.checkpoint.shards import Share, Stored, share, stored, write_share
from trainwell.checkpoint.state import describe, same_bits
from trainwell.errors import StorageError


def spread(tensors: dict[str, Tensor], ranks: int, folder: Path) -> dict[str, Stored]:
    """The tensors as so many ranks would write them, those of two dimensions cut by rows; and what is read of them."""
    cut = {name: tensor.chunk(ranks) if tensor.dim() > 1 else (tensor,) for name, tensor in tensors.items()}
    for rank in range(ranks):
        mine = {name: pieces[rank].clone() for name, pieces in cut.items() if rank < len(pieces)}
        starts = {name: [0] * tensor.dim() for name, tensor in mine.items()}
        for name in starts.keys() & {name for name in cut if cut[name][0].dim() > 1}:
            starts[name][0] = rank * len(cut[name][0])
        write_share(Share(None, {}, mine, starts), folder, 1, rank)
    return stored(folder, describe(tensors))


@given(rows=st.integers(1, 9), ranks=st.integers(1, 5), data=st.data())
def test_any_rows_of_a_tensor_are_those_that_were_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: int, ranks: int, data: st.DataObject
) -> None:
    table = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
    found = spread({"t": table}, ranks, tmp_path_factory.mktemp("some"))["t"]
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert same_bits(found.rows(start, stop), table[start:stop])
    assert same_bits(found.whole(), table)
    assert found.shape == table.shape


def test_numbers_vectors_and_narrow_types_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "count": torch.tensor(7, dtype=torch.int64),
        "vector": torch.arange(5, dtype=torch.float16),
        "narrow": torch.arange(6, dtype=torch.bfloat16).reshape(3, 2),
    }
    found = spread(tensors, 2, tmp_path)
    for name, tensor in tensors.items():
        assert same_bits(found[name].whole(), tensor)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process reads, as is meant
def test_torchs_own_reader_puts_the_same_tensors_together(tmp_path: Path) -> None:
    from torch.distributed import checkpoint

    tensors = {"t": torch.randn(7, 3), "narrow": torch.randn(4, 2).bfloat16(), "count": torch.tensor(3.0)}
    spread(tensors, 3, tmp_path)
    found: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.load(found, storage_reader=checkpoint.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for name, tensor in tensors.items():
        assert same_bits(found[name], tensor)


def test_a_tensor_of_which_rows_are_missing_is_none(tmp_path: Path) -> None:
    spread({"t": torch.ones(6, 2)}, 3, tmp_path)
    (tmp_path / shard_name(1)).unlink()
    with pytest.raises(ValueError, match="t is not whole"):
        stored(tmp_path, describe({"t": torch.ones(6, 2)}))


def test_a_state_that_is_nowhere_in_parts_is_one_file_without_a_header() -> None:
    mine = share({"w": torch.ones(2, 2)}, main=True)
    assert mine.file(0) == "tensors.safetensors"
    assert mine.header is None


def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"rank 3 does not see .*gone; the run's folder must be where all ranks see"):
        write_share(Share(None, {}, {"w": torch.ones(1)}, {"w": [0]}), tmp_path / "gone", 1, 3)
