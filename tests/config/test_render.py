"""A configuration as text: complete, valid, and read back equal."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwell.config.keys import by_name
from trainwell.config.load import load, recipe_names
from trainwell.config.render import keys, to_yaml
from trainwell.config.syntax import parse_yaml
from trainwell.config.tree import RunConfig

steps = st.integers(1, 10**7)
durations = st.one_of(
    steps,
    steps.map("{} tokens".format),
    st.integers(1, 99).map("{}%".format),
    st.floats(0.1, 9).map("{} epochs".format),
)
text = st.text(min_size=1, max_size=30)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """A valid configuration that differs from the defaults anywhere."""
    heads = draw(st.integers(1, 8))
    flags: dict[str, Any] = {
        "name": draw(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "duration": draw(steps),
        "batch_size": draw(st.integers(16, 99)),
        "micro_batch": 16,
        "compile": draw(st.sampled_from(["auto", True, False])),
        "extra": draw(st.dictionaries(text, st.none() | st.integers() | text | st.lists(st.booleans()), max_size=3)),
        "model": {"num_heads": heads, "width": heads * draw(st.integers(1, 64))},
        "optim": {"lr": draw(st.floats(1e-9, 1)), "max_grad_norm": draw(st.none() | st.floats(1e-3, 9))},
        "schedule": {
            "warmup": draw(st.integers(0, 99).map("{}%".format)),
            "min_lr": draw(st.sampled_from(["0%", "10%", "12.5%", 1e-10])),
            "decay": draw(st.sampled_from(["cosine", "wsd"])),
            "horizon": draw(st.none() | durations),
        },
        "eval": {"every": draw(st.none() | durations)},
        "sample": {"prompt": draw(text), "top_k": draw(st.none() | st.integers(1, 99))},
    }
    if draw(st.booleans()):
        flags["data"] = {"path": draw(text.filter(lambda path: path.strip().lower() not in {"none", "null"}))}
    return load("demo", flags=flags)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(config=configs(), full=st.booleans())
def test_what_is_printed_is_a_config_file_that_means_the_same(tmp_path: Path, config: RunConfig, full: bool) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config, full=full), encoding="utf-8", newline="")
    assert load(file=file) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_a_recipe_is_printed_and_read_back(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(load(name)))
    assert load(file=file) == load(name)
    printed = parse_yaml(file.read_text())
    assert isinstance(printed, dict)
    assert printed.keys() | {"extra", "custom"} == RunConfig.model_fields.keys()


def test_the_short_form_holds_what_differs_from_demo() -> None:
    config = load("demo", flags={"name": "mine", "optim.lr": 1e-4, "eval.every": "20%"})
    assert to_yaml(config, full=False) == "name: mine\n\noptim:\n  lr: 0.0001\n\neval:\n  every: 20%\n"


def test_every_key_has_help_and_says_what_it_takes() -> None:
    for key in keys():
        assert key.help.endswith(".")
        assert key.allowed
        assert key.choices or key.kind != "choice"


def test_keys_are_described_as_the_tree_has_them() -> None:
    assert by_name()["optim.lr"].allowed == "a number (above 0)"
    assert by_name()["micro_batch"].choices == ("auto",)
    assert by_name()["micro_batch"].kind == "integer"
    assert by_name()["optim.clip_from"].default == 0
    assert by_name()["schedule.min_lr"].default == "10%"
    assert by_name()["data.stride"].optional


def test_the_keys_are_these_and_adding_one_is_a_decision() -> None:
    listed = [key.name for key in keys()]
    assert listed == (Path(__file__).parent / "keys.txt").read_text().split()
