"""The soak itself can fail: what it looks for is really looked for."""

import random
from pathlib import Path

import pytest
from benchmarks.soak import damage
from benchmarks.soak.tiny import differences, settings

from trainwell.checkpoint.store import CheckpointStore


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    import torch

    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (4, 8, 12):
        store.save(step, {"weight": torch.arange(8) * float(step)}, {"data": {}})
    return store.folder


@pytest.mark.parametrize("name", ["flip", "cut", *damage.OTHERS, *damage.SWAPS])
def test_each_kind_of_damage_is_detected_and_undone(checkpoints: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    kinds = {"flip": damage.flip, "cut": damage.truncate} | damage.OTHERS | damage.SWAPS
    assert damage.detected(checkpoints, kinds[name], random.Random(1)) == []
    assert before == {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}


def test_damage_that_does_nothing_counts_as_not_detected(checkpoints: Path) -> None:
    def nothing(directory: Path, dice: random.Random) -> str:
        return f"{directory.name}: nothing at all, {dice.random() < 1}"

    problems = damage.detected(checkpoints, nothing, random.Random(1))
    assert any(problem.endswith("verify did not notice") for problem in problems)
    assert any(problem.endswith("load did not notice") for problem in problems)


def test_a_value_that_differs_is_found_and_its_place_named() -> None:
    one = {"tensors": {"a": b"1"}, "steps": ["x", "y"], "samples": "s"}
    assert differences(one, one) == []
    assert differences(one, one | {"steps": ["x", "z"]}) == ["steps differ at 1: y and z"]
    assert differences(one, one | {"tensors": {"a": b"2"}}) == ["tensors differ"]


def test_a_seed_gives_the_same_settings_and_another_seed_others() -> None:
    assert settings(3) == settings(3)
    assert settings(3) != settings(4)
    assert settings(3, duration=5)["duration"] == 5
