"""What `--small` changes: every recipe becomes one that two cores can prove, and says how."""

from pathlib import Path
from typing import Any

import pytest

from trainwell.config.load import load, recipe_names
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError
from trainwell.planning.resolve import Plan, resolve
from trainwell.prove.small import changed, in_words, scaled_down


def planned(name: str, **flags: Any) -> tuple[RunConfig, Plan]:
    counted = {"duration": "2000", "eval.every": None, "sample.every": None, "checkpoint.every": None}
    config = load(name, flags={**counted, **flags})
    return config, resolve(config)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_scaled_to_a_plan_that_holds(name: str) -> None:
    try:
        config, plan = planned(name)
    except ConfigError as error:
        pytest.skip(str(error)[:80])  # a length in epochs of a text that is not here
    small = changed(config, scaled_down(config, plan, own_model=True, own_data=True))
    again = resolve(small)
    assert (small.model.num_layers, small.model.width) <= (2, max(64, min(config.model.width, 64)))
    assert again.batch.batch_size <= 4
    assert small.task != "pretrain" or again.seq_len <= 64
    assert (again.horizon, again.warmup) == (plan.horizon, plan.warmup)


def test_what_was_scaled_is_said_key_by_key() -> None:
    config, plan = planned("demo")
    changes = scaled_down(config, plan, own_model=True, own_data=True)
    assert in_words(config, changes) == (
        "model.num_layers 3 -> 2, model.width 128 -> 64, model.num_heads 4 -> 2, batch_size 8 -> 4, "
        "data.seq_len 128 -> 64"
    )


def test_what_was_given_in_python_stays_as_it_is() -> None:
    config, plan = planned("demo")
    assert scaled_down(config, plan, own_model=False, own_data=False) == {}


def test_a_model_that_starts_from_weights_is_drawn_when_it_is_scaled(tmp_path: Path) -> None:
    config, plan = planned("demo")
    config = changed(config, {"init_from": str(tmp_path)})
    assert scaled_down(config, plan, own_model=True, own_data=True)["init_from"] is None


def test_a_change_is_validated() -> None:
    config, _ = planned("demo")
    with pytest.raises(ValueError, match="num_layers"):
        changed(config, {"model.num_layers": 0})
