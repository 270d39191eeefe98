"""samples.txt: what was written is read back, and what is past a restored step is kept apart."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import StorageError
from trainwell.runs.samples import Sample, SamplesFile


def sample(step: int) -> Sample:
    return Sample(step, 'prompt "The "', f"The tide\n\nof {step}")


def test_samples_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    file = SamplesFile(tmp_path / "samples.txt")
    assert file.read() == ()
    for step in (3, 6):
        file.append(sample(step))
    assert file.read() == (sample(3), sample(6))


@given(done=st.integers(0, 12), restored=st.integers(0, 12))
def test_samples_past_the_restored_state_are_moved_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, done: int, restored: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    file = SamplesFile(folder / "samples.txt")
    for step in range(done):
        file.append(sample(step))
    file.rewind(restored, folder / "attempts")
    assert file.read() == tuple(sample(step) for step in range(done) if step <= restored)
    moved = SamplesFile(folder / "attempts" / "samples.txt").read()
    assert moved == tuple(sample(step) for step in range(done) if step > restored)


def test_a_file_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*: Is a directory"):
        SamplesFile(tmp_path).append(sample(1))
