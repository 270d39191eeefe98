"""The file of an incident: what is written is what is read, strict JSON, whole or not at all."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import StorageError
from trainwell.runs.incidents import (
    Incident,
    SampleLoss,
    TensorNorms,
    incident_file,
    incident_steps,
    read_incident,
    write_incident,
)
from trainwell.runs.rundir import RunDir

NUMBERS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
SAMPLES = st.builds(SampleLoss, st.integers(0), st.integers(0), NUMBERS, st.integers(0), st.none() | st.text())
NORMS = st.builds(TensorNorms, st.text(), st.none() | NUMBERS, st.integers(0), NUMBERS, st.none() | NUMBERS)
INCIDENTS = st.builds(
    Incident,
    step=st.integers(0, 10**6),
    reason=st.text(),
    skipped=st.booleans(),
    loss=NUMBERS,
    grad_norm=NUMBERS,
    lr=NUMBERS,
    bounds=st.dictionaries(st.sampled_from(["loss", "grad_norm"]), NUMBERS),
    windows=st.none() | st.lists(st.integers(0)).map(tuple),
    samples=st.lists(SAMPLES, max_size=3).map(tuple),
    weights=st.text(),
    tensors=st.lists(NORMS, max_size=3).map(tuple),
    notes=st.lists(st.text(), max_size=2).map(tuple),
)


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@given(incident=INCIDENTS)
def test_what_is_read_is_what_was_written_to_the_bit_and_over_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, incident: Incident
) -> None:
    folder = RunDir(tmp_path_factory.getbasetemp())
    write_incident(folder, incident)
    assert repr(read_incident(folder, incident.step)) == repr(incident)


def test_a_number_that_is_not_finite_is_null_and_named(folder: RunDir) -> None:
    tensor = TensorNorms("wte.weight", math.nan, 3, 1.0, 0.0)
    path = write_incident(folder, Incident(7, "loss is inf", True, math.inf, math.nan, 1e-3, tensors=(tensor,)))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    facts = json.loads(path.read_text(), parse_constant=refuse)
    assert (facts["loss"], facts["loss/nonfinite"]) == (None, "inf")
    assert facts["tensors"][0] | {"grad_norm/nonfinite": "nan"} == facts["tensors"][0]


def test_the_steps_with_an_incident_are_those_with_a_file_of_that_name(folder: RunDir) -> None:
    assert incident_steps(folder) == []
    for step in (40, 3):
        write_incident(folder, Incident(step, "", False, 1.0, 1.0, 1e-3))
    (folder.incidents / "step-5.json.bak").write_text("")
    (folder.incidents / "notes.json").write_text("")
    assert incident_steps(folder) == [3, 40]
    assert sorted(path.suffix for path in folder.incidents.iterdir()) == [".bak", ".json", ".json", ".json"]


def test_a_step_without_an_incident_has_none(folder: RunDir) -> None:
    assert read_incident(folder, 3) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": 3}'])
def test_a_file_that_is_damaged_is_named(folder: RunDir, content: str) -> None:
    folder.incidents.mkdir()
    incident_file(folder, 3).write_text(content)
    with pytest.raises(StorageError, match=r"step-3\.json cannot be read .* move it away"):
        read_incident(folder, 3)


def test_a_folder_that_cannot_be_written_is_a_storage_error(folder: RunDir) -> None:
    folder.incidents.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*step-3\.json"):
        write_incident(folder, Incident(3, "", False, 1.0, 1.0, 1e-3))
