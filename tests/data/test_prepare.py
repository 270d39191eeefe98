"""Prepared data: split before tokenising, stored once by content, and refused when it cannot be trained on."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.tree import DataConfig
from trainwell.data.corpora import read_corpus
from trainwell.data.prepare import DataSettings, prepare
from trainwell.data.shards import Tokens, write_shard
from trainwell.errors import DataError, StorageError


@dataclass(frozen=True)
class Settings:
    """The least that `prepare` asks for."""

    path: str | None
    tokenizer: str = "bytes"
    seq_len: int = 4
    val_fraction: float = 0.1
    split: Literal["auto", "tail", "documents"] = "auto"
    corpus: str | None = None


def one_text(folder: Path, text: str) -> Settings:
    (folder / "text.txt").write_bytes(text.encode())
    return Settings(str(folder / "text.txt"))


def several_texts(folder: Path, number: int = 40) -> Settings:
    (folder / "texts").mkdir()
    for index in range(number):
        (folder / "texts" / f"{index:03}.txt").write_text(f"This is text number {index}.")
    return Settings(str(folder / "texts"), val_fraction=0.3)


def documents(tokens: Tokens) -> list[str]:
    """Take the texts apart at the end-of-text id of the bytes tokenizer, which must be the last token."""
    assert tokens[-1] == 256
    return [
        bytes(part[part < 256].tolist()).decode() for part in np.split(tokens, np.flatnonzero(tokens == 256) + 1)[:-1]
    ]


def test_the_settings_of_a_run_are_enough(tmp_path: Path) -> None:
    settings: DataSettings = DataConfig()
    store = prepare(settings, cache=tmp_path)
    text = read_corpus(corpus="python-docs").texts[0]
    cut = int((1 - settings.val_fraction) * len(text))
    assert store.tokenizer.decode(store.train[:].tolist()) == text[:cut]
    assert store.tokenizer.decode(store.val[:].tolist()) == text[cut:]
    assert store.info.version is not None
    assert store.info.num_texts == 1


@given(text=st.text("aé🙂", min_size=100, max_size=200), val_fraction=st.floats(0.1, 0.9))
def test_one_text_is_cut_at_a_character_and_nothing_is_added(
    tmp_path_factory: pytest.TempPathFactory, text: str, val_fraction: float
) -> None:
    folder = tmp_path_factory.mktemp("one")
    store = prepare(replace(one_text(folder, text), val_fraction=val_fraction), cache=folder)
    cut = int((1 - val_fraction) * len(text))
    assert bytes(store.train[:].tolist()).decode() == text[:cut]
    assert bytes(store.val[:].tolist()).decode() == text[cut:]
    assert store.info.train_bytes == store.info.train_tokens == len(text[:cut].encode())
    assert store.info.val_bytes == store.info.val_tokens == len(text[cut:].encode())


def test_of_several_texts_each_is_whole_on_one_side_and_ended(tmp_path: Path) -> None:
    store = prepare(several_texts(tmp_path), cache=tmp_path)
    train, val = documents(store.train[:]), documents(store.val[:])
    assert sorted([*train, *val]) == sorted(f"This is text number {index}." for index in range(40))
    assert len(val) > 4
    assert store.info.val_bytes == sum(map(len, val))
    assert store.info.val_tokens == store.info.val_bytes + len(val)
    assert store.info.num_texts == 40


def test_adding_texts_moves_no_other(tmp_path: Path) -> None:
    settings = several_texts(tmp_path, 40)
    before = documents(prepare(settings, cache=tmp_path).val[:])
    (tmp_path / "texts" / "000a.txt").write_text("One more.")
    after = documents(prepare(settings, cache=tmp_path).val[:])
    assert [text for text in after if text != "One more."] == before


def test_copies_of_a_text_stay_on_one_side(tmp_path: Path) -> None:
    settings = several_texts(tmp_path)
    for file in list((tmp_path / "texts").iterdir()):
        file.with_name(f"copy-{file.name}").write_bytes(file.read_bytes())
    store = prepare(settings, cache=tmp_path)
    assert not set(documents(store.train[:])) & set(documents(store.val[:]))


def test_the_tail_of_several_texts_can_be_held_out(tmp_path: Path) -> None:
    store = prepare(replace(several_texts(tmp_path, 10), split="tail"), cache=tmp_path)
    together = "".join(f"This is text number {index}." for index in range(10))
    cut = int(0.7 * len(together))
    assert "".join(documents(store.train[:])) == together[:cut]
    assert "".join(documents(store.val[:])) == together[cut:]


def test_a_second_call_opens_what_the_first_one_wrote(tmp_path: Path) -> None:
    settings = several_texts(tmp_path)
    first = prepare(settings, cache=tmp_path)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.bin")}
    second = prepare(replace(settings, seq_len=7), cache=tmp_path)
    assert second.info == first.info
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.bin")} == written
    assert len(written) == 2
    assert isinstance(second.train.parts[0], np.memmap)


def test_the_fingerprint_covers_text_tokenizer_and_split(tmp_path: Path) -> None:
    settings = one_text(tmp_path, "some text, long enough " * 5)
    folder = several_texts(tmp_path)
    variants = [
        settings,
        replace(settings, tokenizer="chars"),
        replace(settings, val_fraction=0.2),
        folder,
        replace(folder, split="tail"),
    ]
    assert len({prepare(variant, cache=tmp_path).info.fingerprint for variant in variants}) == len(variants)


def test_the_fingerprint_does_not_depend_on_where_the_text_lies(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    here = prepare(one_text(tmp_path, "the same text " * 9), cache=tmp_path)
    there = prepare(one_text(tmp_path / "moved", "the same text " * 9), cache=tmp_path)
    assert there.info.fingerprint == here.info.fingerprint
    assert there.info.corpus != here.info.corpus


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "gpt2"])
def test_a_long_text_gives_the_store_that_one_piece_would(tmp_path: Path, tokenizer: str) -> None:
    text = read_corpus(corpus="python-docs").texts[0] * 2
    store = prepare(replace(one_text(tmp_path, text), tokenizer=tokenizer), cache=tmp_path)
    cut = int(0.9 * len(text))
    for part, expected in (("train", text[:cut]), ("val", text[cut:])):
        write_shard(tmp_path / f"{part}.bin", [store.tokenizer.encode(expected)], store.info.vocab_size)
        written = next((tmp_path / "stores").rglob(f"{part}.bin"))
        assert written.read_bytes() == (tmp_path / f"{part}.bin").read_bytes()


def test_progress_is_told_in_characters_where_there_is_something_to_do(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        told.append((done, total))

    settings = one_text(tmp_path, "\u00e9 text " * 100_000)
    prepare(settings, cache=tmp_path, on_progress=note)
    assert told == sorted(told)
    assert told[-1] == (700_000, 700_000)
    assert len(told) > 2
    told.clear()
    prepare(settings, cache=tmp_path, on_progress=note)
    assert not told


def test_an_interrupt_leaves_nothing_that_looks_like_a_store(tmp_path: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    settings = one_text(tmp_path, "some text " * 100_000)
    with pytest.raises(KeyboardInterrupt):
        prepare(settings, cache=tmp_path, on_progress=interrupt)
    assert not list((tmp_path / "stores").iterdir())
    assert prepare(settings, cache=tmp_path).info.train_tokens == 900_000


def test_the_way_it_was_tokenised_is_said_only_where_it_was_special(tmp_path: Path) -> None:
    assert prepare(one_text(tmp_path, "some text " * 20), cache=tmp_path).notes == ()


def test_a_text_shorter_than_a_window_says_what_is_needed(tmp_path: Path) -> None:
    settings = replace(one_text(tmp_path, "x" * 100), seq_len=10)
    with pytest.raises(DataError, match=r"the validation set has 10 tokens, fewer than one window: .* are 11"):
        prepare(settings, cache=tmp_path)
    with pytest.raises(DataError, match="the training set has 90 and the validation set has 10 tokens"):
        prepare(replace(settings, seq_len=90), cache=tmp_path)
    assert prepare(replace(settings, seq_len=9), cache=tmp_path).info.val_tokens == 10


def test_an_empty_validation_set_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the validation set of .* is empty: with data\.val_fraction 1e-12"):
        prepare(replace(several_texts(tmp_path), val_fraction=1e-12), cache=tmp_path)


def test_an_empty_training_set_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the training set of .* is empty"):
        prepare(replace(one_text(tmp_path, "abc"), val_fraction=0.9), cache=tmp_path)


def test_several_texts_need_an_end_of_text_token(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"This": 0, "?": 1}, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "words.json"))
    settings = replace(several_texts(tmp_path), tokenizer=str(tmp_path / "words.json"))
    with pytest.raises(DataError, match=r"words\.json has no end-of-text token"):
        prepare(settings, cache=tmp_path)


def test_a_damaged_store_is_a_message_not_a_silent_repair(tmp_path: Path) -> None:
    settings = one_text(tmp_path, "some text " * 20)
    prepare(settings, cache=tmp_path)
    shard = next(tmp_path.rglob("val.bin"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"val\.bin is damaged"):
        prepare(settings, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"cannot be written to .* Set TRAINWELL_CACHE_DIR"):
        prepare(one_text(tmp_path, "some text " * 20), cache=tmp_path / "cache")


def test_data_modules_import_nothing_heavy() -> None:
    heavy = {"torch", "tiktoken", "tokenizers", "pooch", "platformdirs", "pydantic"}
    code = f"import sys, trainwell.data.prepare; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
