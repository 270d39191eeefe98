"""Token stores made from raw text: the ids are those of the documents, whoever makes them, however often killed."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.raw import DOCUMENTS, FORMATS, write_csv, write_jsonl

from trainwell.data import readers
from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.manifest import read_index, read_json
from trainwell.data.reading import Document
from trainwell.data.stores import open_files
from trainwell.data.storing import Options, Preparation, Progress
from trainwell.data.stream import TokenStream
from trainwell.data.tokenizer import BytesTokenizer, load_tokenizer
from trainwell.data.units import pieces_of, units_of
from trainwell.errors import ConfigError, DataError

SMALL = Options(tokenizer="bytes", val_fraction=0.3, shard_tokens=400)


def made(inputs: Sequence[Path], out: Path, options: Options = SMALL, **how: int) -> dict[str, bytes]:
    """The files of a store, by their names."""
    assert Preparation([str(each) for each in inputs], out, options).run(**how)  # type: ignore[arg-type]
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def texts_in(folder: Path, part: str) -> list[str]:
    """The documents of a part, decoded."""
    files = getattr(open_files(folder, None), part)
    ids = TokenStream([file.ids for file in files])[:]
    documents = np.split(ids, np.flatnonzero(ids == 256) + 1)
    return [bytes(each[:-1].tolist()).decode() for each in documents[:-1]]


def held_out(text: str, share: float = 0.3) -> bool:
    return is_held_out(key_of(text), share)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_documents_in_order_each_on_the_side_of_its_hash(name: str, tmp_path: Path) -> None:
    made([FORMATS[name](tmp_path)], tmp_path / "store")
    assert texts_in(tmp_path / "store", "train") == [text for text in DOCUMENTS if not held_out(text)]
    assert texts_in(tmp_path / "store", "val") == [text for text in DOCUMENTS if held_out(text)]


def test_the_manifest_counts_what_is_there(tmp_path: Path) -> None:
    made([write_jsonl(tmp_path)], tmp_path / "store")
    said = read_json(tmp_path / "store" / "manifest.json")
    assert said["train"]["documents"] + said["val"]["documents"] == len(DOCUMENTS)
    assert said["train"]["bytes"] + said["val"]["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert said["train"]["tokens"] == said["train"]["bytes"] + said["train"]["documents"]
    assert sum(shard["tokens"] for shard in said["shards"] if shard["part"] == "train") == said["train"]["tokens"]
    assert said["problems"] == {}
    assert said["sources"][0]["documents"] == len(DOCUMENTS)
    assert len(said["shards"]) > 4


def test_each_document_is_known_by_its_place_in_its_file(tmp_path: Path) -> None:
    inputs = [write_jsonl(tmp_path), write_csv(tmp_path)]
    made(inputs, tmp_path / "store")
    index = read_index(tmp_path / "store", read_json(tmp_path / "store" / "manifest.json"), "train")
    train = [number for number, text in enumerate(DOCUMENTS) if not held_out(text)]
    assert len(index.ends) == 2 * len(train)
    assert index.source(3) == f"{inputs[0]}:{train[3] + 1}"
    assert index.source(len(train)).startswith(f"{inputs[1]}:")
    lengths = [len(DOCUMENTS[number].encode()) + 1 for number in train]
    assert np.diff(index.ends, prepend=0).tolist() == 2 * lengths


def test_every_shard_ends_with_a_document(tmp_path: Path) -> None:
    made([write_jsonl(tmp_path)], tmp_path / "store")
    for file in open_files(tmp_path / "store", None).train:
        assert file.ids[-1] == 256


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_any_number_of_processes_in_any_order_make_the_same_store(shares: int, tmp_path: Path) -> None:
    folder = FORMATS["folder"](tmp_path)
    whole = made([folder], tmp_path / "whole")
    own = [(share, shares) for share in reversed(range(shares))]
    ended = [Preparation([str(folder)], tmp_path / "shared", SMALL, share).run() for share in own]
    assert ended == [False] * (shares - 1) + [True]
    assert contents(tmp_path / "shared") == whole


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_byte(threads: int, tmp_path: Path) -> None:
    inputs = [write_jsonl(tmp_path)]
    assert made(inputs, tmp_path / "a", threads=threads) == made(inputs, tmp_path / "b", threads=1)


class Killed(BaseException):
    """Stands for the end of a process."""


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_killed_anywhere_and_started_again_the_bytes_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    tmp_path, chance = tmp_path_factory.mktemp("killed"), random.Random(seed)
    inputs = [write_jsonl(tmp_path, 12), FORMATS["folder"](tmp_path)]
    whole = made(inputs, tmp_path / "whole")

    def perhaps_die(_now: Progress) -> None:
        if chance.random() < 0.2:
            raise Killed

    for _ in range(500):
        try:
            done = Preparation([str(each) for each in inputs], tmp_path / "store", SMALL).run(perhaps_die, threads=1)
        except Killed:
            continue
        assert done
        break
    assert contents(tmp_path / "store") == whole


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), min_size=1, max_size=12),
    st.integers(1, 60),
)
@settings(max_examples=30)
def test_a_long_text_in_parts_is_the_text(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], block: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("long")
    text = " ".join(words).replace("\0", "").removeprefix("\ufeff") or "x"
    (tmp_path / "book.txt").write_bytes(text.encode())
    options = Options(tokenizer="gpt2", val_fraction=0.0)
    whole = made([tmp_path / "book.txt"], tmp_path / "whole", options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_LONG", 3)
        patch.setattr(readers, "_BLOCK", block)
        patch.setattr("trainwell.data.units.PIECE", 8)
        parts = made([tmp_path / "book.txt"], tmp_path / "parts", options)
    assert parts == whole
    ids = TokenStream([file.ids for file in open_files(tmp_path / "whole", None).train])[:]
    assert ids.tolist() == [*load_tokenizer("gpt2").encode(text).tolist(), 50256]


@given(st.lists(st.one_of(st.text(), st.binary(max_size=30)), max_size=30))
@settings(max_examples=150)
def test_what_goes_in_comes_out_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str | bytes]
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    lines = [
        json.dumps({"text": each}, ensure_ascii=len(each) % 2 == 0).encode(errors="surrogatepass")
        if isinstance(each, str)
        else each.replace(b"\n", b"")
        for each in [*documents, "one that is fine"]
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    options = Options(tokenizer="bytes", val_fraction=0.0, on_error="skip")
    made([tmp_path / "a.jsonl"], tmp_path / "store", options)
    said = read_json(tmp_path / "store" / "manifest.json")
    blank = sum(not line.strip() for line in [lines[0].removeprefix(b"\xef\xbb\xbf"), *lines[1:]])
    left_out = sum(count for kind, (count, _) in said["problems"].items() if kind.endswith("left out"))
    assert said["train"]["documents"] + left_out + blank == len(lines)
    kept = [each for each in documents if isinstance(each, str) and _is_plain(each)]
    found = texts_in(tmp_path / "store", "train")
    assert [each for each in found if each in {*kept}] == kept
    assert found[-1] == "one that is fine"


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text and not text.startswith("\ufeff")


def test_a_long_text_without_spaces_is_searched_once() -> None:
    asked = list[int]()

    def nowhere(text: str, at: int) -> int:
        asked.append(len(text) - at)
        return len(text)

    parts = [Document(0, "x" * 300_000, b"12345678", goes_on=True) for _ in range(20)]
    (piece,) = pieces_of([(0, part) for part in [*parts, Document(0, "", b"12345678")]], nowhere)
    assert len(piece.text) == 6_000_000
    assert sum(asked[:20]) <= 6_000_000


def test_units_depend_on_the_files_alone() -> None:
    from trainwell.data.inputs import Source

    sizes = [10, 10, 4000, 10, 300, 300, 2000]
    sources = [Source(Path(str(at)), str(at), size, ".txt", "") for at, size in enumerate(sizes)]
    assert units_of(sources, 100) == [[0, 1], [2], [3, 4], [5], [6]]


def _grown(folder: Path) -> Options:
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    return SMALL


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: Options(tokenizer="bytes", val_fraction=0.2, shard_tokens=400), "val_fraction is 0.2, and was 0.3"),
        (_grown, "the inputs are not the same, or have changed"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_another_preparation_does_not_go_on_with_a_store(
    change: Callable[[Path], Options], said: str, whole: bool, tmp_path: Path
) -> None:
    inputs = [str(write_jsonl(tmp_path))]
    if whole:
        Preparation(inputs, tmp_path / "store", SMALL).run()
    else:
        with pytest.raises(Killed):
            Preparation(inputs, tmp_path / "store", SMALL).run(_die)
    with pytest.raises(ConfigError, match=said):
        Preparation(inputs, tmp_path / "store", change(tmp_path))


def _die(_now: Progress) -> None:
    raise Killed


def test_a_folder_with_other_files_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="there are other files in it"):
        Preparation([str(write_jsonl(tmp_path))], tmp_path / "store", SMALL)


def test_a_folder_that_another_process_is_beginning_with_is_taken(tmp_path: Path) -> None:
    (tmp_path / "store" / "units").mkdir(parents=True)
    assert Preparation([str(write_jsonl(tmp_path))], tmp_path / "store", SMALL).run()


def test_without_any_text_there_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="there is no text to train on in 1 files"):
        Preparation([str(tmp_path / "a.txt")], tmp_path / "store", SMALL).run()


@pytest.mark.parametrize("tokenizer", ["chars", "no-such.json"])
def test_a_tokenizer_that_cannot_be_is_refused_first(tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="tokenizer"):
        Preparation([str(write_jsonl(tmp_path))], tmp_path / "store", Options(tokenizer=tokenizer))
    assert not (tmp_path / "store").exists()


def test_ids_of_gpt2_are_those_of_each_document_alone(tmp_path: Path) -> None:
    made([write_jsonl(tmp_path)], tmp_path / "store", Options(val_fraction=0.0))
    gpt2 = load_tokenizer("gpt2")
    expected = [index for text in DOCUMENTS for index in (*gpt2.encode(text).tolist(), 50256)]
    assert TokenStream([file.ids for file in open_files(tmp_path / "store", None).train])[:].tolist() == expected
    assert BytesTokenizer().vocab_size == 257
