"""The same documents in every format that is read, each written by the library or rule that people write it with."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

DOCUMENTS = [
    f"Document {number}: " + 'the tide turns, é🙂\n"and" every boat knows. ' * (1 + number % 5) for number in range(40)
]


def write_jsonl(folder: Path, count: int = 40) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS[:count]))
    return folder / "a.jsonl"


def write_csv(folder: Path) -> Path:
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([number, text] for number, text in enumerate(DOCUMENTS))
    return folder / "a.csv"


def _packed(folder: Path, suffix: str) -> Path:
    content = write_jsonl(folder).read_bytes()
    file = folder / f"b.jsonl{suffix}"
    if suffix == ".gz":
        file.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    else:
        with pyarrow.CompressedOutputStream(str(file), "zstd") as out:
            out.write(content)
    return file


def _array(folder: Path) -> Path:
    (folder / "a.json").write_text(json.dumps([{"text": text} for text in DOCUMENTS], indent=1, ensure_ascii=False))
    return folder / "a.json"


def _table() -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS})


def _parquet(folder: Path) -> Path:
    pyarrow.parquet.write_table(_table(), folder / "a.parquet", row_group_size=7)
    return folder / "a.parquet"


def _arrow(folder: Path, stream: bool) -> Path:
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(str(folder / "a.arrow"), _table().schema) as writer:
        writer.write_table(_table(), max_chunksize=9)
    return folder / "a.arrow"


def _folder(folder: Path) -> Path:
    for number, text in enumerate(DOCUMENTS):
        file = folder / "texts" / f"{number // 10}" / f"{number:03}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    (folder / "texts" / ".hidden.txt").write_text("not this")
    return folder / "texts"


def _datasets(folder: Path) -> Path:
    """What `datasets` saves: files in Arrow's stream format, and two about them."""
    (folder / "saved").mkdir()
    half = len(DOCUMENTS) // 2
    for number, part in enumerate((_table().slice(0, half), _table().slice(half))):
        file = folder / "saved" / f"data-{number:05}-of-00002.arrow"
        with pyarrow.ipc.new_stream(str(file), part.schema) as writer:
            writer.write_table(part)
    for name in ("dataset_info.json", "state.json"):
        (folder / "saved" / name).write_text("{}")
    return folder / "saved"


FORMATS: dict[str, Callable[[Path], Path]] = {
    "jsonl": write_jsonl,
    "jsonl.gz, of two members": lambda folder: _packed(folder, ".gz"),
    "jsonl.zst": lambda folder: _packed(folder, ".zst"),
    "json array": _array,
    "csv": write_csv,
    "parquet": _parquet,
    "arrow file": lambda folder: _arrow(folder, stream=False),
    "arrow stream": lambda folder: _arrow(folder, stream=True),
    "folder": _folder,
    "datasets": _datasets,
}
