"""Records of a task: one file of JSON, JSON lines or CSV, each record with its line; and their forms.

Knows no tokens and no task: which fields a record must have is said where it is used. Nothing quoted in a message is
longer than a line.
"""

import csv
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from trainwell.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")
_SHOWN = 60
_ROLES = ("system", "user", "assistant")
_FORMS = 'Allowed: the fields instruction, input (optional) and output, or messages: [{"role": ..., "content": ...}].'
_LONGEST_FIELD = 2**31 - 1


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str
    input: NotRequired[str]
    """What an instruction is about (Alpaca's `input`); a template says where it goes."""


@dataclass(frozen=True)
class Record:
    """One record: its fields, and where it begins."""

    fields: Mapping[str, Any]
    where: str
    """File and place, for a message."""
    place: str
    """Its line; in an array, where all may be on one line, its number too."""


@dataclass(frozen=True)
class RecordFile:
    """The records of one file, in its order."""

    path: str
    sha256: str
    """Of the file's bytes."""
    records: tuple[Record, ...]


def read_records(path: str, setting: str = "data.path") -> RecordFile:
    """Read the file `path`, given by `setting`: .json (an array), .jsonl (an object a line), .csv or .tsv (a header).

    A byte order mark, CRLF and blank lines are no mistakes. Raises DataError, with the line, for anything that is.
    """
    file = Path(path).expanduser()
    read = _reader(path, file, setting)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    text = _decode(path, raw)
    if not text.strip():
        raise DataError(f"{path} is empty. Give a file with at least one record.")
    records = tuple(read(path, text))
    if not records:
        raise DataError(f"{path} has no records. Give a file with at least one.")
    return RecordFile(path, hashlib.sha256(raw).hexdigest(), records)


def _reader(path: str, file: Path, setting: str) -> Callable[[str, str], Iterator[Record]]:
    if file.is_dir():
        raise DataError(f"{setting}: {path} is a folder. A task is read from one file: .json, .jsonl, .csv or .tsv.")
    if not file.is_file():
        raise DataError(
            f"{setting}: {path} does not exist (looked in {Path.cwd()}). Give a .json, .jsonl, .csv or .tsv file."
        )
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise DataError(
            f"{setting}: {path} ends in {file.suffix or 'no suffix'}. Allowed: .json (an array of objects), .jsonl (an "
            "object a line), .csv and .tsv (with a header). Rename the file, or convert it."
        )
    return read


def _decode(path: str, raw: bytes) -> str:
    start = len(_BYTE_ORDER_MARK) if raw.startswith(_BYTE_ORDER_MARK) else 0
    try:
        return raw[start:].decode()
    except UnicodeDecodeError as error:
        offset = start + error.start
        line = 1 + raw.count(b"\n", 0, offset)
        raise DataError(
            f"{path}, line {line:,}: not UTF-8: byte 0x{raw[offset]:02x} at offset {offset:,}, {error.reason}. "
            "Convert it first, for example with: iconv -f latin1 -t utf-8"
        ) from error


def _json_lines(path: str, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028 as it is
        if content := line.strip():
            place = f"line {number:,}"
            where = f"{path}, {place}"
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: {_broken(error)}: {shown(content)}. {_lines_hint(text)}") from error
            yield _record(value, path, place, _lines_hint(text))


def _lines_hint(text: str) -> str:
    if text.lstrip().startswith("["):
        return "A file that is one array of records must be named .json."
    return "Each line of a .jsonl file must be one whole object."


def _json_array(path: str, text: str) -> Iterator[Record]:
    """Take an array apart one element at a time, so that each is known by its line."""
    decoder = json.JSONDecoder()
    place = _after_space(text, 0)
    if text[place] != "[":
        raise DataError(
            f"{path} begins with {shown(text[place:])}. A .json file must be one array of objects, [{{...}}, ...]; "
            "with an object on each line it must be named .jsonl."
        )
    line, counted = 1, 0
    for number in itertools.count(1):
        begin = _after_space(text, place + 1)
        line, counted = line + text.count("\n", counted, begin), begin
        if number == 1 and text[begin : begin + 1] == "]":
            place = begin
            break
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {getattr(error, 'lineno', line):,}: {_broken(error)}.") from error
        yield _record(value, path, f"record {number:,} (line {line:,})", "Each element of the array must be an object.")
        place = _after_space(text, end)
        if text[place : place + 1] != ",":
            break
    _check_end(path, text, place)


def _check_end(path: str, text: str, place: int) -> None:
    end = _after_space(text, place + 1)
    if text[place : place + 1] == "]" and end == len(text):
        return
    wrong = end if text[place : place + 1] == "]" else place
    line = 1 + text.count("\n", 0, wrong)
    found = shown(text[wrong:]) if wrong < len(text) else "the end of the file"
    allowed = "nothing may follow the array" if wrong == end and wrong != place else "a comma or ] must follow"
    raise DataError(f"{path}, line {line:,}: broken JSON: {found}, where {allowed}.")


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _record(value: object, path: str, place: str, allowed: str) -> Record:
    where = f"{path}, {place}"
    if not isinstance(value, dict):
        raise DataError(f"{where}: {_kind(value)} instead of an object: {shown(value)}. {allowed}")
    return Record(value, where, place)


def _broken(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at column {error.colno:,}"
    return "JSON nested too deeply" if isinstance(error, RecursionError) else f"broken JSON: {error}"


def _table(path: str, text: str, *, tabs: bool = False) -> Iterator[Record]:
    limit = csv.field_size_limit(_LONGEST_FIELD)  # 128 KiB by default, and the same for the whole process
    try:
        yield from _rows(path, text, tabs)
    finally:
        csv.field_size_limit(limit)


def _rows(path: str, text: str, tabs: bool) -> Iterator[Record]:
    """The rows of a table; between tabs a quote is a character like any other, as in the book's SMS collection."""
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **how)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            place, line = f"line {line:,}", reader.line_num + 1
            where = f"{path}, {place}"
            if not any(row):
                continue
            if header is None:
                header = _header(row, where)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} fields, but the header has {len(header)}: {shown(', '.join(header))}. "
                    'Put a field with a comma, a quote or a line break in "quotes", and double the quotes in it.'
                )
            yield Record(dict(zip(header, row, strict=True)), where, place)
    except csv.Error as error:
        raise DataError(f"{path}, line {line:,}: broken CSV: {error}. Quotes in a quoted field are doubled.") from error


