"""The files around the source: pins, decisions, package data."""

import re
import tomllib
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    """Package and version of each line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {normal(re.split(r"[<>=!~\[; ]", line)[0]) for line in wanted}
    assert names <= {normal(name) for name in pins()}


def test_pins_name_no_registry_and_no_build() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "+" not in text
    assert all(re.fullmatch(r"\d+(\.\d+)+((b|\.post)\d+)?", version) for version in pins().values())


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert files
    assert all(f"({name})" in index for name in files)


def test_recipes_and_the_type_marker_are_part_of_the_package() -> None:
    package = resources.files("trainwell")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("recipes", "demo.yaml").is_file()
