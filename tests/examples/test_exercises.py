"""Each exercise breaks the promises that its solution names, and no others."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from trainwell.given import Given
from trainwell.planning.target import find_start
from trainwell.prove.checks import PROOFS, prove

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[2]
EXERCISES = sorted((ROOT / "examples" / "exercises").glob("*.py"))
BROKEN = {
    "1_memory": ["micro-batches", "evaluation"],
    "2_baggage": ["resume", "micro-batches", "nan", "ranks"],
    "3_behind": ["resume", "rate"],
    "4_again": ["order"],
    "5_bump": ["resume"],
    "6_nothing": ["nan"],
}
ON_TWO_RANKS = "ranks"
"""The proof that starts processes, which must find the exercise; it is run where the exercise itself is."""
TINY: dict[str, Any] = {
    "duration": 40,
    "batch_size": 8,
    "micro_batch": 4,
    "data.seq_len": 16,
    "data.val_fraction": 0.25,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.width": 16,
}


def read(exercise: Path) -> dict[str, Any]:
    return runpy.run_path(str(exercise))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_breaks_what_its_solution_says_and_nothing_else(
    exercise: Path, own_folders: Path, text: Path
) -> None:
    parts = read(exercise)
    given = Given(**{name: parts[name] for name in ("loss", "optimizer") if name in parts})
    start = find_start("demo", flags={**TINY, "data.path": str(text)}, run=own_folders / "mine")
    wanted = [proof.name for proof in PROOFS if proof.name != ON_TWO_RANKS]
    verdicts = prove(start, given, make=parts.get("make"), only=wanted)
    broken = [verdict.name for verdict in verdicts if not verdict.passed]
    assert broken == [name for name in BROKEN[exercise.stem] if name != ON_TWO_RANKS]


def test_there_is_an_exercise_for_each_solution_and_the_page_shows_both() -> None:
    page = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
    assert [exercise.stem for exercise in EXERCISES] == [*BROKEN]
    titles = {proof.name: proof.title for proof in PROOFS}
    for part, (name, broken) in zip(page.split("\n## ")[1:], BROKEN.items(), strict=True):
        assert f"python examples/exercises/{name}.py" in part
        told = [proof for proof, title in titles.items() if f"FAIL  {title}" in part]
        assert sorted(told) == sorted(broken)


@pytest.mark.parametrize("name", ["1_memory", "6_nothing"])
def test_an_exercise_run_as_its_docstring_says_ends_with_what_is_broken(
    name: str, own_folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "exercises" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    failed = [proof.name for proof in PROOFS if f"FAIL  {proof.title}" in said]
    assert failed == BROKEN[name]
    assert not list(own_folders.glob("runs/*"))
