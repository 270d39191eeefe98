"""Labelled texts in rows: the class at the last real token and nowhere else, and every mistake with its line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainwell.config.tree import DataConfig
from trainwell.data.classify import ClassifySettings, labels_text, parse_labels, prepare_classify
from trainwell.data.examples import IGNORED, ExampleStore
from trainwell.data.tokenizer import BytesTokenizer
from trainwell.errors import ConfigError, DataError

Prepare = Callable[..., ExampleStore]


def table(count: int = 30) -> str:
    lines = [
        f'"This is text {"x" * (index % 9)}, {index}.",{("ham", "spam")[index % 3 == 0]}' for index in range(count)
    ]
    return "\n".join(["text,label", *lines])


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepare a CSV, or objects as JSON lines."""

    def make(content: str | list[dict[str, Any]], **keys: Any) -> ExampleStore:
        path = tmp_path / ("data.csv" if isinstance(content, str) else "data.jsonl")
        path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)))
        settings = {"corpus": None, "path": str(path), "seq_len": 40, "val_fraction": 0.3}
        return prepare_classify(DataConfig(**settings | keys))

    return make


def found(store: ExampleStore) -> dict[str, str]:
    """The label of each text, as read from the last real token of each row; all other targets must be IGNORED."""
    read = {}
    for rows in (store.train, store.val):
        inputs, targets, documents = rows.gather(np.arange(len(rows)))
        assert documents is None
        for row, length in enumerate(rows.lengths):
            assert (np.flatnonzero(targets[row] != IGNORED) == length - 1).all()
            text = BytesTokenizer().decode(inputs[row, :length].tolist())
            read[text] = store.labels[targets[row, length - 1]]
    return read


def test_the_settings_of_a_run_are_enough() -> None:
    settings: ClassifySettings = DataConfig()
    with pytest.raises(ConfigError, match=r"data\.path is null, and task classify is read from a file"):
        prepare_classify(settings)


def test_a_class_is_the_target_at_the_last_token_of_its_text(prepared: Prepare) -> None:
    store = prepared(table())
    assert store.labels == ("ham", "spam")
    expected = {f"This is text {'x' * (index % 9)}, {index}.": ("ham", "spam")[index % 3 == 0] for index in range(30)}
    assert found(store) == expected
    assert store.template is None
    assert store.notes == ()


def test_the_order_of_the_classes_may_be_given(prepared: Prepare) -> None:
    store = prepared(table(), labels="spam, ham,eggs")
    assert store.labels == ("spam", "ham", "eggs")
    assert found(store) == found(prepared(table()))
    assert store.notes == ("no example to train on has the label eggs",)
    assert parse_labels(labels_text(store.labels)) == store.labels


def test_labels_may_be_numbers_and_truths_and_the_books_columns(prepared: Prepare) -> None:
    def labels(values: list[Any]) -> tuple[str, ...]:
        return prepared([{"text": f"text {n}", "label": values[n % len(values)]} for n in range(30)]).labels

    assert labels([10, 9, 1]) == ("1", "9", "10")
    assert labels([True, False]) == ("false", "true")
    assert labels([" b", "a "]) == ("a", "b")
    assert labels([1.5, "x"]) == ("1.5", "x")
    assert prepared("Label,Text\n" + "\n".join(f"{n % 2},text {n}" for n in range(30))).labels == ("0", "1")


def test_the_note_says_how_good_a_guess_is(prepared: Prepare) -> None:
    store = prepared(table())
    labels = list(found(store).values())
    assert (labels.count("ham"), labels.count("spam")) == (20, 10)
    _, targets, _ = store.val.gather(np.arange(len(store.val)))
    share = (targets == 0).sum() / len(store.val)
    assert store.info.note == (
        f"examples: ham 20, spam 10; always saying ham is right for {share:.1%} of the validation set"
    )


def test_the_counts_are_those_of_rows(prepared: Prepare) -> None:
    info = prepared(table()).info
    assert info.train_tokens % 40 == info.val_tokens % 40 == 1
    assert (info.train_tokens - 1) // 40 + (info.val_tokens - 1) // 40 == info.num_texts == 30
    assert info.vocab_size == 257


