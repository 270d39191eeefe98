"""Short forms of the soak: what a run survives, a few times each; `make soak` does the same by the hundred."""

import pytest
from benchmarks.soak.board import PARTS, take

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["kills", "damage", "full_disk", "signals", "observers"])
def test_every_promise_of_the_soak_holds_in_its_short_form(name: str) -> None:
    rows = take(name, seed=0, short=True)["rows"]
    assert len(rows) > 1
    assert [(row["promise"], row["figure"], row["problems"]) for row in rows if not row["held"]] == []


def test_each_part_has_a_short_form_or_none_that_is_shorter() -> None:
    assert {name for name, part in PARTS.items() if not part.short} <= {"mutants"}