def _header(row: Sequence[str], where: str) -> list[str]:
    names = [name.strip() for name in row]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two columns are named {shown(twice)}. Each must have a name of its own.")
    return names


_READERS: dict[str, Callable[[str, str], Iterator[Record]]] = {
    ".json": _json_array,
    ".jsonl": _json_lines,
    ".csv": _table,
    ".tsv": partial(_table, tabs=True),
}


def shown(value: object) -> str:
    """Quote a value in a message, shortened to a few dozen characters."""
    if isinstance(value, list | dict):
        return f"{_kind(value)} of {len(value):,}"
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _kind(value: object) -> str:
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def field_text(fields: Mapping[str, Any], name: str, where: str, allowed: str) -> str:
    """Give the text in the field `name`; DataError if the field is missing or is no text."""
    if name not in fields:
        has = f"it has {', '.join(map(str, fields))}" if fields else "it has none"
        raise DataError(f"{where}: there is no field {name} ({has[: 3 * _SHOWN]}). {allowed}")
    value = fields[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {_kind(value)}, {shown(value)}, and must be text. {allowed}")
    return value


def messages_of(record: Mapping[str, Any], where: str, *, answered: bool = True) -> list[Message]:
    """Read a record in Alpaca form (instruction, input, output) or chat form (messages) as a conversation.

    A conversation is an optional system message, then user and assistant in turn. If `answered` it ends with an answer;
    otherwise with a question, and an `output` is not looked at. Raises DataError that begins with `where`.
    """
    if "messages" not in record:
        return _alpaca(record, where, answered=answered)
    given = record["messages"]
    if not isinstance(given, list):
        raise DataError(f"{where}: messages is {_kind(given)}, {shown(given)}, and must be a list. {_FORMS}")
    messages = [_message(each, f"{where}: message {place}") for place, each in enumerate(given, start=1)]
    _check_order(messages, where, answered=answered)
    return messages


def _alpaca(record: Mapping[str, Any], where: str, *, answered: bool) -> list[Message]:
    question = Message(role="user", content=field_text(record, "instruction", where, _FORMS))
    if record.get("input") is not None and (text := field_text(record, "input", where, _FORMS)):
        question["input"] = text
    if not answered:
        return [question]
    return [question, Message(role="assistant", content=field_text(record, "output", where, _FORMS))]


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {_kind(value)}, {shown(value)}, instead of an object. {_FORMS}")
    role = field_text(value, "role", where, _FORMS)
    if role not in _ROLES:
        raise DataError(f"{where} has the role {shown(role)}. Allowed: {', '.join(_ROLES)}.")
    return Message(role=role, content=field_text(value, "content", where, _FORMS))  # type: ignore[typeddict-item]


def _check_order(messages: Sequence[Message], where: str, *, answered: bool) -> None:
    if not messages:
        raise DataError(f"{where}: messages is empty. {_FORMS}")
    turns = [message["role"] for message in messages]
    start = int(turns[0] == "system")
    for place, role in enumerate(turns[start:], start=start):
        expected = _ROLES[1 + (place - start) % 2]
        if role != expected:
            raise DataError(
                f"{where}: message {place + 1} is from {role}, where one from {expected} must stand. "
                "Allowed: a system message first or none, then user and assistant in turn."
            )
    if answered and turns[-1] != "assistant":
        raise DataError(
            f"{where}: the last message is from {turns[-1]}, so an answer is missing. End with the assistant's."
        )
    if not answered and turns[-1] != "user":
        raise DataError(f"{where}: the last message is from {turns[-1]}, so there is no question. End with the user's.")


def content_of(message: Message) -> str:
    """Give the text of a message, what an instruction is about on a line of its own."""
    return f"{message['content']}\n{message['input']}" if message.get("input") else message["content"]
