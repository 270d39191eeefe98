"""`trainwell data show`: what token files of others hold, as a user sees it; and a run that reads them in place."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Command, flags_of

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
