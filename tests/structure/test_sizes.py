"""The house stays small: limits on files, on the core, on packages' __init__; and tests mirror the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "trainwell"
MODULES = sorted(SOURCE.rglob("*.py"))
CORE = [
    "trainer.py",
    "fit.py",
    "optim/schedule.py",
    "optim/batch_plan.py",
    "data/order.py",
    "data/batches.py",
    "model/loss.py",
    "optim/clip.py",
    "optim/guard.py",
    "checkpoint/store.py",
    "reference.py",
]


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert num_lines(path) <= 400


def test_the_core_is_under_2000_lines() -> None:
    assert sum(num_lines(SOURCE / name) for name in CORE) < 2000


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_the_init_of_a_package_holds_a_docstring_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    own = [node for node in tree.body[1:] if not isinstance(node, ast.ImportFrom)]
    if path.parent.name == "cli":  # scripts call tw.cli.main
        assert [node.name for node in own if isinstance(node, ast.FunctionDef)] == ["main"]
    elif path.parent.name == "book":  # a notebook imports everything from trainwell.book
        assert own == []
    else:
        assert tree.body[1:] == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "util", "common", "helpers", "helper", "base", "misc"}


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in (ROOT / "tests").rglob("test_*.py")}), ids=lambda path: path.name
)
def test_tests_stand_where_the_source_stands(folder: Path) -> None:
    beside = {ROOT / "tests" / name for name in ("structure", "invariants", "examples", "benchmarks", "soak")}
    assert folder in {ROOT / "tests", *beside} or (SOURCE / folder.relative_to(ROOT / "tests")).is_dir()
