"""Questions with answers, in rows to train on: the prompt is read, the answer is learned.

Targets are those of the book's chapter 7, `custom_collate_fn`: one end of text is learned, filler is not; and the
prompt is not, as in exercise 7.2, unless it is asked for. Knows no model and never torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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
from trainwell.data.records import Message, Record, content_of, messages_of, read_records
from trainwell.data.templates import Template, TextTemplate, load_template, named_template
from trainwell.data.tokenizer import Tokenizer, load_tokenizer
from trainwell.errors import DataError


class InstructSettings(ExampleSettings, Protocol):
    """The part of the configuration that decides the rows; `DataConfig` has this shape."""

    @property
    def template(self) -> str:
        """How a conversation becomes text."""

    @property
    def train_on_prompt(self) -> bool:
        """Whether the prompt is learned too."""


@dataclass
class _Fates:
    """The examples that are not as they stand in the file."""

    cut: list[Record]
    left_out: list[Record]
    no_answer: list[Record]


def prepare_instruct(data: InstructSettings, *, tokenizer: Tokenizer | None = None) -> ExampleStore:
    """Read the conversations in `data.path` and lay them out in rows of `data.seq_len`.

    What is longer than a row is cut at its end; an example of whose answer nothing is left is left out, and noted.
    Raises DataError, with the line, for a record that cannot be used, and ConfigError for a template or tokenizer.
    """
    if data.template != "tokenizer":
        named_template(data.template)  # a mistake in the settings is told before one in the data
    file = read_records(path_of(data, "instruct"))
    conversations = [messages_of(record.fields, record.where) for record in file.records]
    if tokenizer is None:
        tokenizer = load_tokenizer(data.tokenizer, texts=_alphabet(data, conversations))
    template = load_template(data.template, tokenizer)
    fates = _Fates([], [], [])
    examples = list(_examples(data, file.records, conversations, tokenizer, template, fates))
    if not examples:
        raise DataError(
            f"{file.path}: no answer fits into data.seq_len {data.seq_len:,}: with data.template {data.template} the "
            f"prompts of all {len(file.records):,} examples are longer. Raise data.seq_len, or use a shorter template."
        )
    decided = sorted((key, value) for key, value in template.state().items() if key != "name")  # which may be a path
    return store(
        *divided(examples, data, file),
        data,
        file=file,
        tokenizer=tokenizer,
        deciding=("instruct", decided, data.train_on_prompt),
        notes=_notes(fates, len(file.records), data.seq_len),
        template=template,
    )


def _alphabet(data: InstructSettings, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """All text there is, for the tokenizer that is made of it."""
    if data.tokenizer != "chars":
        return []
    said = [content_of(message) for messages in conversations for message in messages]
    template = None if data.template == "tokenizer" else named_template(data.template)
    if not isinstance(template, TextTemplate):
        return said
    return [template.prompt, template.without_input, template.between, template.system, *said]


def _examples(
    data: InstructSettings,
    records: Sequence[Record],
    conversations: Sequence[list[Message]],
    tokenizer: Tokenizer,
    template: Template,
    fates: _Fates,
) -> Iterator[Example]:
    limit = longest_text(data.seq_len)
    for record, messages in zip(records, conversations, strict=True):
        short = _shortened(messages, limit)
        try:
            ids, answers = template.example(short, tokenizer)
        except DataError as error:
            raise at(record, error) from error
        width = data.seq_len + 1
        if not any(answers[1:width]):
            fates.left_out.append(record)
            continue
        if len(ids) > width or short != messages:
            fates.cut.append(record)
        if not all(message["content"] for message in messages if message["role"] == "assistant"):
            fates.no_answer.append(record)
        learned = np.array(answers[1:width]) | data.train_on_prompt
        row = np.array(ids[:width], dtype=np.int32)
        text = "\n".join(f"{message['role']}: {content_of(message)}" for message in messages)
        yield Example(row[:-1], np.where(learned, row[1:], IGNORED), is_held_out(key_of(text), data.val_fraction))


def _shortened(messages: list[Message], limit: int) -> list[Message]:
    """Cut messages that alone are longer than a row before they are tokenised."""
    if all(len(content_of(message)) <= limit for message in messages):
        return messages
    shortened: list[Message] = []
    for message in messages:
        short: Message = {"role": message["role"], "content": message["content"][:limit]}
        if "input" in message:
            short["input"] = message["input"][:limit]
        shortened.append(short)
    return shortened


def _notes(fates: _Fates, count: int, seq_len: int) -> list[str]:
    notes = []
    if fates.left_out:
        notes.append(
            f"{len(fates.left_out):,} of {count:,} examples are left out: nothing of their answer is within "
            f"data.seq_len {seq_len:,} ({places(fates.left_out)}); raise data.seq_len, or use a shorter data.template"
        )
    if fates.cut:
        notes.append(
            f"{len(fates.cut):,} of {count:,} examples are longer than data.seq_len {seq_len:,} and cut at the end "
            f"({places(fates.cut)})"
        )
    if fates.no_answer:
        notes.append(
            f"{len(fates.no_answer):,} of {count:,} examples have an empty answer, so an end of text alone is learned "
            f"({places(fates.no_answer)})"
        )
    return notes
