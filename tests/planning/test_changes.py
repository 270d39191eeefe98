"""What a run may change when it continues: every key is in one class, and data is known by its fingerprint."""

from pathlib import Path

import pytest

from trainwell.config import keys
from trainwell.errors import ConfigError
from trainwell.planning.changes import (
    CHANGES,
    TABLE,
    Change,
    allowed_keys,
    data_difference,
    kind_of,
    notes,
    refusals,
    rule_of,
    rules_of,
    ways_out,
)

ALL = list(keys.by_name())
PINNED = (Path(__file__).parents[1] / "config" / "keys.txt").read_text().split()


@pytest.mark.parametrize("key", ALL)
def test_every_key_of_the_schema_is_in_one_class(key: str) -> None:
    assert len(rules_of(key)) == 1


def test_the_table_names_no_key_twice_and_none_that_is_not_there() -> None:
    assert set(PINNED) == set(ALL)
    named = [name for rule in TABLE for name in rule.keys]
    assert len(named) == len(set(named)) == len(CHANGES)
    assert not [name for name in named if not any(key == name or key.startswith(name) for key in ALL)]


def test_only_a_refused_change_can_take_more_than_to_be_allowed() -> None:
    assert {rule.kind for rule in TABLE if rule.way != "allow"} == {"refuse"}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("eval.every", "free"),
        ("checkpoint.asynchronous", "free"),
        ("data.path", "free"),
        ("micro_batch", "warn"),
        ("precision", "warn"),
        ("guard.window", "warn"),
        ("optim.lr", "refuse"),
        ("schedule.horizon", "refuse"),
        ("data.skip", "refuse"),
        ("seed", "refuse"),
    ],
)
def test_a_key_has_the_class_that_is_promised(key: str, kind: str) -> None:
    assert kind_of(key, horizon=True) == kind_of(key, horizon=False) == kind


def test_the_duration_is_free_where_the_schedule_has_a_horizon_of_its_own() -> None:
    assert (kind_of("duration", horizon=False), kind_of("duration", horizon=True)) == ("refuse", "free")


def test_a_change_of_mathematics_is_refused_unless_it_is_allowed() -> None:
    change = Change("optim.lr", 0.003, 0.0001)
    assert refusals([change], ()) == ["optim.lr: 0.003 there, 0.0001 wanted (every update is another)"]
    assert refusals([change], {"optim.lr"}) == []
    assert "allow it from here on with --allow-change optim.lr; start anew" in ways_out([change], (), "runs/a")


def test_what_does_not_fit_is_refused_although_it_is_allowed() -> None:
    change = Change("model.width", 16, 32)
    assert refusals([change], {"model.width"}) == [
        "model.width: 16 there, 32 wanted (its weights are those of this model; "
        "--allow-change model.width cannot make it fit)"
    ]
    both = [change, Change("optim.lr", 1, 2)]
    assert ways_out(both, (), "runs/a") == "Leave them as they are to continue it; start anew with --run OTHER"


def test_a_branch_is_offered_where_its_source_would_fit() -> None:
    branch = "Leave them as they are to continue it; start anew with --run OTHER; or branch: trainwell train "
    assert ways_out([Change("seed", 1, 2)], (), "runs/a") == f"{branch}runs/a@last --run NEW"


def test_what_goes_on_otherwise_is_said() -> None:
    assert notes([Change("micro_batch", 2, 4), Change("optim.lr", 0.003, 0.0001)]) == (
        "changed: micro_batch is 4 and was 2: sums are taken in another order, and dropout, if any, draws other masks; "
        "from here on not bitwise what it would have been",
        "changed: optim.lr is 0.0001 and was 0.003: every update is another; "
        "allowed by --allow-change optim.lr, from here on",
    )


def test_keys_to_allow_are_spelled_as_flags_are_and_an_unknown_one_suggests_the_nearest() -> None:
    assert allowed_keys(["optim.max-grad-norm", "optim.lr"]) == {"optim.max_grad_norm", "optim.lr"}
    with pytest.raises(ConfigError, match=r"--allow-change optim\.lrr: there is no such key; did you mean optim\.lr\?"):
        allowed_keys(["optim.lrr"])
    with pytest.raises(ConfigError, match=r"--allow-change zzz: there is no such key; `trainwell show demo --yaml`"):
        allowed_keys(["zzz"])


def test_every_refused_key_has_a_reason_to_print() -> None:
    assert all(rule_of(key).why for key in ALL)


TEXT = {"fingerprint": "ab" * 32, "corpus": "old/text.txt", "version": None, "tokenizer": "bytes"}


def test_a_text_that_moved_is_the_same_text() -> None:
    assert data_difference(TEXT, TEXT | {"corpus": "new/text.txt", "version": "CPython 3.12.1"}) == ""


def test_another_text_is_told_by_its_fingerprint_and_all_else_that_differs() -> None:
    now = TEXT | {"fingerprint": "cd" * 32, "tokenizer": "gpt2", "corpus": "new.txt"}
    assert data_difference(TEXT, now) == (
        "fingerprint: abababababab then, cdcdcdcdcdcd now; corpus: old/text.txt then, new.txt now; "
        "tokenizer: bytes then, gpt2 now"
    )


def test_a_fact_that_only_one_of_two_versions_wrote_down_is_no_difference_of_a_text() -> None:
    assert data_difference(TEXT, TEXT | {"tokens": 900}) == ""
    assert "tokens: none then, 900 now" in data_difference(TEXT, TEXT | {"tokens": 900, "fingerprint": "cd" * 32})


def test_another_template_is_another_text() -> None:
    there = TEXT | {"template": "0123456789ab"}
    assert data_difference(there, there | {"template": "ba9876543210"}) == (
        "template: 0123456789ab then, ba9876543210 now"
    )


def test_given_data_is_told_by_what_it_is_and_how_long() -> None:
    given = {"given": "Texts", "examples": 10}
    assert data_difference(given, dict(given)) == ""
    assert data_difference(given, given | {"examples": 11}) == "examples: 10 then, 11 now"
    assert "fingerprint: abababababab then, none now" in data_difference(TEXT, given)
