"""The plain file of a configuration: its settings, and what it refuses."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

from trainwell.config.load import load
from trainwell.config.render import to_yaml
from trainwell.errors import ConfigError
from trainwell.planning.resolve import resolve
from trainwell.report.code import plain_file


def settings_of(source: str) -> dict[str, Any]:
    """The constants between the marks, read as Python reads them."""
    block = source.split("# --- settings ---\n")[1].split("# --- end of settings ---\n")[0]
    found: dict[str, Any] = {}
    exec(compile(ast.parse(block), "settings", "exec"), found)
    return found


def plain(recipe: str = "demo", **flags: object) -> str:
    keys = {key.replace("__", "."): value for key, value in flags.items()}
    return plain_file(resolve(load(recipe, flags=keys)))


def test_the_settings_are_those_of_the_run() -> None:
    sizes: dict[str, object] = {"duration": 50, "batch_size": 16, "micro_batch": 8}
    schedule: dict[str, object] = {"schedule__warmup": "10%", "schedule__min_lr": "10%"}
    optim: dict[str, object] = {"optim__lr": "2e-3", "optim__max_grad_norm": "none"}
    found = settings_of(plain("demo", **sizes, **schedule, **optim, seed=7))
    assert (found["NUM_STEPS"], found["HORIZON"], found["WARMUP"]) == (50, 50, 5)
    assert (found["SEED"], found["BATCH"], found["MICRO_BATCH"]) == (7, 16, 8)
    assert (found["PEAK"], found["MIN_LR"], found["MAX_GRAD_NORM"]) == (2e-3, 2e-4, None)


def test_a_text_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / 'with "quotes".txt'
    file.write_text("text " * 1000)
    assert settings_of(plain(data__path=str(file)))["CORPUS"] == str(file)


def test_a_published_text_is_named_by_the_variable_that_says_where_it_is() -> None:
    if not (Path(os.environ.get("TRAINWELL_DATA_DIR", "missing")) / "tinyshakespeare.txt").is_file():
        pytest.skip("TRAINWELL_DATA_DIR does not hold tinyshakespeare.txt")
    assert settings_of(plain("shakespeare-char"))["CORPUS"] == "$TRAINWELL_DATA_DIR/tinyshakespeare.txt"


def test_every_plain_file_has_at_most_150_lines() -> None:
    assert len(plain().splitlines()) <= 150


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.dropout", 0.1),
        ("model.init", "torch"),
        ("optim.name", "muon"),
        ("optim.decay", "all"),
        ("precision", "bf16"),
        ("schedule.decay", "linear"),
        ("schedule.initial_lr", "1%"),
        ("schedule.dialect", "llm.c"),
        ("data.tokenizer", "gpt2"),
        ("micro_batch", "auto"),
    ],
)
def test_a_key_that_stands_in_the_way_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {key}: {value}"):
        plain_file(resolve(load("demo", flags={key: value})))


def test_weights_to_start_from_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load("demo")))
    with pytest.raises(ConfigError, match=r"\n  init_from: "):
        plain_file(resolve(load("demo", flags={"init_from": str(tmp_path)})))


def test_all_keys_in_the_way_are_named_together() -> None:
    with pytest.raises(ConfigError) as refused:
        plain(model__dropout=0.1, optim__decay="all")
    assert "model.dropout" in str(refused.value)
    assert "optim.decay" in str(refused.value)
