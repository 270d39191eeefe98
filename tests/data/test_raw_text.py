"""Raw text that is wrong: refused with its place, or left out or mended by choice, and always counted."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwell.data import readers
from trainwell.data.care import Care, OnError
from trainwell.data.inputs import Source, find_sources
from trainwell.data.readers import read_documents
from trainwell.data.reading import Reading
from trainwell.errors import DataError

FINE = b'{"text": "fine"}\n'


def read(file: Path, on_error: OnError = "refuse", longest: int = 1000, field: str = "text") -> tuple[list[str], Care]:
    care = Care(on_error, longest)
    (source,) = find_sources([str(file)], care)
    return [document.text for document in read_documents(source, Reading(field, care))], care


def zst(content: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


LINES = "a.jsonl"
WRONG: dict[str, tuple[str, bytes, str, list[str], list[str]]] = {
    # name of the file, what is in it, what is said, what is left by skip, and by repair
    "bytes that are no UTF-8": (LINES, b'{"text": "a\xffb"}\n' + FINE, "not UTF-8", ["fine"], ["a\ufffdb", "fine"]),
    "NUL": (LINES, b'{"text": "a\\u0000b"}\n' + FINE, "NUL characters", ["fine"], ["ab", "fine"]),
    "half a character": (LINES, b'{"text": "a\\ud800b"}\n' + FINE, "half a character", ["fine"], ["a\ufffdb", "fine"]),
    "a line that is no JSON": (LINES, b"{oops\n" + FINE, "broken JSON", ["fine"], ["fine"]),
    "a line that is no object": (LINES, b"[1]\n" + FINE, "no object", ["fine"], ["fine"]),
    "a field that is missing": (LINES, b'{"body": "a"}\n' + FINE, "no text in the field 'text'", ["fine"], ["fine"]),
    "a field that is no text": (LINES, b'{"text": 3}\n' + FINE, "no text in the field 'text'", ["fine"], ["fine"]),
    "a line that is too long": (
        LINES, b'{"text": "' + b"x" * 2000 + b'"}\n' + FINE, "over 1,000 bytes in one document", ["fine"], ["fine"]
    ),
    "a line that never ends": (LINES, FINE + b"x" * 5000, "over 1,000 bytes in one document", ["fine"], ["fine"]),
    "nested too deeply": (LINES, b"[" * 900 + b"\n" + FINE, "broken JSON", ["fine"], ["fine"]),
    "gzip that is cut off": (
        "a.jsonl.gz", gzip.compress(FINE * 5)[:-9], "damaged .gz", [], []
    ),
    "no gzip": ("a.jsonl.gz", b"plain", "damaged .gz", [], []),
    "zst that is cut off": ("a.jsonl.zst", zst(FINE * 5)[:-5], "damaged .zst", [], []),
    "an array that is cut off": ("a.json", b'[{"text": "fine"}, {"te', "broken JSON", ["fine"], ["fine"]),
    "a table with a short row": ("a.csv", b"n,text\n1\n2,fine\n", "no text in the field 'text'", ["fine"], ["fine"]),
    "a table that is no UTF-8": ("a.csv", b"text\na\xff\nfine\n", "not UTF-8", ["fine"], ["a\ufffd", "fine"]),
    "a text that is no UTF-8": ("a.txt", b"caf\xe9", "not UTF-8", [], ["caf\ufffd"]),
    "no parquet": ("a.parquet", b"PAR1 not really", "damaged file", [], []),
    "no arrow": ("a.arrow", b"ARROW1 not really", "damaged file", [], []),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_its_place_or_left_out_or_mended_and_counted(name: str, tmp_path: Path) -> None:
    file, content, said, skipped, repaired = WRONG[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read(tmp_path / file)
    assert str(refused.value).startswith(str(tmp_path / file))
    assert "--on-error" in str(refused.value)
    choices: tuple[tuple[OnError, list[str]], ...] = (("skip", skipped), ("repair", repaired))
    for choice, left in choices:
        texts, care = read(tmp_path / file, choice)
        assert texts == left
        assert sum(care.counts.values()) == 1
        ((kind, places),) = care.named.items()
        assert kind.startswith(said)
        assert places[0].startswith(str(tmp_path / file))


@pytest.mark.parametrize(
    ("file", "content", "texts", "kinds"),
    [
        (LINES, b"\xef\xbb\xbf" + FINE, ["fine"], ["byte order mark: dropped"]),
        ("a.txt", b"\xef\xbb\xbffine", ["fine"], ["byte order mark: dropped"]),
        ("a.csv", b"\xef\xbb\xbftext\nfine\n", ["fine"], []),
        ("a.json", b'\xef\xbb\xbf [{"text": "fine"}]', ["fine"], []),
        (LINES, b'{"text": ""}\n\n' + FINE, ["fine"], ["empty document: left out"]),
        (LINES, b'{"text": "fine"}\r\n', ["fine"], []),
        (LINES, FINE.strip(), ["fine"], []),
        ("a.json", FINE + FINE, ["fine", "fine"], []),
        ("a.json", b"[]", [], []),
        ("a.csv", b'id,"text"\n1,"two\nlines, ""quoted"""\n', ['two\nlines, "quoted"'], []),
        ("a.tsv", b"id\ttext\n1\tfine\n", ["fine"], []),
    ],
)
def test_what_loses_nothing_is_taken_by_every_policy(
    file: str, content: bytes, texts: list[str], kinds: list[str], tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content)
    found, care = read(tmp_path / file)
    assert found == texts
    assert [*care.counts] == kinds


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_is_missing_is_named_with_those_there_are(name: str, tmp_path: Path) -> None:
    if name == "a.csv":
        (tmp_path / name).write_text("id,body\n1,x\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), tmp_path / name)
    with pytest.raises(DataError, match=r"no column 'text': its columns are id, body. Name it with --text-field"):
        read(tmp_path / name, "skip")
    assert read(tmp_path / name, field="body")[0] == ["x"]


@pytest.mark.slow
def test_a_file_that_unpacks_to_more_than_text_can_is_never_unpacked_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 2**26) * 40)
    with pytest.raises(DataError, match=r"unpacks to over .*: that is no text"):
        read(tmp_path / "a.jsonl.gz", "skip")


