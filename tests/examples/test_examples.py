"""Every example runs as its first lines say, for a few steps."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainwell.runs.rundir import is_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
STEPS = "3"


def commands_of(example: Path) -> list[list[str]]:
    """The command lines in the docstring, for STEPS steps."""
    text = example.read_text(encoding="utf-8").split('"""')[1]
    lines = re.findall(rf"python examples/{example.name}(.*)", text)
    return [
        shlex.split(re.sub(r"(--duration )\d+", rf"\g<1>{STEPS}", line.replace("[STEPS]", STEPS))) for line in lines
    ]


@contextmanager
def called_as(*arguments: str) -> Iterator[None]:
    before = sys.argv
    sys.argv = list(arguments)
    try:
        yield
    finally:
        sys.argv = before


def run_example(example: Path, arguments: list[str]) -> None:
    with called_as(str(example), *arguments):
        code: object = 0
        try:
            runpy.run_path(str(example), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        assert code in {0, None}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_its_docstring_says(
    own_folders: Path, capsys: pytest.CaptureFixture[str], example: Path
) -> None:
    commands = commands_of(example)
    assert commands, "the docstring shows no command line"
    for arguments in commands:
        run_example(example, arguments)
    said = capsys.readouterr()
    assert said.out
    assert said.err == ""
    runs = own_folders / "runs"
    assert all(is_run(path) for path in (runs.iterdir() if runs.exists() else []))


def test_the_average_of_the_model_example_is_restored_when_it_is_run_again(
    own_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = (path for path in EXAMPLES if path.stem == "own_model")
    said = []
    for _ in range(2):
        run_example(example, [STEPS])
        said.append([line for line in capsys.readouterr().out.splitlines() if line.startswith(("the last", "their"))])
    assert said[0] == said[1]
    assert len(said[0]) == 2
