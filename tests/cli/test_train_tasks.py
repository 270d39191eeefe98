"""`trainwell train` on examples and on weights from elsewhere: what it says, and what it refuses, in one message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Command = Callable[..., Any]
Refused = Callable[..., str]
Flags = Callable[..., list[str]]

pytestmark = pytest.mark.usefixtures("one_thread")

INSTRUCT = {"task": "instruct", "data__template": "phi3", "data__seq_len": "64"}
CLASSIFY = {"task": "classify", "data__seq_len": "64"}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
}


def questions(number: int) -> str:
    return "".join(json.dumps({"instruction": f"Say {n}", "output": str(n)}) + "\n" for n in range(number))


def labelled(number: int) -> str:
    return "text,label\n" + "".join(f"text {n},{'odd' if n % 2 else 'even'}\n" for n in range(number))


def test_a_run_of_answers_says_what_it_learns_from_and_what_to_do_next(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    Path("q.jsonl").write_text(questions(40) + json.dumps({"instruction": "long " * 30, "output": "x"}) + "\n")
    said = command("train", "demo", "--run", "runs/q", *tiny_flags(**INSTRUCT, data__path="q.jsonl"))
    assert said.code == 0
    assert "q.jsonl, 40 examples" in said.out
    assert "line 41" in said.out, "the example whose answer does not fit"
    assert "trainwell sample runs/q --chat" in said.out
    assert Path("runs/q/template.json").is_file()


def test_a_run_of_labels_says_the_baseline_and_the_accuracy_by_class(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    Path("l.csv").write_text(labelled(60))
    said = command("train", "demo", "--run", "runs/l", *tiny_flags(**CLASSIFY, data__path="l.csv"))
    assert said.code == 0
    assert "always saying" in said.out
    assert "| accuracy: " in said.out
    assert "(even " in said.out
    assert "trainwell sample runs/l --label" in said.out
    assert "labels: even,odd" in Path("runs/l/config.yaml").read_text()
    again = command("train", "demo", "--run", "runs/l", *tiny_flags(**CLASSIFY, data__path="l.csv"))
    assert "runs/l is finished" in again.out


def test_a_dry_run_counts_a_classifier_as_it_is_made(command: Command, tiny_flags: Flags, own_folders: Path) -> None:
    Path("l.csv").write_text(labelled(60))
    flags = tiny_flags(**CLASSIFY, data__path="l.csv")
    dry = command("train", "demo", "--run", "runs/l", *flags, "--dry-run").out
    made = command("train", "demo", "--run", "runs/l", *flags).out
    assert dry.splitlines()[0] == made.splitlines()[0]
    assert "parameters" in dry.splitlines()[0]


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        (INSTRUCT, "x.jsonl", questions(9) + '{"instruction": "x"}', "x.jsonl, line 10: there is no field output"),
        (CLASSIFY, "x.csv", "text,kind\nx,a\n", "x.csv, line 2: there is no field label"),
        (INSTRUCT, "x.jsonl", "", "x.jsonl is empty"),
        (CLASSIFY, "x.csv", "", "x.csv is empty"),
        (INSTRUCT, "x.jsonl", "x" * 10_000_000, "x.jsonl, line 1: broken JSON"),
        (CLASSIFY | {"data__labels": "odd,oven"}, "x.csv", labelled(9), "x.csv, line 2: the label 'even' is not among"),
        (INSTRUCT, "x.txt", "text", "x.txt ends in .txt. Allowed: .json"),
    ],
)
def test_bad_examples_are_one_short_message_with_their_line(
    refused: Refused, tiny_flags: Flags, own_folders: Path, task: dict[str, str], name: str, content: str, message: str
) -> None:
    Path(name).write_text(content)
    said = refused(65, "train", "demo", "--run", "runs/x", *tiny_flags(**task, data__path=name))
    assert message in said
    assert len(said) < 400
    assert not Path("runs").exists()


def test_ten_megabytes_in_one_line_are_an_example_like_any_other(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    Path("x.jsonl").write_text(questions(40) + json.dumps({"instruction": "x", "output": "y" * 10_000_000}) + "\n")
    said = command("train", "demo", "--run", "runs/x", *tiny_flags(**INSTRUCT, data__path="x.jsonl", duration="2"))
    assert said.code == 0
    assert "line 41" in said.out


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Q: {instruction}", "{output}"),
        ("A: {output}", "{instruction}"),
        ("{instruction} {answer} {output}", "{answer}"),
    ],
)
def test_a_template_without_its_placeholders_is_a_message(
    refused: Refused, tiny_flags: Flags, own_folders: Path, template: str, message: str
) -> None:
    Path("q.jsonl").write_text(questions(40))
    Path("t.txt").write_text(template)
    flags = tiny_flags(**INSTRUCT | {"data__template": "t.txt"}, data__path="q.jsonl")
    assert message in refused(2, "train", "demo", *flags)


def write_folder(folder: Path, **changes: object) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))


def from_folder(flags: list[str]) -> list[str]:
    """The tiny flags without the shape of the model, which the folder gives."""
    kept = [(key, value) for key, value in zip(flags[::2], flags[1::2], strict=True) if not key.startswith("--model.")]
    return [token for pair in kept for token in pair]


@pytest.mark.parametrize(
    ("changes", "file", "content", "code", "message"),
    [
        ({}, "model.safetensors", b"\xff" * 64, 65, "model.safetensors"),
        ({}, "pytorch_model.bin", b"\x80", 2, "pytorch_model.bin"),
        ({"model_type": "mamba"}, "model.safetensors", b"", 2, "mamba"),
        ({"hidden_act": "relu"}, "model.safetensors", b"", 2, "relu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "model.safetensors", b"", 2, "yarn"),
    ],
)
def test_weights_that_cannot_be_read_are_one_message(
    refused: Refused,
    tiny_flags: Flags,
    own_folders: Path,
    changes: dict[str, object],
    file: str,
    content: bytes,
    code: int,
    message: str,
) -> None:
    write_folder(Path("weights"), **changes)
    (Path("weights") / file).write_bytes(content)
    flags = from_folder(tiny_flags(init_from="weights", data__tokenizer="bytes"))
    said = refused(code, "train", "demo", "--run", "runs/x", *flags)
    assert message in said
    assert not Path("runs").exists()


def test_weights_without_their_tokenizer_are_not_read_with_another(
    refused: Refused, tiny_flags: Flags, own_folders: Path
) -> None:
    write_folder(Path("weights"))
    said = refused(65, "train", "demo", *from_folder(tiny_flags(init_from="weights")))
    assert "data.tokenizer: there is no file weights/tokenizer.json" in said
    assert "for weights the one they were trained with" in said


def test_a_folder_with_one_tensor_too_few_names_it(refused: Refused, tiny_flags: Flags, own_folders: Path) -> None:
    write_folder(Path("weights"))
    save_file({"model.embed_tokens.weight": torch.zeros(257, 16)}, Path("weights/model.safetensors"))
    assert "norm.weight" in refused(
        2, "train", "demo", *from_folder(tiny_flags(init_from="weights", data__tokenizer="bytes"))
    )
