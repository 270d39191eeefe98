"""`trainwell export`: a run or a step of it as files for other tools; and training that starts from such a folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from trainwell.cli import parts

Command = Callable[..., Any]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")


def said(command: Command, *tokens: str) -> str:
    done = command("export", *tokens)
    assert (done.code, done.err) == (0, "")
    return str(done.out)


def test_it_says_what_it_wrote_and_how_to_open_it(command: Command, finished: Path) -> None:
    text = said(command, str(finished), "--out", "out")
    assert re.match(r"wrote out: model\.safetensors \(\d+\.\d MB\), config\.json, .*, tokenizer_config\.json\n", text)
    assert 'open it: transformers.AutoModelForCausalLM.from_pretrained("out")' in text
    assert 'transformers.AutoTokenizer.from_pretrained("out")' in text
    assert len({file.stat().st_mode for file in Path("out").iterdir()}) == 1
    assert sorted(file.name for file in Path("out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_step_is_exported_as_it_was(command: Command, finished: Path) -> None:
    for target in (f"{finished}@4", f"{finished}@12", str(finished)):
        said(command, target, "--out", target.rpartition("/")[2])
    name = "transformer.wte.weight"
    early, late, last = (load_file(f"{place}/model.safetensors")[name] for place in ("tiny@4", "tiny@12", "tiny"))
    assert not early.equal(late)
    assert late.equal(last)


def test_the_weights_alone_are_one_file(command: Command, finished: Path) -> None:
    text = said(command, str(finished), "--out", "out", "--format", "safetensors")
    assert 'safetensors.torch.load_model(model, "out/model.safetensors")' in text
    assert [file.name for file in Path("out").iterdir()] == ["model.safetensors"]


def test_exporting_writes_nothing_into_the_run(command: Command, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    said(command, str(finished), "--out", "out")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_it_needs_no_text(command: Command, finished: Path) -> None:
    Path("text.txt").unlink()
    assert "wrote out" in said(command, str(finished), "--out", "out")


def test_the_books_model_is_refused_and_then_filled(
    command: Command, refused: Refused, tiny_flags: Callable[..., list[str]]
) -> None:
    book = tiny_flags(duration="2", model__qkv_bias="false", model__tie_head="false")
    assert command("train", "demo", "--run", "runs/book", *book).code == 0
    assert "--fill-biases writes zeros in their place" in refused(2, "export", "runs/book", "--out", "out")
    assert not Path("out").exists()
    assert "wrote out" in said(command, "runs/book", "--out", "out", "--fill-biases")


def test_a_model_given_in_python_is_refused_with_advice(
    command: Command, refused: Refused, tiny_flags: Callable[..., list[str]]
) -> None:
    given = {"model": lambda config: nn.Sequential(nn.Embedding(257, 8), nn.Linear(8, 257))}
    with parts.given(given):
        assert command("train", "demo", "--run", "runs/mine", *tiny_flags(duration="2")).code == 0
        message = refused(2, "export", "runs/mine", "--out", "out")
    assert "only trainwell's own are exported. Save it from your script: safetensors.torch.save_model(" in message
    assert "made with parts given in Python: model" in refused(2, "export", "runs/mine", "--out", "out")


@pytest.mark.parametrize(
    ("tokens", "code", "message"),
    [
        (
            ["runs/none", "--out", "out"],
            2,
            "runs/none is not a run; train one first (trainwell train demo), then: train",
        ),
        (["demo", "--out", "out"], 2, "demo is not a run"),
        (["runs/tiny"], 2, "--out"),
        (["runs/tiny", "--out", "text.txt"], 2, "--out: text.txt is a file"),
        (["runs/tiny", "--out", "runs"], 2, "--out: runs is not empty, and nothing in it is overwritten"),
        (["runs/tiny", "--out", "text.txt/out"], 74, "text.txt/out could not be written"),
        (["runs/tiny", "--out", "out", "--format", "onnx"], 2, "--format"),
        (["runs/tiny", "--out", "out", "--fill-biases"], 2, "--fill-biases has no effect: this model has these biases"),
        (["runs/tiny@7", "--out", "out"], 2, "runs/tiny has no checkpoint of step 7; it has"),
    ],
)
def test_bad_usage_is_a_message(refused: Refused, finished: Path, tokens: list[str], code: int, message: str) -> None:
    assert message in refused(code, "export", *tokens)
    assert not Path("out").exists()


@pytest.fixture
def llama_folder(own_folders: Path) -> Path:
    """`random-llama`, as transformers saves one in several files, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=260, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained("random-llama", max_shard_size="10KB")
    return Path("random-llama")


def from_folder(flags: list[str]) -> list[str]:
    """The flags of a tiny run without its model, which the folder says."""
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [token for key, value in pairs if not key.startswith("--model.") for token in (key, value)]


def test_training_goes_on_from_a_folder_that_transformers_saved(
    command: Command, llama_folder: Path, tiny_flags: Callable[..., list[str]]
) -> None:
    flags = from_folder(tiny_flags(init_from=str(llama_folder), duration="4", data__tokenizer="bytes"))
    done = command("train", "demo", "--run", "runs/more", *flags)
    assert (done.code, done.err) == (0, "")
    assert "wrote out" in said(command, "runs/more", "--out", "out")
    described = json.loads(Path("out/config.json").read_text())
    assert (described["model_type"], described["num_key_value_heads"], described["vocab_size"]) == ("llama", 2, 257)
    done = command("train", "demo", "--run", "runs/again", *from_folder(tiny_flags(init_from="out", duration="4")))
    assert (done.code, done.err) == (0, "")
    assert "tokenizer out/tokenizer.json" in done.out


def test_a_folder_that_cannot_be_read_is_a_message(
    refused: Refused, llama_folder: Path, tiny_flags: Callable[..., list[str]]
) -> None:
    train = [
        "train",
        "demo",
        "--run",
        "runs/more",
        *from_folder(tiny_flags(init_from=str(llama_folder), data__tokenizer="bytes")),
    ]
    shard = min(llama_folder.glob("*.safetensors"))
    shard.write_bytes(b"\xff" * 64)
    assert f"{shard} cannot be read" in refused(65, *train)
    (llama_folder / "model.safetensors.index.json").unlink()
    (llama_folder / "pytorch_model.bin").touch()
    assert "holds its weights as pickles only" in refused(2, *train)
    (llama_folder / "config.json").write_text('{"model_type": "mamba"}')
    assert 'model_type is "mamba", which is not read; trainwell reads gpt2' in refused(2, *train)
    assert not Path("runs").exists()
