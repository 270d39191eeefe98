"""`trainwell data show`: what token files of others hold, as a user sees it; and a run that reads them in place."""

import json
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Command, flags_of

from trainwell.data.storing import Options, Preparation
from trainwell.data.tokenizer import Gpt2Tokenizer

TEXTS = ["The quick brown fox.", "It jumps over the lazy dog, and so on, and on.", "A third one."] * 9


@pytest.fixture
def fineweb(tmp_path: Path) -> Path:
    """Two shards to train on and one to validate on, as llm.c writes them: an end before each document."""
    gpt2 = Gpt2Tokenizer()
    ids = [index for text in TEXTS for index in (50256, *gpt2.encode(text).tolist())]
    folder = tmp_path / "fineweb"
    folder.mkdir()
    for name, part in (("train_000001", ids[:101]), ("train_000002", ids[101:]), ("val_000000", ids)):
        header = struct.pack("<3i", 20240520, 1, len(part)).ljust(1024, b"\0")
        (folder / f"fineweb_{name}.bin").write_bytes(header + np.array(part, dtype="<u2").tobytes())
    return folder


def test_files_of_llm_c_are_recognised_and_described(command: Command, fineweb: Path) -> None:
    out = command("data", "show", str(fineweb)).out
    assert "llm.c and modded-nanogpt, 16 bits an id" in out
    assert "tokenizer: gpt2, since no id is above 50,256" in out
    assert "train: documents by their tokens" in out
    assert "The quick brown fox." in out


def test_a_program_reads_the_same(command: Command, fineweb: Path) -> None:
    said = json.loads(command("data", "show", str(fineweb), "--json").out)
    train, val = said["parts"]
    assert [file["layout"] for file in train["files"]] == ["llm.c", "llm.c"]
    assert train["tokens"] == val["tokens"]
    assert train["documents"] == val["documents"] == len(TEXTS)
    assert sum(count for _, _, count in train["lengths"]) == len(TEXTS)
    assert (train["largest"], said["tokenizer"], said["vocab_size"]) == (50256, "gpt2", 50257)
    assert said["beginning"][0].startswith("<|endoftext|>The quick brown fox.<|endoftext|>It jumps")


def test_ids_of_another_tokenizer_are_said_so(command: Command, fineweb: Path) -> None:
    assert (
        "not its ids: 50,256 is there, and 256 is its last"
        in command("data", "show", str(fineweb), "--tokenizer", "bytes").out
    )


def test_a_large_vocabulary_is_not_guessed(command: Command, tmp_path: Path) -> None:
    header = struct.pack("<3i", 20240801, 7, 3).ljust(1024, b"\0")
    (tmp_path / "train.bin").write_bytes(header + np.array([1, 128_000, 2], dtype="<u4").tobytes())
    out = command("data", "show", str(tmp_path / "train.bin")).out
    assert "llm.c for Llama 3, 32 bits an id" in out
    assert "unknown: the largest id is 128,000" in out
    assert "how it begins" not in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["missing"], 65, "is no file of token ids"),
        (["{fineweb}", "--tokenizer", "chars"], 2, "takes its alphabet from a text"),
        (["{fineweb}", "--tokenizer", "gtp2"], 2, "Did you mean gpt2"),
    ],
)
def test_bad_input_is_one_message(command: Command, fineweb: Path, words: list[str], code: int, said: str) -> None:
    found = command("data", "show", *(word.format(fineweb=fineweb) for word in words))
    assert found.code == code
    assert said in found.err
    assert "Traceback" not in found.err


def test_a_run_reads_them_in_place(command: Command, fineweb: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in fineweb.iterdir()}
    run = tmp_path / "run"
    said = command("train", "demo", *flags_of(fineweb, data__tokenizer="gpt2", duration="4"), "--run", str(run))
    assert said.code == 0, said.err
    assert f"{fineweb}, 234 tokens, tokenizer gpt2" in said.out.replace("\n", " ")
    shown = command("show", f"{run}@2")
    assert "The quick brown fox.<|endoftext|>It jumps" in shown.out
    assert {file: file.stat().st_mtime_ns for file in fineweb.iterdir()} == before


def test_other_ids_than_a_run_began_with_are_not_shown_as_its_own(
    command: Command, fineweb: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = flags_of(fineweb, data__tokenizer="gpt2", duration="4")
    assert command("train", "demo", *flags, "--run", str(run)).code == 0
    shard = fineweb / "fineweb_train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\7\0")
    assert "is not what the run read" in " ".join(command("show", f"{run}@2").out.split())


def raw(folder: Path, count: int = 400) -> Path:
    lines = [json.dumps({"text": f"Document {number}. {TEXTS[number % 3] * (number % 7)}"}) for number in range(count)]
    (folder / "raw.jsonl").write_text("\n".join(lines))
    return folder / "raw.jsonl"


