"""What the weights of `init_from` say about a configuration: their shape, under what the user says."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainwell.config.load import load, load_recorded
from trainwell.config.render import to_yaml
from trainwell.errors import ConfigError


def run_in(folder: Path, *, data: dict[str, Any] | None = None, **model: Any) -> str:
    """The folder of a run with a config.yaml of its own."""
    folder.mkdir(parents=True)
    flags = {"model": model, "data": {"seq_len": 64, **(data or {})}}
    (folder / "config.yaml").write_text(to_yaml(load(flags=flags)))
    return str(folder)


def test_a_run_gives_its_shape_and_its_context(tmp_path: Path) -> None:
    source = run_in(tmp_path / "run", arch="llama", num_layers=2, num_heads=8, num_kv_heads=2, pad_vocab_to=300)
    config = load(flags={"init_from": source})
    shape = config.model
    assert (shape.arch, shape.num_layers, shape.num_heads, shape.num_kv_heads) == ("llama", 2, 8, 2)
    assert (shape.pad_vocab_to, config.data.seq_len, config.data.tokenizer) == (300, 64, "bytes")
    assert config.optim == load().optim, "how it learns is not in the weights"


def test_what_the_user_says_stands_above_the_weights_and_the_weights_above_the_recipe(tmp_path: Path) -> None:
    source = run_in(tmp_path / "run", num_layers=2)
    file = tmp_path / "mine.yaml"
    file.write_text(f"init_from: {source}\nmodel: {{dropout: 0.1}}\n")
    config = load(str(file), flags={"data.seq_len": 32})
    assert (config.model.num_layers, config.model.dropout, config.data.seq_len) == (2, 0.1, 32)
    assert load().model.num_layers == 3


@pytest.mark.parametrize("step", ["@20", "@best", "@last"])
def test_a_step_of_a_run_is_its_run(tmp_path: Path, step: str) -> None:
    source = run_in(tmp_path / "run", num_layers=2)
    assert load(flags={"init_from": source + step}).model.num_layers == 2


def test_a_tokenizer_that_is_not_the_same_everywhere_is_the_runs_own_file(tmp_path: Path) -> None:
    source = run_in(tmp_path / "run", data={"tokenizer": "chars"})
    assert load(flags={"init_from": source}).data.tokenizer == str(tmp_path / "run" / "tokenizer.json")


def test_classes_keep_their_numbers_in_a_run_that_goes_on_classifying(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    flags = {"task": "classify", "data": {"labels": "spam,ham", "path": "x.csv"}}
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(load(flags=flags)))
    source = {"init_from": str(tmp_path / "run")}
    assert load(flags={**source, "task": "classify"}).data.labels == "spam,ham"
    with pytest.raises(ConfigError, match=r"task: pretrain, but .* gives labels \(spam,ham\) and no next token"):
        load(flags=source)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model.num_layers": 4}, "model.num_layers: 4, but the weights of {} have 2; leave it out"),
        ({"model.width": 64}, "model.width: 64, but the weights of {} have 128; leave it out"),
        ({"model.arch": "llama"}, "model.arch: llama, but the weights of {} have gpt2; leave it out"),
        ({"data.seq_len": 65}, "data.seq_len: 65, but the weights of {} have learned 64 positions; give at most 64"),
    ],
)
def test_what_the_weights_cannot_be_is_seen_before_they_are_read(
    tmp_path: Path, flags: dict[str, object], message: str
) -> None:
    source = run_in(tmp_path / "run", num_layers=2)
    with pytest.raises(ConfigError) as caught:
        load(flags={"init_from": source, **flags})
    assert message.format(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_llama_may_be_read_further_than_it_was_trained(tmp_path: Path) -> None:
    source = run_in(tmp_path / "run", arch="llama")
    stretch = {"data.seq_len": 256, "model.rope_scaling": "linear", "model.rope_factor": 4}
    assert load(flags={"init_from": source, **stretch}).model.rope_factor == 4


def test_a_hugging_face_folder_gives_its_shape(tmp_path: Path) -> None:
    said = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    shape = load(flags={"init_from": str(tmp_path)}).model
    assert (shape.arch, shape.width, shape.width_of_mlp, shape.kv_heads) == ("llama", 32, 48, 2)
    assert (shape.norm_eps, shape.tie_head, shape.pad_vocab_to, shape.has_qkv_bias) == (1e-6, False, 300, False)


def test_a_complete_file_is_not_changed_and_the_weights_need_not_be_there(tmp_path: Path) -> None:
    source = run_in(tmp_path / "run", num_layers=2)
    config = load(flags={"init_from": source, "name": "copy"})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config).replace(source, "runs/gone"))
    assert load_recorded(file).model == config.model
    assert load_recorded(file, flags={"init_from": "runs/gone"}).model == config.model


def test_a_record_from_before_a_key_was_there_reads_as_its_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("init_from: runs/gone\nmodel: {num_layers: 2, qkv_bias: true}\n")
    shape = load_recorded(file).model
    assert (shape.num_layers, shape.has_qkv_bias, shape.arch) == (2, True, "gpt2")


def test_a_file_with_every_key_of_the_model_takes_the_tokenizer_of_the_weights_all_the_same(tmp_path: Path) -> None:
    source = run_in(tmp_path / "run", data={"tokenizer": "chars"})
    file = tmp_path / "mine.yaml"
    model = load().model.model_dump(mode="json")
    file.write_text(json.dumps({"init_from": source, "model": model}))
    assert load(str(file.rename(tmp_path / "mine.json"))).data.tokenizer == str(tmp_path / "run" / "tokenizer.json")


def test_a_template_goes_on_with_the_weights_where_questions_are_learned_further(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    flags = {"task": "instruct", "data": {"template": "mine.txt", "path": "x.jsonl"}}
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(load(flags=flags)))
    source = {"init_from": str(tmp_path / "run")}
    assert load(flags={**source, "task": "instruct"}).data.template == str(tmp_path / "run" / "template.json")
    assert load(flags={**source, "task": "classify"}).data.template == "alpaca"


@pytest.mark.parametrize("source", ["runs/nowhere", "runs/nowhere@20"])
def test_weights_that_are_not_there_are_a_mistake_that_says_what_may_be_given(source: str) -> None:
    with pytest.raises(ConfigError, match=rf"init_from: {source}: the folder is not there; give a run"):
        load(flags={"init_from": source})


def test_a_folder_that_is_neither_run_nor_model_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder has neither config\.yaml nor config\.json; give"):
        load(flags={"init_from": str(tmp_path)})
