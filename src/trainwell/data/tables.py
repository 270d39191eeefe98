"""Documents of tables: CSV, Parquet, Arrow and what `datasets` writes, a few hundred rows at a time.

Knows no tokens.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from trainwell.data.inputs import Source
from trainwell.data.packed import arrow, opened
from trainwell.data.reading import Document, Reading
from trainwell.errors import DataError

_ROWS = 256


def read_table(source: Source, reading: Reading) -> Iterator[Document]:
    """Rows under a header; bytes that are no UTF-8 are carried through, and judged in the field they are in."""
    care = reading.care
    limit = csv.field_size_limit(care.longest)
    try:
        with opened(source) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            yield from _rows(csv.reader(text, delimiter="\t" if source.format == ".tsv" else ","), source, reading)
    finally:
        csv.field_size_limit(limit)


def _rows(rows: Any, source: Source, reading: Reading) -> Iterator[Document]:
    care, column = reading.care, -1
    while True:
        where = f"{source.name}, line {rows.line_num + 1:,}"
        place = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            care.bad("broken CSV", f"{where} ({error})")
            continue
        if row is None:
            return
        if column < 0:
            column = _column(row, source, reading)
        elif len(row) <= column:
            if row:
                care.bad(f"no text in the field {reading.text_field!r}", where)
        else:
            text = care.decoded(row[column].encode("utf-8", "surrogateescape"), where)
            if text is not None:
                yield Document(place, text)


def read_parquet(source: Source, reading: Reading) -> Iterator[Document]:
    """Rows of Parquet."""
    import pyarrow.parquet as parquet

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(source.path) as file:
            _column(file.schema_arrow.names, source, reading)
            yield from file.iter_batches(batch_size=_ROWS, columns=[reading.text_field])

    yield from _columns(batches(), source, reading)


def read_arrow(source: Source, reading: Reading) -> Iterator[Document]:
    """Arrow's file or its stream, which `datasets` writes."""
    import pyarrow.ipc as ipc

    def batches() -> Iterator[Any]:
        with arrow().memory_map(str(source.path)) as mapped:
            try:
                file = ipc.open_file(mapped)
                found: Any = (file.get_batch(number) for number in range(file.num_record_batches))
            except arrow().ArrowInvalid:
                mapped.seek(0)
                file = found = ipc.open_stream(mapped)
            _column(file.schema.names, source, reading)
            for batch in found:
                yield batch.select([reading.text_field])

    yield from _columns(batches(), source, reading)


def _column(names: Sequence[str], source: Source, reading: Reading) -> int:
    """Where the texts are; DataError where there is no such column."""
    known = [name.strip() for name in names]
    if reading.text_field not in known:
        raise DataError(
            f"{source.name} has no column {reading.text_field!r}: its columns are {', '.join(known)[:200]}. Name it "
            "with --text-field."
        )
    return known.index(reading.text_field)


def _columns(batches: Iterator[Any], source: Source, reading: Reading) -> Iterator[Document]:
    """The texts of a column."""
    try:
        for number, value in enumerate(_values(batches)):
            text = _cell(value, f"{source.name}, row {number:,}", reading)
            if text is not None:
                yield Document(number, text)
    except arrow().ArrowInvalid as error:
        reading.care.bad("damaged file", f"{source.name} ({str(error)[:120]})")


def _values(batches: Iterator[Any]) -> Iterator[object]:
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield from batch.column(0).slice(start, _ROWS).to_pylist()


def _cell(value: object, where: str, reading: Reading) -> str | None:
    if isinstance(value, bytes):
        return reading.care.decoded(value, where)
    return reading.care.text_in(value, reading.text_field, where)
