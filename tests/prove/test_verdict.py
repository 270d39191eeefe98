"""What is said of proofs: words, counts, one line."""

import json

from trainwell.prove.verdict import Verdict, plain, summary, totals


def verdict(name: str, *, passed: bool = True, skipped: bool = False) -> Verdict:
    return Verdict(name, passed, "bitwise", "", 4 if not passed else None, None, 1.5, "", f"{name} holds", "", skipped)


ALL = [verdict("a"), verdict("b", passed=False), verdict("c", skipped=True)]


def test_a_proof_that_does_not_apply_counts_neither_way() -> None:
    assert totals(ALL) == {"PASS": 1, "FAIL": 1, "SKIP": 1, "seconds": 4.5}
    assert summary([ALL[0], ALL[2]]) == "all 1 proofs hold"


def test_the_line_names_what_does_not_hold_and_where() -> None:
    assert summary(ALL) == "1 of 2 proofs do not hold: b holds (first at step 4)"


def test_a_verdict_is_plain_data() -> None:
    assert json.loads(json.dumps(plain(ALL[1])))["result"] == "FAIL"