def test_a_field_behind_a_damaged_checksum_is_still_read(tmp_path: Path) -> None:
    content = gzip.compress(FINE)
    broken = content[:-8] + struct.pack("<I", zlib.crc32(FINE) ^ 1) + content[-4:]
    (tmp_path / "a.jsonl.gz").write_bytes(broken)
    assert [*read(tmp_path / "a.jsonl.gz", "skip")[1].counts] == ["damaged .gz: left out"]


def test_a_folder_is_read_in_the_order_of_its_paths_once_each_through_links(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.md", "c.bin", ".hidden/x.txt", "b/.x.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(name)
    (tmp_path / "texts" / "b" / "loop").symlink_to(tmp_path / "texts")
    care = Care()
    found = find_sources([f"{tmp_path}/texts/"], care)
    assert [source.name.removeprefix(f"{tmp_path}/") for source in found] == [
        "texts/a.txt", "texts/b/1.md", "texts/b/2.txt"
    ]  # fmt: skip
    assert care.counts["link to a folder that is read already: not followed"] == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "missing", "does not exist"),
        (lambda folder: folder, "has no file that is read here"),
        (lambda folder: _touched(folder / "a.pdf"), "ends in .pdf. Read are: .txt"),
        (lambda folder: _touched(folder / "dataset_dict.json").parent, "a dataset of several splits"),
    ],
)
def test_an_input_that_cannot_be_read_is_named(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        find_sources([str(make(tmp_path))], Care())


def _touched(file: Path) -> Path:
    file.write_text("{}")
    return file


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert read(tmp_path / "b.txt")[0] == ["fine"]


@pytest.mark.parametrize("offset", [2**24 + 5, 2**24 - 1, 3])
def test_a_long_text_that_is_no_utf8_is_refused_with_its_place(offset: int, tmp_path: Path) -> None:
    content = bytearray("é ".encode() * (2**23 // 3 * 2 + 9))
    content[offset : offset + 1] = b"\xff"
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(UnicodeDecodeError) as wrong:
        bytes(content).decode()
    with pytest.raises(DataError, match=f"at offset {wrong.value.start:,}: not UTF-8"):
        read(tmp_path / "book.txt")


@pytest.mark.slow
@given(st.binary(max_size=60))
@settings(max_examples=10_000)
def test_any_bytes_are_text_or_counted(raw: bytes) -> None:
    care = Care("skip")
    text = care.decoded(raw, "here")
    try:
        plain = raw.decode()
    except UnicodeDecodeError:
        plain = None
    if text is None:
        assert plain is None or "\0" in plain or plain in {"", "\ufeff"}
        assert sum(care.counts.values()) >= 1
    else:
        assert text == (plain or "").removeprefix("\ufeff")
        assert sum(care.counts.values()) == int((plain or "").startswith("\ufeff"))
    mended = Care("repair").decoded(raw, "here")
    assert mended is None or (mended.encode() and "\0" not in mended)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=20), st.integers(), st.none()))))
def test_an_array_is_read_a_block_at_a_time_as_json_reads_it_whole(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    file = tmp_path_factory.mktemp("array") / "a.json"
    file.write_bytes(json.dumps(records, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))
    source = Source(file, "a.json", 1, ".json", "")
    care = Care("skip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK", 7)
        assert [*readers._elements(source, care)] == records or care.counts
