"""The pages under docs: their code is the source's, their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_of_a_page_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_annotated_loop_shows_the_code_that_runs() -> None:
    text = (ROOT / "docs" / "the-loop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == text.count("```python")
    for file, block in blocks:
        source = (ROOT / "src" / "trainwell" / file).read_text(encoding="utf-8")
        assert block in source, f"docs/the-loop.md shows lines that {file} does not have:\n{block}"
