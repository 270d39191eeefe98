"""Command lines nobody would write end with a message: some hundreds here, ten thousand in `benchmarks/fuzz.py`."""

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

SEED, QUICK, COUNT, PROCESSES = 0, 80, 300, 3


def load() -> Any:
    """The benchmark as a module; benchmarks are scripts, not a package."""
    spec = spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fuzz = load()


@pytest.fixture
def here() -> Iterator[None]:
    with fuzz.playground():
        yield


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "numbers", [range(QUICK), pytest.param(range(QUICK, COUNT), marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_a_command_line_ends_with_0_2_or_65_and_a_message_without_a_traceback_within_5_seconds(numbers: range) -> None:
    found = fuzz.explore(numbers, SEED)
    assert found.lines() == []
    assert found.codes.total() == len(numbers)
    assert found.codes.keys() >= {0, 2}


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_so_it_does_as_a_process() -> None:
    assert fuzz.explore(range(PROCESSES), SEED, fuzz.as_process).lines() == []


def test_a_case_is_drawn_from_its_seed_and_number_alone() -> None:
    assert fuzz.draw(3, 77) == fuzz.draw(3, 77)
    assert fuzz.draw(3, 77) != fuzz.draw(4, 77)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"code": 3, "raised": 'File "/x/trainwell/cli/app.py", line 5, in f\nKeyError: 7'}, "KeyError: 7, from File"),
        ({"code": 74, "err": "trainwell: storage"}, "exit code 74"),
        ({"code": 2, "err": "trainwell: Traceback"}, "a traceback is printed"),
        ({"code": 2, "err": "no"}, "exit code 2 without a message"),
        ({"code": 0, "out": "\x1b[31m"}, "control characters"),
        ({"code": 0, "seconds": 6.0}, "it took 6.0 s"),
    ],
)
def test_every_way_of_going_wrong_is_a_problem(ended: dict[str, Any], words: str) -> None:
    assert words in fuzz.problem(fuzz.Ended(**{"seconds": 0.1, "out": "", "err": ""} | ended))
