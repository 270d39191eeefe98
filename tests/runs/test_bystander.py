"""The files of a run as every rank but the first has them: whatever is written, nothing is there."""

from pathlib import Path

from trainwell.runs.bystander import NoMetrics, NoSamples
from trainwell.runs.metrics import MetricsFile, Records
from trainwell.runs.samples import Sample, SamplesFile


def test_metrics_of_a_bystander_stay_unwritten_and_those_of_the_first_rank_unread(tmp_path: Path) -> None:
    path, attempts = tmp_path / "metrics.jsonl", tmp_path / "attempts"
    bystander = NoMetrics(path)
    bystander.append({"step": 0, "train/loss": 1.0})
    bystander.sync()
    assert list(tmp_path.iterdir()) == []

    MetricsFile(path).append({"step": 0, "train/loss": 1.0}, {"step": 1, "train/loss": 0.9})
    written = path.read_bytes()
    assert bystander.read() == Records((), ())
    assert bystander.rewind(0, attempts) == 0
    assert path.read_bytes() == written
    assert not attempts.exists()


def test_samples_of_a_bystander_do_too(tmp_path: Path) -> None:
    path, attempts, sample = tmp_path / "samples.txt", tmp_path / "attempts", Sample(4, "prompt", "text")
    bystander = NoSamples(path)
    bystander.append(sample)
    assert list(tmp_path.iterdir()) == []

    SamplesFile(path).append(sample)
    written = path.read_bytes()
    assert bystander.read() == ()
    bystander.rewind(0, attempts)
    assert path.read_bytes() == written
    assert not attempts.exists()


def test_a_bystander_writes_nothing_by_any_way_that_the_first_rank_writes() -> None:
    for bystander, first in ((NoMetrics, MetricsFile), (NoSamples, SamplesFile)):
        ways = {name for name in vars(first) if not name.startswith("_") and callable(vars(first)[name])}
        assert ways <= vars(bystander).keys()
