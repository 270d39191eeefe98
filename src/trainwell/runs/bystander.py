"""The files of a run as a rank sees them that is not the first: nothing is on record there, and nothing is written.

So such a rank goes the way of the first without asking everywhere who it is.
"""

from collections.abc import Mapping
from pathlib import Path

from trainwell.runs.metrics import MetricsFile, Records
from trainwell.runs.samples import Sample, SamplesFile


class NoMetrics(MetricsFile):
    """A metrics file that stays empty."""

    def append(self, *records: Mapping[str, object]) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Write nothing."""

    def read(self) -> Records:
        """No rows."""
        return Records((), ())

    def rewind(self, step: int, attempts: Path) -> int:
        """Move nothing."""
        return 0


class NoSamples(SamplesFile):
    """A file of samples that stays empty."""

    def append(self, sample: Sample) -> None:
        """Write nothing."""

    def read(self) -> tuple[Sample, ...]:
        """No samples."""
        return ()

    def rewind(self, step: int, attempts: Path) -> None:
        """Move nothing."""
