"""The mutants are mistakes in the source as it is now, of every kind; and the tests notice."""

from pathlib import Path

import pytest

from benchmarks import mutants as study

ROOT = Path(__file__).parents[2]
KINDS = {"loop", "loss scaling", "order", "schedule", "resume", "clip"}


def test_every_mutant_changes_a_text_that_the_source_has_once() -> None:
    assert study.misplaced() == []
    assert all(mutant.right != mutant.wrong for mutant in study.MUTANTS)


def test_there_are_fifteen_mutants_or_more_and_two_at_least_of_each_kind() -> None:
    kinds = [mutant.kind for mutant in study.MUTANTS]
    assert len(kinds) >= 15
    assert {kind for kind in kinds if kinds.count(kind) >= 2} == KINDS
    assert len({mutant.name for mutant in study.MUTANTS}) == len(kinds)


def test_every_mutant_is_still_python_and_its_tests_are_there() -> None:
    for mutant in study.MUTANTS:
        source = (ROOT / "src" / "trainwell" / mutant.file).read_text(encoding="utf-8")
        compile(source.replace(mutant.right, mutant.wrong), mutant.file, "exec")
        assert (ROOT / mutant.tests).is_file()


@pytest.mark.slow
def test_two_mutants_are_caught_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("every epoch in the same order", "a warmup that starts at nothing")
    found = study.run(names, processes=1)
    assert found["caught"] == 2, capsys.readouterr().out
    assert [row["held"] for row in found["rows"]] == [True]
