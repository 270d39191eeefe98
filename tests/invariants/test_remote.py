"""A run behind a URL whose machine is lost continues on another one, to the bit: what is behind the URL is enough."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainwell.checkpoint.layout import read_manifest
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import local_folder

if TYPE_CHECKING:
    from trainwell.run import Run

pytestmark = pytest.mark.slow

STEPS = 6
KEYS: dict[str, Any] = {"duration": STEPS, "checkpoint": {"every": 2}, "eval": {"every": 3, "batches": 2}}


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, own_folders: Path) -> str:
    return f"memory://{secrets.token_hex(4)}/demo" if request.param == "memory" else f"file://{own_folders}/far/demo"


def without_clocks(folder: Path) -> Any:
    """Every row of a run's metrics, but for what was measured on a clock."""
    measured = {"time", "train/step_ms", "train/data_ms", "train/tokens_per_sec", "train/mfu", "mem/peak_gb"}
    records = MetricsFile(folder / "metrics.jsonl").read()
    rows = [*records.train, *records.val]
    return [{name: value for name, value in row.items() if name not in measured} for row in rows]


def test_a_run_whose_mirror_is_lost_continues_from_its_url_to_the_bit(
    build_tiny: "Callable[..., Run]",
    advance: "Callable[[Run, int], None]",
    bits_of: Callable[[Any], Any],
    own_folders: Path,
    url: str,
) -> None:
    from trainwell.fit import fit

    whole = fit(build_tiny(run_dir=own_folders / "whole" / "demo", **KEYS))
    advance(build_tiny(run_dir=url, **KEYS), 5)
    shutil.rmtree(own_folders / "cache" / "remote")
    run = fit(build_tiny(run_dir=url, **KEYS))
    assert bits_of(run.trainer.state_dict()) == bits_of(whole.trainer.state_dict())
    shutil.rmtree(own_folders / "cache" / "remote")  # what is compared is what lies behind the URL
    mirror, checkpoint = local_folder(url), Path("checkpoints") / f"step-{STEPS}"
    assert run.run_dir.remote is not None
    run.run_dir.remote.fetch(STEPS)
    folders = (mirror, whole.run_dir.path)
    ours, theirs = (read_manifest(folder / checkpoint) for folder in folders)
    assert (ours.state, ours.tensors) == (theirs.state, theirs.tensors)
    ours_on_disk, theirs_on_disk = ((folder / checkpoint / "tensors.safetensors").read_bytes() for folder in folders)
    assert ours_on_disk == theirs_on_disk
    assert without_clocks(mirror) == without_clocks(whole.run_dir.path)


def test_verbs_that_read_find_a_run_by_its_url(
    build_tiny: "Callable[..., Run]", bits_of: Callable[[Any], Any], own_folders: Path, url: str
) -> None:
    from trainwell.build import open_run
    from trainwell.fit import fit

    run = fit(build_tiny(run_dir=url, **KEYS))
    shutil.rmtree(own_folders / "cache" / "remote")
    assert bits_of(open_run(url).model.state_dict()) == bits_of(run.model.state_dict())
    assert open_run(f"{url}@4").trainer.step == 4
    branch = fit(build_tiny(f"{url}@4", run_dir=own_folders / "branch", duration=STEPS))
    assert branch.parent is not None
    assert bits_of(branch.trainer.state_dict()) == bits_of(run.trainer.state_dict())
