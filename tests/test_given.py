"""Data that is given in Python: the configuration is brought in line with it, and what identifies it is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.data.batches import Windows, from_loader
from trainwell.data.examples import IGNORED
from trainwell.data.prepare import prepare
from trainwell.errors import ConfigError
from trainwell.given import Given, data_from, describe_custom, prepared


@pytest.fixture
def config(own_folders: Path, text: Path) -> RunConfig:
    keys = {"path": str(text), "seq_len": 16, "stride": 5, "val_fraction": 0.25}
    return load("demo", flags={"data": keys, "batch_size": 4, "micro_batch": 2})


def windows(count: int, seq_len: int = 8) -> Windows:
    return Windows(np.arange(count * seq_len + 1, dtype=np.uint16), seq_len, seq_len)


def test_configured_text_is_trained_on_at_the_stride_and_evaluated_on_side_by_side(config: RunConfig) -> None:
    data = data_from(config, Given())
    assert data.val is not None
    assert len(data.train) == (675 - 17) // 5 + 1  # type: ignore[arg-type]
    assert len(data.val) == (225 - 17) // 16 + 1
    assert data.config == config
    assert data.switched_off == ()


def test_text_is_identified_by_what_decides_its_tokens(config: RunConfig, text: Path) -> None:
    facts = data_from(config, Given()).facts
    assert facts["corpus"] == str(text)
    assert facts["tokenizer"] == "bytes"
    text.write_text(text.read_text() + ".")
    assert data_from(config, Given()).facts["fingerprint"] != facts["fingerprint"]


def test_a_byte_token_is_one_byte(config: RunConfig) -> None:
    assert data_from(config, Given()).bytes_per_token == 1.0


def test_given_validation_takes_the_place_of_the_texts(config: RunConfig) -> None:
    val = windows(3, 16)
    data = prepared(config, prepare(config.data), val)
    assert data.val is val
    assert data.bytes_per_token is None


def test_given_examples_decide_length_and_count(config: RunConfig) -> None:
    data = data_from(config, Given(data=windows(30), val=windows(5)))
    assert (data.config.data.seq_len, data.config.data.stride) == (8, None)
    assert (data.config.data.corpus, data.config.data.path) == (None, None)
    assert (data.info.train_tokens, data.info.val_tokens) == (241, 41)
    assert data.info.vocab_size == 257
    assert data.facts["examples"] == 30


def test_the_number_of_ids_of_given_data_can_be_said(config: RunConfig) -> None:
    padded = config.model_copy(update={"model": config.model.model_copy(update={"pad_vocab_to": 12})})
    assert data_from(padded, Given(data=windows(30))).info.vocab_size == 12


def test_a_loader_decides_the_batch(config: RunConfig) -> None:
    in_tokens = config.model_copy(update={"batch_size": None, "batch_tokens": 64})
    data = data_from(in_tokens, Given(data=from_loader([(torch.zeros(3, 5), torch.zeros(3, 5))])))
    assert (data.config.batch_size, data.config.batch_tokens, data.config.data.seq_len) == (3, None, 5)
    assert data.info.train_tokens == 0
    assert data.facts["examples"] is None


def own_loss(model: nn.Module, batch: Any) -> Any:
    return model(batch.inputs).sum()


def test_every_given_part_is_described_by_where_it_comes_from() -> None:
    model = nn.Linear(2, 3)
    adam = torch.optim.Adam(model.parameters())
    schedules: dict[str, Callable[[int], float]] = {"lr": lambda step: 0.1, "momentum": lambda step: 0.9}
    said = describe_custom(Given(model=model, optimizer=adam, loss=own_loss, schedules=schedules), model)
    assert said["model"].endswith("linear:Linear")
    assert said["optimizer"].endswith("adam:Adam")
    assert said["loss"].endswith("test_given:own_loss")
    assert said["schedules"] == "lr, momentum"
    assert said["parameters"] == 9


def test_the_hash_of_a_models_source_tells_two_models_apart() -> None:
    hashes = [describe_custom(Given(model=model), model)["source_sha256"] for model in (nn.Linear(2, 3), nn.Identity())]
    assert len(set(hashes)) == 2
    assert describe_custom(Given(), nn.Linear(2, 3)) == {}


def test_what_is_neither_examples_nor_a_loader_is_refused(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"data: list_iterator was given; allowed are examples, .*from_loader"):
        data_from(config, Given(data=iter([])))


def labelled(count: int) -> list[tuple[list[int], list[int]]]:
    return [([n % 5, n % 7, n % 3], [IGNORED, IGNORED, n % 3]) for n in range(count)]


def test_given_texts_with_classes_need_the_names_of_those(own_folders: Path) -> None:
    config = load("demo", flags={"task": "classify", "batch_size": 4, "data.labels": "x,y,z", "data.path": "none.csv"})
    assert data_from(config, Given(data=labelled(9))).labels == ("x", "y", "z")
    nameless = config.model_copy(update={"data": config.data.model_copy(update={"labels": None})})
    with pytest.raises(ConfigError, match=r"data\.labels: the classes of given data are not known; name them"):
        data_from(nameless, Given(data=labelled(9)))


def test_a_template_is_known_by_what_it_says(own_folders: Path) -> None:
    Path("q.jsonl").write_text("".join(f'{{"instruction": "Say {n}", "output": "{n}"}}\n' for n in range(60)))
    flags = {"task": "instruct", "data.path": "q.jsonl", "data.template": "t.txt"}
    Path("t.txt").write_text("Q {instruction} A {output}")
    one = data_from(load("demo", flags=flags), Given()).facts
    assert data_from(load("demo", flags=flags), Given()).facts == one
    Path("t.txt").write_text("Q {instruction} B {output}")
    assert data_from(load("demo", flags=flags), Given()).facts["template"] != one["template"]
