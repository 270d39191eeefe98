"""The sets made of docstrings: clean, the same each time, and short enough for the model that they are for."""

import csv
import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainwell.data.tokenizer import BytesTokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "docstring_sets.py"
CONTEXT = 128

DEDENT = '''
"""A module."""

raise RuntimeError("the sources are read and not run")

def dedent(text):
    """Remove what all lines
    have in common.

    More about it.
    """

class Wrapper:
    """Wraps and fills text."""

    def fill(self):
        """Wraps and fills text."""

    def _private(self):
        """Not for anyone to see."""

    def short(self):
        """Short answer."""

    async def long(self):
        """%s"""

    def bare(self):
        pass
'''


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def folder(script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, made of the library of this Python."""
    made = tmp_path_factory.mktemp("made") / "docstrings"
    script["main"](made)
    return made


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Sources of three packages, one of which nobody should be asked about."""
    for name, content in {
        "textwrap.py": DEDENT % ("much too long " * 10),
        "json/__init__.py": 'def dumps(value):\n    """Write a value as text."""\n',
        "json/tool.py": 'def fill():\n    """Wraps and fills text."""\n',
        "json/_private.py": 'def hidden():\n    """Hidden from all eyes."""\n',
        "json/tests/inner.py": 'def tested():\n    """Only there for tests."""\n',
        "somebody_elses.py": 'def theirs():\n    """Not from the library."""\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def records_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_that_has_a_docstring_is_found_shortest_names_first_and_nothing_is_run(
    script: dict[str, Any], library: Path
) -> None:
    assert [entry.name for entry in script["read_library"](library)] == [
        "json.dumps",
        "textwrap.Wrapper",
        "textwrap.dedent",
        "json._private.hidden",
        "json.tool.fill",
        "textwrap.Wrapper._private",
        "textwrap.Wrapper.fill",
        "textwrap.Wrapper.long",
        "textwrap.Wrapper.short",
    ]


def test_questions_are_about_public_names_with_the_first_paragraph_as_answer_given_once_if_it_fits_and_says_something(
    script: dict[str, Any], library: Path
) -> None:
    examples = script["instructions_of"](script["read_library"](library))
    assert [(example["instruction"], example["output"]) for example in examples] == [
        ("What does json.dumps do?", "Write a value as text."),
        ("What is textwrap.Wrapper?", "Wraps and fills text."),
        ("What does textwrap.dedent do?", "Remove what all lines have in common."),
    ]


def test_a_text_that_two_packages_have_is_labelled_with_neither(script: dict[str, Any], library: Path) -> None:
    pairs = script["labelled_of"](script["read_library"](library))
    assert sorted(label for _, label in pairs) == ["json", "json", *["textwrap"] * 4]
    assert "Wraps and fills text." not in [text for text, _ in pairs]
    assert "Remove what all lines have in common. More about it." in [text for text, _ in pairs]


@pytest.mark.slow
def test_there_are_thousands_of_questions_each_with_an_answer_of_its_own(folder: Path) -> None:
    examples, apart = records_of(folder / "instructions.jsonl"), records_of(folder / "questions.jsonl")
    assert len(examples) >= 2000
    assert len(apart) == 20
    for key in ("instruction", "output"):
        values = [example[key] for example in examples + apart]
        assert all(value.strip() == value and value for value in values)
        assert max(Counter(values).values()) == 1
    assert "What does textwrap.dedent do?" in [example["instruction"] for example in examples + apart]


@pytest.mark.slow
def test_question_and_answer_fit_into_the_context_of_the_demo_with_end_of_text_as_the_last_target(folder: Path) -> None:
    template = (folder / "template.txt").read_text(encoding="utf-8")
    tokenizer = BytesTokenizer()
    for example in records_of(folder / "instructions.jsonl"):
        filled = template.replace("{instruction}", example["instruction"]).replace("{output}", example["output"])
        assert len(tokenizer.encode(filled)) + 1 <= CONTEXT + 1


@pytest.mark.slow
def test_labels_are_shared_out_so_that_guessing_the_commonest_is_seldom_right(folder: Path) -> None:
    rows = rows_of(folder / "labelled.csv")
    counts = Counter(row["label"] for row in rows)
    assert len(rows) >= 1500
    assert len(counts) == 8
    assert max(counts.values()) <= 250
    assert max(Counter(row["text"] for row in rows).values()) == 1
    assert all(0 < len(row["text"]) <= CONTEXT for row in rows)


@pytest.mark.slow
def test_the_same_python_writes_the_same_files(
    script: dict[str, Any], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script["main"](tmp_path)
    names = {"instructions.jsonl", "questions.jsonl", "template.txt", "labelled.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert (
        f"trainwell train instruct --init-from runs/demo --data.path {tmp_path}/instructions" in capsys.readouterr().out
    )
