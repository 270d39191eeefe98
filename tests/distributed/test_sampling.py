"""Who draws a sample among several ranks, and that a stop in its middle is one for all."""

from pathlib import Path
from typing import Any

import pytest
from tests.distributed.test_runs import keys_of

from trainwell.distributed.local import run_distributed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processes must find this module, which pytest imports in a way of its own; and share a cache."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path / "cache"))


def passes_of_samples(rank: int, size: int, folder: str, keys: dict[str, Any], stop_on: int | None) -> tuple[int, int]:
    """Train with samples; how often this rank's model computed between steps, and the step it ended at.

    Rank `stop_on` asks for a stop when its model has computed so for the third time.
    """
    import torch

    import trainwell
    from trainwell.fit import fit

    torch.set_num_threads(1)
    run, passes = trainwell.build("demo", run_dir=folder, **keys), 0

    def count(model: Any, _inputs: Any) -> None:
        nonlocal passes
        passes += not model.training and run.trainer.step > 0
        if passes == 3 and rank == stop_on:
            run.stop()

    run.model.register_forward_pre_hook(count)
    fit(run)
    return passes, run.trainer.step


def sampling(tmp_path: Path, parallel: str) -> dict[str, Any]:
    _, keys = keys_of("demo", tmp_path)
    return keys | {"parallel": parallel, "eval": {"every": None}, "sample": {"every": 6, "tokens": 5}}


@pytest.mark.slow
def test_with_ddp_the_first_rank_draws_and_the_others_only_wait(tmp_path: Path) -> None:
    keys = sampling(tmp_path, "ddp")
    (first, _), (second, _) = run_distributed(passes_of_samples, 2, str(tmp_path / "run"), keys, None, timeout_s=200)
    assert first - second == 2 * 5
    heads = [line for line in (tmp_path / "run/samples.txt").read_text().splitlines() if "prompt" in line]
    assert len(heads) == 2


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_sample_gives_it_up_on_all_ranks_and_the_rest_is_made_up_for(tmp_path: Path) -> None:
    keys = sampling(tmp_path, "ddp")
    ended = run_distributed(passes_of_samples, 2, str(tmp_path / "run"), keys, 0, timeout_s=200)
    assert [step for _, step in ended] == [6, 6]
    assert not (tmp_path / "run/samples.txt").exists()
    run_distributed(passes_of_samples, 2, str(tmp_path / "run"), keys, None, timeout_s=200)
    run_distributed(passes_of_samples, 1, str(tmp_path / "one"), keys, None, timeout_s=200)
    assert (tmp_path / "run/samples.txt").read_text() == (tmp_path / "one/samples.txt").read_text()
