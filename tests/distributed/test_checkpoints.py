"""Checkpoints that several ranks write, each its part: whole or not there, and read by any number of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_parallel import adamw, made

from trainwell.checkpoint.layout import MANIFEST, directory_of, is_shard, saved_steps
from trainwell.distributed.local import run_distributed

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes must find this module, which pytest imports in a way of its own."""
    monkeypatch.syspath_prepend(ROOT)


def trained(how: Any, steps: int) -> tuple[Any, Any]:
    """A model whose weights and moments are those of so many steps, and its optimizer."""
    import torch

    from trainwell.distributed.parallel import Shared, gradient_sync
    from trainwell.distributed.world import current
    from trainwell.model.loss import token_loss

    model = made("gpt2")
    loss = Shared(model, token_loss, how, current()) if how != "none" else None
    optimizer = adamw(model)
    ids = torch.arange(12).reshape(2, 6)
    for _ in range(steps):
        gradient_sync(loss, enabled=True)
        value = (loss or token_loss)(model, _Rows(ids, ids))
        (value / current().size).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


class _Rows:
    """Rows as a loss takes them."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs, self.targets = inputs, targets


def written(rank: int, world_size: int, folder: str, breaks: int | None = None) -> str:
    """Save a state as two steps leave it; where rank `breaks` cannot write, what the error says on this one."""
    from trainwell import faults
    from trainwell.checkpoint.shards import share
    from trainwell.checkpoint.store import CheckpointStore
    from trainwell.distributed.world import current
    from trainwell.errors import StorageError

    def no_room() -> None:
        raise OSError(28, "No space left on device")

    world = current()
    model, optimizer = trained("fsdp", 2)
    mine = share({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 2}, main=world.main)
    try:
        with faults.at(f"ckpt.mid_write@2:{breaks}" if breaks is not None else "eval.mid@0", no_room):
            CheckpointStore(Path(folder)).write(2, mine, {}, world.beside())
    except StorageError as error:
        return str(error)
    return ""


def restored(rank: int, world_size: int, folder: str, how: str) -> list[Any]:
    """Weights and moments of a fresh model that has loaded them, whole; on disk until they are asked for."""
    from trainwell.checkpoint.store import CheckpointStore
    from trainwell.distributed.parallel import load_model_state, load_optimizer_state, whole

    model, optimizer = trained(how, 0)
    state, _ = CheckpointStore(Path(folder)).load(2, on_disk=lambda name: name.startswith(("model.", "optimizer.")))
    load_model_state(model, state["model"])
    load_optimizer_state(optimizer, state["optimizer"])
    moments = [whole(value) for about in optimizer.state.values() for value in about.values()]
    return [tensor.detach().clone() for tensor in [*map(whole, model.parameters()), *moments]]


@pytest.mark.parametrize("ranks", [2, 3])
def test_each_rank_writes_its_rows_and_any_number_of_ranks_reads_what_one_process_reads(
    tmp_path: Path, ranks: int
) -> None:
    import torch

    assert run_distributed(written, ranks, str(tmp_path)) == [""] * ranks
    place = directory_of(tmp_path, 2)
    files = [path.name for path in place.iterdir() if path.name != MANIFEST]
    assert len(files) == ranks
    assert all(map(is_shard, files))
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["format"] == 2
    assert sorted(manifest["files"]) == sorted(files)
    alone = run_distributed(restored, 1, str(tmp_path), "none")[0]
    assert any(tensor.abs().max() > 0 for tensor in alone)
    for again, how in ((1, "fsdp"), (2, "ddp"), (2, "fsdp"), (3, "fsdp")):
        for found in run_distributed(restored, again, str(tmp_path), how):
            assert all(map(torch.equal, found, alone))


@pytest.mark.parametrize("breaks", [0, 1])
def test_where_one_rank_cannot_write_none_has_saved_and_all_know_why(tmp_path: Path, breaks: int) -> None:
    said = run_distributed(written, 2, str(tmp_path), breaks)
    assert all("could not be written" in text and "there is no room" in text for text in said)
    assert said[1 - breaks].startswith(f"rank {breaks}: ")
    assert saved_steps(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
