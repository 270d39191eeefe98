"""Records: what a file holds, each with its line; and one message with file, line and advice for each mistake."""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data.records import messages_of, read_records, shown
from trainwell.errors import DataError

Write = Callable[[str, str | bytes], str]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
VALUES = st.one_of(TEXT, st.integers(), st.none(), st.lists(TEXT, max_size=2))
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), min_size=1, max_size=5)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of this name and content; return its path."""

    def make(name: str, content: str | bytes) -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a property writes its files, one over the other."""
    return tmp_path_factory.mktemp("records")


def fields_of(path: str) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in read_records(path).records]


@given(OBJECTS, st.sampled_from([None, 2]), st.booleans())
def test_an_array_gives_what_json_gives(
    folder: Path, objects: list[dict[str, Any]], indent: int | None, ascii_only: bool
) -> None:
    file = folder / "a.json"
    file.write_text(json.dumps(objects, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", newline="")
    assert fields_of(str(file)) == objects


@given(OBJECTS, st.sampled_from(["\n", "\r\n", "\n\n  \n"]))
def test_lines_give_what_json_gives(folder: Path, objects: list[dict[str, Any]], end: str) -> None:
    file = folder / "a.jsonl"
    lines = end.join(json.dumps(each, ensure_ascii=False) for each in objects)
    file.write_text(lines, encoding="utf-8", newline="")
    assert fields_of(str(file)) == objects


@given(st.lists(st.fixed_dictionaries({"text": TEXT.filter(bool), "label": TEXT}), min_size=1))
def test_a_table_gives_what_csv_gives(folder: Path, rows: list[dict[str, str]]) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["text", "label"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    file = folder / "a.csv"
    file.write_text(table.getvalue(), encoding="utf-8", newline="")
    assert fields_of(str(file)) == rows


def test_every_record_knows_the_line_it_begins_on(write: Write) -> None:
    array = write("a.json", '[{"a": 1},\n\n  {"a":\n 2}, {"a": 3},\n{"a": 4}\n]\n')
    lines = write("a.jsonl", '\n{"a": 1}\r\n\r\n{"a": 2}')
    table = write("a.csv", 'text,label\r\n"one\ntwo",x\r\n\r\nthree,y\r\n')
    places = {path: [record.place for record in read_records(path).records] for path in (array, lines, table)}
    assert places[array] == ["record 1 (line 1)", "record 2 (line 3)", "record 3 (line 4)", "record 4 (line 5)"]
    assert places[lines] == ["line 2", "line 4"]
    assert places[table] == ["line 2", "line 5"]
    assert read_records(lines).records[1].where == f"{lines}, line 4"


def test_a_byte_order_mark_is_no_mistake_and_the_hash_is_the_files(write: Write) -> None:
    for name, content in (("a.json", '[{"a": "é"}]'), ("a.jsonl", '{"a": "é"}'), ("a.csv", "a\né")):
        raw = b"\xef\xbb\xbf" + content.encode()
        path = write(name, raw)
        assert fields_of(path) == [{"a": "é"}]
        assert read_records(path).sha256 == hashlib.sha256(raw).hexdigest()


def test_a_line_separator_inside_a_text_ends_no_line(write: Write) -> None:
    assert fields_of(write("a.jsonl", '{"a": "one\u2028two\x85"}')) == [{"a": "one\u2028two\x85"}]


MISTAKES: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.json", "", r"a\.json is empty"),
    "only blanks": ("a.jsonl", "\n \n", r"a\.jsonl is empty"),
    "an empty array": ("a.json", "[ ]\n", r"a\.json has no records"),
    "only a header": ("a.csv", "text,label\n", r"a\.csv has no records"),
    "not UTF-8": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"line 2: not UTF-8: byte 0xff at offset 16.*iconv"),
    "not UTF-8 after a mark": ("a.csv", b"\xef\xbb\xbfa\n\xff", r"line 2: not UTF-8: byte 0xff at offset 5"),
    "a cut line": ("a.jsonl", '{"a": 1}\n{"a": ', r"line 2: broken JSON: Expecting value at column 6: '\{\"a\":'"),
    "an array in lines": ("a.jsonl", '[\n{"a": 1}\n]', r"line 1: broken JSON.*must be named \.json"),
    "a line that is a list": ("a.jsonl", '{"a": 1}\n[1, 2]', r"line 2: a list instead of an object: a list of 2"),
    "a line that is text": ("a.jsonl", '"hello"', r"line 1: text instead of an object: 'hello'"),
    "a number of 5000 digits": ("a.jsonl", '{"a": ' + "1" * 5000 + "}", r"line 1: broken JSON: .*4300 digits"),
    "nested": ("a.jsonl", "[" * 200_000, r"line 1: JSON nested too deeply"),
    "nested array": ("a.json", "[" * 200_000, r"line 1: JSON nested too deeply"),
    "lines in an array": ("a.json", '{"a": 1}\n{"a": 2}', r"a\.json begins with '\{.*must be named \.jsonl"),
    "an element": ("a.json", '[{"a": 1},\n null]', r"record 2 \(line 2\): null instead of an object"),
    "a cut array": (
        "a.json",
        '[{"a": 1},\n{"a": 2}\n',
        r"line 3: broken JSON: the end of the file, where a comma or \]",
    ),
    "a missing comma": (
        "a.json",
        '[{"a": 1}\n{"a": 2}]',
        r"line 2: broken JSON: '\{\"a\": 2\}\]', where a comma or \]",
    ),
    "a trailing comma": ("a.json", '[{"a": 1},\n]', r"line 2: broken JSON: Expecting value"),
    "more than an array": ("a.json", '[{"a": 1}]\n[]', r"line 2: broken JSON: '\[\]', where nothing may follow"),
    "a broken element": ("a.json", '[{"a": 1},\n{"a" 2}]', r"line 2: broken JSON: Expecting ':' delimiter at column 6"),
    "fields": ("a.csv", "text,label\na,b,c\n", r"line 2: 3 fields, but the header has 2: 'text, label'.*\"quotes\""),
    "columns": ("a.csv", "text,label, text\na,b,c\n", r"line 1: two columns are named 'text'"),
    "an open quote": ("a.csv", 'text,label\na,b\n"c,d\n', r"line 3: broken CSV: unexpected end of data"),
    "a quote inside": ("a.csv", 'text,label\n"a"b,c\n', r"line 2: broken CSV: ',' expected after '\"'"),
    "a suffix": ("a.parquet", "x", r"data\.path: .* ends in \.parquet\. Allowed: \.json"),
    "no suffix": ("records", "x", r"data\.path: .* ends in no suffix"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_file_that_cannot_be_read_is_one_message(write: Write, mistake: str) -> None:
    name, content, message = MISTAKES[mistake]
    with pytest.raises(DataError, match=message) as caught:
        read_records(write(name, content))
    assert len(str(caught.value)) < 500


def test_a_missing_file_and_a_folder_are_messages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: .*a\.json does not exist \(looked in"):
        read_records(str(tmp_path / "a.json"))
    with pytest.raises(DataError, match=r"is a folder\. A task is read from one file"):
        read_records(str(tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_line_of_ten_megabytes_is_read_or_is_a_short_message(write: Write, name: str) -> None:
    long = "x" * 10_000_000
    good = {"a.jsonl": f'{{"a": "{long}"}}', "a.json": f'[{{"a": "{long}"}}]', "a.csv": f'a\n"{long}"'}[name]
    assert fields_of(write(name, good)) == [{"a": long}]
    limit = csv.field_size_limit()
    with pytest.raises(DataError) as caught:
        read_records(write(name, good[:-2]))
    assert len(str(caught.value)) < 400
    assert csv.field_size_limit() == limit


def test_an_alpaca_record_is_a_question_and_an_answer() -> None:
    record = {"instruction": "Add.", "input": "1 and 2", "output": "3", "source": "me"}
    question, answer = messages_of(record, "here")
    assert question == {"role": "user", "content": "Add.", "input": "1 and 2"}
    assert answer == {"role": "assistant", "content": "3"}
    for without in ({"input": ""}, {"input": None}):
        assert messages_of(record | without, "here")[0] == {"role": "user", "content": "Add."}
    assert messages_of({"instruction": "Add."}, "here", answered=False) == [{"role": "user", "content": "Add."}]


def test_a_chat_record_is_its_messages() -> None:
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "weight": 1},
    ]
    expected = [{"role": each["role"], "content": each["content"]} for each in chat]
    assert messages_of({"messages": chat}, "here") == expected
    assert messages_of({"messages": chat[:2]}, "here", answered=False) == expected[:2]


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "no fields": ({}, r"f, line 7: there is no field instruction \(it has none\)\. Allowed: the fields instruction"),
    "no output": ({"instruction": "a"}, r"f, line 7: there is no field output \(it has instruction\)\. Allowed"),
    "a number": ({"instruction": 3, "output": "a"}, r"instruction is a number, '3', and must be text"),
    "an input": (
        {"instruction": "a", "input": ["b"], "output": "c"},
        r"input is a list, a list of 1, and must be text",
    ),
    "null": ({"instruction": "a", "output": None}, r"output is null"),
    "no list": ({"messages": "hello"}, r"messages is text, 'hello', and must be a list"),
    "no messages": ({"messages": []}, r"line 7: messages is empty"),
    "no object": ({"messages": ["hello"]}, r"message 1 is text, 'hello', instead of an object"),
    "no content": ({"messages": [{"role": "user"}]}, r"message 1: there is no field content \(it has role\)"),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"message 1: content is a list"),
    "a role": (turns("human", "gpt"), r"message 1 has the role 'human'\. Allowed: system, user, assistant"),
    "answer first": (turns("assistant"), r"message 1 is from assistant, where one from user must stand"),
    "two questions": (turns("user", "user", "assistant"), r"message 2 is from user, where one from assistant"),
    "a late system": (turns("user", "system"), r"message 2 is from system, where one from assistant must stand"),
    "no answer": (turns("system", "user"), r"the last message is from user, so an answer is missing"),
    "system alone": (turns("system"), r"the last message is from system, so an answer is missing"),
}


@pytest.mark.parametrize("mistake", FORMS)
def test_a_record_of_another_form_is_a_message_with_its_line(mistake: str) -> None:
    record, message = FORMS[mistake]
    with pytest.raises(DataError, match=message) as caught:
        messages_of(record, "f, line 7")
    assert str(caught.value).startswith("f, line 7")


def test_a_conversation_to_answer_ends_with_a_question() -> None:
    with pytest.raises(DataError, match="the last message is from assistant, so there is no question"):
        messages_of(turns("user", "assistant"), "f, line 1", answered=False)


def test_a_quoted_value_is_short() -> None:
    assert shown("x" * 10_000) == repr("x" * 60 + "...")
    assert shown({"a": [1] * 1000}) == "an object of 1"


def test_between_tabs_a_quote_is_a_character(tmp_path: Path) -> None:
    file = tmp_path / "sms.tsv"
    file.write_text('label\ttext\nham\tOk "lar, joking\nspam\tFree entry, "win"\n')
    assert [record.fields for record in read_records(str(file)).records] == [
        {"label": "ham", "text": 'Ok "lar, joking'},
        {"label": "spam", "text": 'Free entry, "win"'},
    ]
