"""The questions of `trainwell sample` to a fine-tuned run: a chat, a file of questions, the label of a text."""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from trainwell.answers import answer, label_of
from trainwell.cli.output import wrote
from trainwell.data.classify import label_in, text_of
from trainwell.data.records import Message, Record, messages_of, read_records
from trainwell.data.templates import Template
from trainwell.data.tokenizer import Tokenizer
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.run import Run
from trainwell.runs.console import safe

_NEW = "/new"


def chat(run: Run, asked: TextIO, how: Mapping[str, Any]) -> None:
    """Answer each line of `asked`, knowing what was said before; /new forgets it, the end of input ends it.

    At a terminal Ctrl-C cuts an answer short, and at the prompt it ends the chat.
    """
    tokenizer, template = _asked(run)
    at_terminal = asked.isatty()
    if at_terminal:
        print(
            f"{run.run_dir.path} at step {run.trainer.step:,}; {_NEW} starts anew, Ctrl-C cuts an answer, Ctrl-D ends"
        )
    messages: list[Message] = []
    for question in _typed() if at_terminal else asked:
        if question.strip() == _NEW:
            messages = []
        elif question.strip():
            messages.append({"role": "user", "content": question.strip()})
            _note_cut(len(template.ids(messages[-1:], tokenizer)), run.plan.seq_len, "question")
            ids = answer(run.model, tokenizer, template, messages, context=run.plan.seq_len, **how)
            messages.append({"role": "assistant", "content": say(ids, tokenizer, at_terminal=at_terminal)})
            print(flush=True)


def _typed() -> Iterator[str]:
    """Lines typed at a terminal, with history and arrow keys where Python has readline."""
    with suppress(ImportError):
        importlib.import_module("readline")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
    print()


def say(drawn: Iterator[int], tokenizer: Tokenizer, *, at_terminal: bool) -> str:
    """Write an answer as it comes; at a terminal an interrupt ends it and not the chat."""
    kept: list[int] = []

    def keeping() -> Iterator[int]:
        for token in drawn:
            kept.append(token)
            yield token

    try:
        return stream(keeping(), tokenizer)
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        return tokenizer.decode(kept)


def _note_cut(tokens: int, context: int, what: str) -> None:
    """Say on standard error that not all of a text is read."""
    if tokens > context:
        sys.stderr.write(f"trainwell: the {what} has {tokens:,} tokens, of which {context:,} are read\n")


def answer_file(run: Run, questions: Path, output: Path | None, how: Mapping[str, Any]) -> None:
    """Answer or label every record of a .json, .jsonl or .csv file: the same records with what the model says.

    JSON lines in `output`, or on standard output; every mistake in the file is found before the first answer.
    """
    if output is not None and output.suffix.lower() not in {".jsonl", ".json", ""}:
        raise ConfigError(f"--output {output}: JSON lines are written; name it {output.with_suffix('.jsonl')}")
    if output is not None and output.exists():
        raise ConfigError(f"--output {output}: it exists; name a new file, or remove it")
    records = read_records(str(questions), "--file").records
    rows = _labelled(run, records) if run.labels else _answered(run, records, how)
    right: list[bool] = []
    try:
        with nullcontext(sys.stdout) if output is None else output.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
                right += _comparison(row)
    except OSError as error:
        raise StorageError(f"--output {output} cannot be written: {error.strerror}") from error
    wrote(output)
    if right:
        sys.stderr.write(
            f"right for {sum(right):,} of {len(right):,} texts with a label: {sum(right) / len(right):.1%}\n"
        )


def _comparison(row: Mapping[str, Any]) -> list[bool]:
    """Whether a text that came with its label was given it; nothing for one without."""
    known = [label_in(row[key]) for key in row if key.strip().lower() == "label"]
    return [known[0] == row["predicted"]] if known and "predicted" in row else []


def _answered(run: Run, records: Iterable[Record], how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    tokenizer, template = _asked(run)
    asked = [(record, messages_of(record.fields, record.where, answered=False)) for record in records]
    for record, messages in asked:
        with _said_where(record):
            template.ids(messages, tokenizer)

    def said(messages: Sequence[Message]) -> str:
        ids = answer(run.model, tokenizer, template, messages, context=run.plan.seq_len, **how)
        return tokenizer.decode(list(ids))

    return ({**record.fields, "answer": said(messages)} for record, messages in asked)


def _labelled(run: Run, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    texts = [(record, text_of(record)) for record in records]
    for record, text in texts:
        with _said_where(record):
            _tokenizer(run).encode(text)
    return ({**record.fields, **_likeliest(run, text)} for record, text in texts)


@contextmanager
def _said_where(record: Record) -> Iterator[None]:
    """Name the line of what cannot be tokenised."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{record.where}: {error}") from error


def _tokenizer(run: Run) -> Tokenizer:
    if run.tokenizer is None:
        raise ConfigError(f"{run.run_dir.path} was trained on ids given in Python, so there is no tokenizer for a text")
    return run.tokenizer


def _likeliest(run: Run, text: str) -> dict[str, Any]:
    label, probability = next(iter(_probabilities(run, text).items()))
    return {"predicted": label, "probability": round(probability, 6)}


def label(run: Run, text: str) -> None:
    """Print the label of a text, and how likely each is."""
    if not run.labels:
        raise ConfigError(
            f"--label: {run.run_dir.path} was trained with task {run.config.task} and knows no labels; "
            "train one that does: trainwell train classify --data.path FILE"
        )
    if not text.strip():
        raise ConfigError("--label: the text is empty; give at least one word")
    _note_cut(len(_tokenizer(run).encode(text)), run.plan.seq_len, "text")
    found = _probabilities(run, text)
    print(safe(next(iter(found))))
    for name, probability in found.items():
        print(f"  {probability:6.1%}  {safe(name)}")


def _probabilities(run: Run, text: str) -> Mapping[str, float]:
    return label_of(run.model, _tokenizer(run), text, run.labels, context=run.plan.seq_len)


def _asked(run: Run) -> tuple[Tokenizer, Template]:
    """What turns questions into ids; ConfigError for a run that was not trained to answer."""
    if run.labels:
        raise ConfigError(f"{run.run_dir.path} gives labels and answers nothing; use --label TEXT or --file FILE")
    if run.tokenizer is None or run.template is None:
        raise ConfigError(
            f"{run.run_dir.path} was trained with task {run.config.task} and not to answer questions; continue its "
            f"text with --prompt, or train it to answer: trainwell train instruct --init-from {run.run_dir.path} "
            "--data.path FILE"
        )
    return run.tokenizer, run.template


def stream(drawn: Iterator[int], tokenizer: Tokenizer) -> str:
    """Write text as soon as it is certain, and return it: its last characters wait while bytes may be missing."""
    ids: list[int] = []
    written = 0
    for token in drawn:
        ids.append(token)
        text = tokenizer.decode(ids)
        certain = len(text.rstrip("\ufffd"))
        sys.stdout.write(safe(text[written:certain]))
        sys.stdout.flush()
        written = max(written, certain)
    text = tokenizer.decode(ids)
    sys.stdout.write(safe(text[written:]))
    return text
