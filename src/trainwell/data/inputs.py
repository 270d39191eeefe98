"""Files and folders as people name them, as one list of files in an order that is the same everywhere."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainwell.data.care import Care
from trainwell.errors import DataError

FORMATS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_PACKED = (".gz", ".zst")
_ALLOWED = f"{', '.join(FORMATS)}, those of text also packed as {' or '.join(_PACKED)}"


@dataclass(frozen=True)
class Source:
    """A file that documents are read from."""

    path: Path
    name: str
    """As a manifest says it: the input it was found under, and its path in there."""
    size: int
    format: str
    packed: str
    """`.gz`, `.zst` or nothing."""


def find_sources(inputs: Sequence[str], care: Care) -> list[Source]:
    """The files of `inputs` in their order, those of a folder sorted by their paths in it, hidden ones left out.

    A folder that a link leads into again is counted and not read twice. Raises DataError for what is not there or is
    of no known format.
    """
    found: list[Source] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = sorted(_walk(path, care), key=lambda file: file.relative_to(path).as_posix())
            sources = [_source(file, f"{given.rstrip('/')}/{file.relative_to(path).as_posix()}") for file in inside]
            if not sources:
                raise DataError(f"{given} has no file that is read here. Read are: {_ALLOWED}.")
            found += sources
        elif path.is_file():
            if _format(path)[0] not in FORMATS:
                raise DataError(f"{given} ends in {path.suffix or 'nothing known'}. Read are: {_ALLOWED}.")
            found.append(_source(path, given))
        else:
            raise DataError(f"{given} does not exist (looked in {Path.cwd()}). Name files or folders to read.")
    return found


def _source(path: Path, name: str) -> Source:
    form, packed = _format(path)
    return Source(path, name, path.stat().st_size, form, packed)


def _format(path: Path) -> tuple[str, str]:
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        return Path(path.stem).suffix.lower(), suffix
    return suffix, ""


def _walk(root: Path, care: Care) -> Iterator[Path]:
    """Every file of a known format below a folder, through links, each real folder once."""
    if (root / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(each.name for each in root.iterdir() if each.is_dir()))
        raise DataError(f"{root} is a dataset of several splits ({splits}). Name one of its folders.")
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))  # noqa: PTH118
            if name.startswith("."):
                continue
            if real in seen:
                care.met("link to a folder that is read already: not followed", f"{folder}/{name}")
                continue
            seen.add(real)
            kept.append(name)
        folders[:] = kept
        for name in files:
            file = Path(folder) / name
            form, _ = _format(file)
            if form in FORMATS and not name.startswith(".") and name not in _ABOUT and file.is_file():
                yield file


_ABOUT = {"dataset_info.json", "state.json", "dataset_dict.json"}
"""What `datasets` writes beside its files; no documents."""