def test_text_is_prepared_shown_and_trained_on(command: Command, tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    made = command("data", "prepare", str(raw(tmp_path)), "--out", str(store), "--tokenizer", "bytes", "--val", "0.1")
    assert (made.code, made.err) == (0, "")
    assert f"next: trainwell train --data.path {store} --data.tokenizer bytes" in made.out
    assert "tokenizer: bytes, as its manifest says" in command("data", "show", str(store)).out
    assert "is whole already" in command("data", "prepare", str(raw(tmp_path)), "--out", str(store), "--tokenizer",
                                         "bytes", "--val", "0.1").out  # fmt: skip
    flags = flags_of(store, duration="4")
    assert command("train", "demo", *flags, "--run", str(run)).code == 0
    assert "raw.jsonl:" in "".join(command("show", f"{run}@2").out.split())
    other = command("train", "demo", *flags, "--data.tokenizer", "gpt2", "--run", str(tmp_path / "other"))
    assert other.code == 2
    assert "was prepared with bytes, not gpt2; give --data.tokenizer bytes" in other.err


def test_shares_are_told_when_the_store_is_whole(command: Command, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text(TEXTS[1] * 9)
    words = ["data", "prepare", str(tmp_path / "texts"), "--out", str(tmp_path / "store"), "--shard-tokens", "50"]
    first = command(*words, "--val", "0", "--shard", "0/2")
    assert "share 0/2 of" in first.out
    unfinished = command("train", "demo", *flags_of(tmp_path / "store"), "--run", str(tmp_path / "run"))
    assert (unfinished.code, "is not finished" in unfinished.err) == (65, True)
    assert "next: trainwell train" in command(*words, "--val", "0", "--shard", "1/2").out


def test_several_processes_make_the_store_that_one_makes(command: Command, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} {TEXTS[1] * 9}")
    options = ["--tokenizer", "bytes", "--shard-tokens", "300", "--val", "0.3"]
    said = command("data", "prepare", str(tmp_path / "texts"), "--out", str(tmp_path / "a"), *options)
    assert (said.code, said.err) == (0, "")
    Preparation([str(tmp_path / "texts")], tmp_path / "b", Options("bytes", "text", 0.3, 300)).run()
    assert len({*(tmp_path / "a").glob("*.bin")}) > 5

    def contents(folder: Path) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in folder.rglob("*") if each.is_file()}

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_one_of_several_processes_refuses_is_the_message_of_all(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_bytes(b"caf\xe9 " * 40 if number == 7 else b"fine " * 40)
    said = refused(65, "data", "prepare", str(tmp_path / "texts"), "--out", str(tmp_path / "a"), "--shard-tokens", "50")
    assert said.startswith(f"{tmp_path}/texts/7.txt, byte 0xe9 at offset 3: not UTF-8. Mend it")


def test_a_shard_that_is_damaged_is_found_before_the_first_step(command: Command, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command("data", "prepare", str(raw(tmp_path)), "--out", str(store), "--tokenizer", "bytes")
    shard = store / "train-00000-000.bin"
    content = bytearray(shard.read_bytes())
    content[-40] ^= 1
    shard.write_bytes(content)
    said = command("train", "demo", *flags_of(store), "--run", str(tmp_path / "run"))
    assert said.code == 65
    assert "do not match its SHA-256" in said.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "name files or folders to read"),
        (["missing"], 65, "missing does not exist"),
        (["{raw}", "--shard", "3/3"], 2, "write I/N with I from 0 to N - 1"),
        (["{raw}", "--tokenizer", "chars"], 2, "takes its alphabet from all of the text"),
        (["{raw}", "--text-field", "body"], 65, "no text in the field 'body'"),
        (["{raw}", "--val", "1"], 2, "val"),
    ],
)
def test_what_cannot_be_prepared_is_one_message(
    refused: Callable[..., str], tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    file = raw(tmp_path)
    given = [word.format(raw=file) for word in words]
    assert said in refused(code, "data", "prepare", *given, "--out", str(tmp_path / "store"))


@pytest.mark.slow
def test_killed_twenty_times_by_the_kernel_the_store_has_the_same_bytes(tmp_path: Path) -> None:
    files, chance = [raw(tmp_path, 30_000), tmp_path / "more.jsonl"], random.Random(7)
    shutil.copy(*files)
    words = [
        sys.executable,
        "-m",
        "trainwell",
        "data",
        "prepare",
        *map(str, files),
        "--shard-tokens",
        "150000",
        "--out",
    ]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    subprocess.run([*words, str(tmp_path / "timed")], check=True, stdout=subprocess.DEVNULL)
    took, kills = time.monotonic() - began, 0
    while kills < 20:
        process = subprocess.Popen([*words, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=took * chance.uniform(0.2, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        shutil.rmtree(tmp_path / "killed")  # it was done: begin anew
    subprocess.run([*words, str(tmp_path / "killed")], check=True, stdout=subprocess.DEVNULL)

    def contents(folder: Path) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in folder.rglob("*") if each.is_file()}

    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_tokenizer_is_learned_and_a_store_made_with_it_trains(command: Command, tmp_path: Path) -> None:
    file, tokenizer, store = raw(tmp_path), tmp_path / "own.json", tmp_path / "store"
    said = command("data", "tokenizer", str(file), "--vocab-size", "300", "--out", str(tokenizer))
    assert (said.code, said.err) == (0, "")
    assert f"{tokenizer}: 300 tokens, from 0.0 MB of text" in said.out
    assert "bytes a token; gpt2, with 50,257 tokens" in said.out
    made = command("data", "prepare", str(file), "--tokenizer", str(tokenizer), "--out", str(store))
    assert f"--data.tokenizer {store}/tokenizer.json" in made.out
    flags = flags_of(store, duration="4", data__tokenizer=f"{store}/tokenizer.json")
    assert command("train", "demo", *flags, "--run", str(tmp_path / "run")).code == 0


def test_without_text_no_tokenizer_is_learned(refused: Callable[..., str]) -> None:
    assert "name files or folders to learn from" in refused(2, "data", "tokenizer")
