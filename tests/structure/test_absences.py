"""What the package does not do, held by reading its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "trainwell"
FILES = sorted(SOURCE.rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_nothing_reads_or_writes_a_pickle(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    assert not {name.split(".")[0] for name in imported(tree)} & PICKLES
    assert not {"torch.load", "torch.save"} & set(called(tree))
    assert "allow_pickle" not in file.read_text("utf-8")


def test_the_trainer_opens_no_file_and_knows_no_configuration() -> None:
    tree = ast.parse((SOURCE / "trainer.py").read_text("utf-8"))
    modules = set(imported(tree))
    assert not modules & {"os", "io", "pathlib", "json", "logging", "tempfile"}
    assert not any(name.startswith(("trainwell.config", "trainwell.runs", "trainwell.cli")) for name in modules)
    assert "open" not in set(called(tree))
