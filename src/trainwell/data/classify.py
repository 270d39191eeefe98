"""Texts with labels, in rows to train on: the class is the target at the last token of a text, and nowhere else.

So it is read from the last real token, never from filler, and its loss is that of any target. Knows no model and never
torch.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from trainwell.data.examples import (
    IGNORED,
    Example,
    ExampleSettings,
    ExampleStore,
    at,
    divided,
    longest_text,
    path_of,
    places,
    store,
)
from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.records import Record, field_text, read_records, shown
from trainwell.data.tokenizer import Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, DataError

_FORM = "A record has the fields text and label."
_CLASSES_NAMED = 12


class ClassifySettings(ExampleSettings, Protocol):
    """The part of the configuration that decides the rows; `DataConfig` has this shape."""

    @property
    def labels(self) -> str | None:
        """Names of the classes, or None for those of the file."""


def prepare_classify(data: ClassifySettings, *, tokenizer: Tokenizer | None = None) -> ExampleStore:
    """Read the labelled texts in `data.path` and lay them out in rows of `data.seq_len`.

    Classes are those of `data.labels` in that order, else those of the file, sorted. A text longer than a row is cut at
    its end. Raises DataError, with the line, for a record that cannot be used, ConfigError for wrong `data.labels`.
    """
    named = None if data.labels is None else parse_labels(data.labels)
    file = read_records(path_of(data, "classify"))
    texts = [text_of(record) for record in file.records]
    given = [_label_of(record) for record in file.records]
    labels = named or _sorted(set(given))
    _check_labels(file.path, file.records, given, labels)
    if tokenizer is None:
        tokenizer = load_tokenizer(data.tokenizer, texts=texts)
    numbers = {label: number for number, label in enumerate(labels)}
    cut: list[Record] = []
    examples = list(_examples(data, file.records, texts, [numbers[label] for label in given], tokenizer, cut))
    train, val = divided(examples, data, file)
    training, held_out = (Counter(labels[int(example.targets[-1])] for example in side) for side in (train, val))
    return store(
        train,
        val,
        data,
        file=file,
        tokenizer=tokenizer,
        deciding=("classify", labels),
        note=_baseline(training, held_out),
        notes=_notes(cut, len(examples), data.seq_len, [label for label in labels if not training[label]]),
        labels=labels,
    )


def parse_labels(text: str) -> tuple[str, ...]:
    """Take `data.labels` apart at its commas; ConfigError unless it names two or more classes, each once."""
    labels = tuple(label.strip() for label in text.split(","))
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if "" in labels or twice or len(labels) < 2:
        why = f"{shown(twice[0])} stands there twice" if twice and twice[0] else "it must name two classes or more"
        raise ConfigError(f"data.labels: {shown(text)}: {why}. Write the names with commas between: ham,spam.")
    return labels


def labels_text(labels: Sequence[str]) -> str:
    """Write labels as `parse_labels` reads them."""
    return ",".join(labels)


def text_of(record: Record) -> str:
    """The text of a record; DataError, with its line, where there is none."""
    name = _field(record, "text")
    text = field_text(record.fields, name, record.where, _FORM)
    if not text.strip():
        raise DataError(f"{record.where}: {name} is empty. Remove the record, or give it a text.")
    return text


def label_in(value: object) -> str:
    """The label that a field holds, as text: true and 1 of JSON are the labels true and 1."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _label_of(record: Record) -> str:
    name = _field(record, "label")
    value: Any = record.fields.get(name)
    given = isinstance(value, int | float)
    label = label_in(value if given else field_text(record.fields, name, record.where, _FORM))
    if not label or "," in label or "\n" in label:
        raise DataError(
            f"{record.where}: {name} is {shown(label)}. A label is a name or number without comma and line break."
        )
    return label


def _field(record: Record, name: str) -> str:
    """The field's name as the file spells it: `Text` and `Label` are those of the book's chapter 6."""
    return next((key for key in record.fields if key == name or key.strip().lower() == name), name)


def _sorted(labels: set[str]) -> tuple[str, ...]:
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))


def _check_labels(path: str, records: Sequence[Record], given: Sequence[str], labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise DataError(
            f"{path}: all {len(given):,} records have the label {shown(labels[0])}. At least two are needed."
        )
    allowed = set(labels)
    for record, label in zip(records, given, strict=True):
        if label not in allowed:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(
                f"{record.where}: the label {shown(label)} is not among data.labels.{hint} Allowed: {_few(labels)}. "
                "Correct the record, or add the label to data.labels."
            )


def _examples(
    data: ClassifySettings,
    records: Sequence[Record],
    texts: Sequence[str],
    classes: Sequence[int],
    tokenizer: Tokenizer,
    cut: list[Record],
) -> Iterator[Example]:
    limit = longest_text(data.seq_len)
    for record, text, label in zip(records, texts, classes, strict=True):
        try:
            ids = tokenizer.encode(text[:limit])
        except DataError as error:
            raise at(record, error) from error
        if not len(ids):
            raise DataError(f"{record.where}: {tokenizer.name} has no tokens for the text {shown(text)}. Remove it.")
        if len(ids) > data.seq_len or len(text) > limit:
            cut.append(record)
        inputs = ids[: data.seq_len]
        targets = np.full(len(inputs), IGNORED, dtype=np.int32)
        targets[-1] = label
        yield Example(inputs, targets, is_held_out(key_of(text), data.val_fraction))


def _baseline(training: Counter[str], held_out: Counter[str]) -> str:
    """How the classes are distributed, and how often the most frequent one of the training set would be right."""
    counts = [f"{label} {count:,}" for label, count in sorted((training + held_out).items(), key=lambda each: -each[1])]
    label, _ = training.most_common(1)[0]
    share = held_out[label] / held_out.total()
    return f"examples: {_few(counts)}; always saying {label} is right for {share:.1%} of the validation set"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _CLASSES_NAMED:,} more" if len(names) > _CLASSES_NAMED else ""
    return ", ".join(names[:_CLASSES_NAMED]) + more


def _notes(cut: Sequence[Record], count: int, seq_len: int, unseen: Sequence[str]) -> list[str]:
    notes = []
    if cut:
        notes.append(
            f"{len(cut):,} of {count:,} texts are longer than data.seq_len {seq_len:,} and cut at the end "
            f"({places(cut)})"
        )
    if unseen:
        notes.append(f"no example to train on has the label {_few(unseen)}")
    return notes