def test_a_long_text_is_cut_at_its_end_and_noted(prepared: Prepare) -> None:
    content = table() + f"\n{'long' * 20},spam\n{'word' * 2_500_000},ham"
    for tokenizer in ("bytes", "gpt2"):
        store = prepared(content, tokenizer=tokenizer, seq_len=20)
        assert "texts are longer than data.seq_len 20 and cut at the end" in store.notes[0]
    assert found(prepared(content))["long" * 10] == "spam"
    assert found(prepared(content))["word" * 10] == "ham"


def test_copies_of_a_text_stay_on_one_side_whatever_their_label(prepared: Prepare) -> None:
    rows = [{"text": f"text {n % 20}", "label": str(n % 3)} for n in range(60)]
    store = prepared(rows)
    inputs = [{str(row) for row in side.gather(np.arange(len(side)))[0].tolist()} for side in (store.train, store.val)]
    assert not inputs[0] & inputs[1]
    assert len(inputs[0] | inputs[1]) == 20


def test_texts_may_share_a_row(prepared: Prepare) -> None:
    apart, packed = prepared(table()), prepared(table(), rows="packed")
    assert len(packed.train) < len(apart.train)
    inputs, targets, documents = packed.train.gather(np.arange(len(packed.train)))
    assert documents is not None
    assert (targets != IGNORED).sum() == len(apart.train)
    assert (inputs[targets != IGNORED] == ord(".")).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('" ",ham', r"line 4: text is empty\. Remove the record"),
        ("hello,", r"line 4: label is ''\. A label is a name or number"),
        ('hello,"a,b"', r"line 4: label is 'a,b'\. A label is a name or number without comma"),
        ("hello", r"line 4: 1 fields, but the header has 2"),
    ],
)
def test_a_record_that_cannot_be_used_names_its_line(prepared: Prepare, row: str, message: str) -> None:
    with pytest.raises(DataError, match=r"data\.csv, " + message):
        prepared(f"{table(2)}\n{row}\n")


def test_a_missing_or_wrong_field_names_its_line(prepared: Prepare) -> None:
    good = {"text": "hello", "label": "a"}
    for record, message in (
        ({"label": "a"}, r"line 2: there is no field text \(it has label\)\. A record has the fields text and label"),
        ({"text": "hello"}, r"line 2: there is no field label"),
        ({"text": 3, "label": "a"}, r"line 2: text is a number, '3', and must be text"),
        ({"text": "hello", "label": None}, r"line 2: label is null"),
        ({"text": "hello", "label": ["a"]}, r"line 2: label is a list"),
        ({"text": "half \ud800", "label": "b"}, r"line 2: the text has half a character"),
    ):
        with pytest.raises(DataError, match=r"data\.jsonl, " + message):
            prepared([good, record])


def test_an_unknown_label_names_its_line_and_the_nearest(prepared: Prepare) -> None:
    with pytest.raises(
        DataError, match=r"line 2: the label 'spam' is not among data\.labels\. Did you mean spma\? All"
    ):
        prepared(table(), labels="ham,spma")


def test_one_label_is_not_enough(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"all 2 records have the label 'a'\. At least two are needed"):
        prepared([{"text": "x", "label": "a"}, {"text": "y", "label": "a"}])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("ham", "it must name two"),
        ("", "it must name two"),
        ("a,,b", "it must name two"),
        ("a,b,a", "'a' stands there twice"),
    ],
)
def test_labels_must_be_two_names_or_more(prepared: Prepare, labels: str, message: str) -> None:
    for content in (table(), ""):
        with pytest.raises(ConfigError, match=rf"data\.labels: .*{message}"):
            prepared(content, labels=labels)


def test_an_empty_side_is_a_message(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"the validation set of .* is empty"):
        prepared(table(), val_fraction=1e-9)


def test_the_fingerprint_covers_what_decides_the_rows(prepared: Prepare) -> None:
    first = prepared(table())
    others = [
        prepared(table(29)),
        prepared(table(), seq_len=41),
        prepared(table(), val_fraction=0.31),
        prepared(table(), labels="spam,ham"),
        prepared(table(), tokenizer="gpt2"),
        prepared(table(), rows="packed"),
    ]
    assert len({store.info.fingerprint for store in [first, *others]}) == 7
    assert prepared(table(), labels="ham,spam").info == first.info
    assert prepared(table(), tokenizer="chars").info.vocab_size < 40
