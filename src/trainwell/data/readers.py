"""Documents of raw files one after the other, whatever the format, in bounded memory.

Each reader gives the documents of one file with the place of each in it, and tells `Care` what was wrong. Knows no
tokens.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import BinaryIO

from trainwell.data.care import Care
from trainwell.data.inputs import Source
from trainwell.data.packed import opened
from trainwell.data.reading import Document, Reading
from trainwell.data.tables import read_arrow, read_parquet, read_table
from trainwell.errors import DataError

_BLOCK = 2**20
_LONG = 2**24
"""Bytes from which a file that is one document is given in parts."""
_BOM = b"\xef\xbb\xbf"


def read_documents(source: Source, reading: Reading) -> Iterator[Document]:
    """The documents of a file. Raises DataError for what `Care` refuses, and for what no choice mends."""
    reader = _READERS[source.format]
    try:
        yield from reader(source, reading)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reading.care.bad(f"damaged {source.packed}", f"{source.name} ({error})")
    except OSError as error:
        if not source.packed:
            raise DataError(f"{source.name} cannot be read: {error.strerror or error}.") from error
        reading.care.bad(f"damaged {source.packed}", f"{source.name} ({error})")


def _whole(source: Source, reading: Reading) -> Iterator[Document]:
    """A file that is one document, a long one in parts."""
    with opened(source) as file:
        raw = file.read(_LONG + 1)
    if len(raw) > _LONG:
        yield from _parts(source, reading)
        return
    text = reading.care.decoded(raw, source.name)
    if text is not None:
        yield Document(0, text)


def _parts(source: Source, reading: Reading) -> Iterator[Document]:
    """A long text, read twice: first for what is wrong in it and for its hash, then for what it says."""
    digest, mended = blake2b(digest_size=8), False
    try:
        for text in _blocks(source, "strict"):
            mended = mended or "\0" in text
            digest.update(text.encode())
    except UnicodeDecodeError as error:
        where = f"{source.name}, byte 0x{error.object[error.start]:02x} at offset {_offset(source, error):,}"
        reading.care.bad("not UTF-8", where, mended="replaced by U+FFFD")
        mended = True
    else:
        if mended:
            reading.care.bad("NUL characters", source.name, mended="dropped")
    if mended and reading.care.on_error == "skip":
        return
    for text in _blocks(source, "replace"):
        yield Document(0, text.replace("\0", ""), digest.digest(), goes_on=True)
    yield Document(0, "", digest.digest())


def _offset(source: Source, wrong: UnicodeDecodeError) -> int:
    """Where in a file the bytes are that a decoder stumbled over; it knows of its own block alone."""
    read, decoder = 0, codecs.getincrementaldecoder("utf-8")("strict")
    with opened(source) as file:
        try:
            while block := file.read(_BLOCK):
                read += len(block)
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            return read - len(error.object) + error.start
    return wrong.start


def _blocks(source: Source, errors: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    with opened(source) as file:
        while block := file.read(_BLOCK):
            yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _lines(source: Source, reading: Reading) -> Iterator[Document]:
    """An object on each line."""
    care = reading.care
    with opened(source) as file:
        for number, line in enumerate(_lines_of(file, care.longest), start=1):
            where = f"{source.name}, line {number:,}"
            if line is None:
                care.bad(care.too_long, where)
                continue
            if number == 1 and line.startswith(_BOM):
                care.met("byte order mark: dropped", where)
                line = line[len(_BOM) :]
            if not line.strip():
                continue
            text = _field(line, where, reading)
            if text is not None:
                yield Document(number, text)


def _lines_of(file: BinaryIO, longest: int) -> Iterator[bytes | None]:
    """Lines; None for one that is longer than a document may be, which is passed over without being held."""
    while line := file.readline(longest + 2):
        if len(line) <= longest or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
            pass
        yield None


def _field(line: bytes, where: str, reading: Reading) -> str | None:
    """The text in a record of JSON; None where it is left out."""
    try:
        content = line.decode()
    except UnicodeDecodeError:
        decoded = reading.care.decoded(line, where)
        if decoded is None:
            return None
        content = decoded
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        reading.care.bad("broken JSON", where)
        return None
    return _text_of(record, where, reading)


def _text_of(record: object, where: str, reading: Reading) -> str | None:
    if not isinstance(record, dict):
        reading.care.bad("no object", where)
        return None
    has = "" if reading.text_field in record else f" (it has {', '.join(map(str, record))[:120]})"
    return reading.care.text_in(record.get(reading.text_field), reading.text_field, where + has)


def _json(source: Source, reading: Reading) -> Iterator[Document]:
    """One array of objects, or an object on each line, by how the file begins."""
    with opened(source) as file:
        beginning = file.read(_BLOCK).removeprefix(_BOM).lstrip()
    if not beginning.startswith(b"["):
        yield from _lines(source, reading)
        return
    for number, record in enumerate(_elements(source, reading.care)):
        where = f"{source.name}, record {number:,}"
        text = _text_of(record, where, reading)
        if text is not None:
            yield Document(number, text)


def _elements(source: Source, care: Care) -> Iterator[object]:
    """The elements of an array, read a block at a time; what is broken ends it, since nobody knows where it goes on."""
    decoder, parse = codecs.getincrementaldecoder("utf-8-sig")("strict"), json.JSONDecoder().raw_decode
    held, at = "", -1
    with opened(source) as file:
        while True:
            block = file.read(_BLOCK)
            try:
                held += decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                care.bad("not UTF-8 in an array", source.name)
                return
            if at < 0:
                held, at = held.lstrip()[1:], 0  # behind the bracket
            for record, end in _whole_elements(held, parse):
                yield record
                at = end
            held, at = held[at:], 0
            if held.lstrip(" \t\r\n,").startswith("]"):
                return
            if not block or len(held) > care.longest:
                care.bad("broken JSON" if not block else care.too_long, f"{source.name}, behind the last whole record")
                return


def _whole_elements(held: str, parse: Callable[[str, int], tuple[object, int]]) -> Iterator[tuple[object, int]]:
    """Elements that end inside of `held`, each with the place behind it."""
    at = 0
    while True:
        begin = len(held) - len(held[at:].lstrip(" \t\r\n,"))
        if begin >= len(held) or held[begin] == "]":
            return
        try:
            record, at = parse(held, begin)
        except (ValueError, RecursionError):
            return
        if at == len(held):
            return  # a number may go on in the next block
        yield record, at


_READERS: dict[str, Callable[[Source, Reading], Iterator[Document]]] = {
    ".txt": _whole,
    ".md": _whole,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
