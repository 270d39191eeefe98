"""Which kernels a run gets: by device, precision and dropout; as its record says; or as it was asked for."""

from dataclasses import asdict
from typing import Any, cast

import pytest

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError
from trainwell.kernels import Kernels, choose
from trainwell.machine import can_use_huge_pages, onednn_rounds
from trainwell.planning.memory import Precision
from trainwell.planning.resolve import resolve

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = "freed memory kept in huge pages" if can_use_huge_pages() else "freed memory kept"


def chosen(
    precision: str = "fp32",
    *,
    compiled: bool = False,
    recorded: dict[str, Any] | None = None,
    said: list[str] | None = None,
    keys: dict[str, Any] | None = None,
) -> Kernels:
    config = load("demo", flags={"device": "cpu", **(keys or {})})
    say = (said if said is not None else []).append
    return choose(config, resolve(config), "cpu", cast(Precision, precision), compiled, recorded or {}, say)


@pytest.mark.parametrize(
    ("precision", "keys", "attention"),
    [
        ("fp32", {}, "sdpa"),
        ("bf16", {}, "products"),
        ("bf16", {"data.seq_len": 1024}, "sdpa"),
        ("fp32", {"model.dropout": 0.1}, "products"),
        ("bf16", {"kernels": "reference"}, "sdpa"),
        ("bf16", {"fast.attention": "sdpa"}, "sdpa"),
        ("fp32", {"fast.attention": "products"}, "products"),
    ],
)
def test_a_cpu_takes_products_where_torch_is_slow(precision: str, keys: dict[str, Any], attention: str) -> None:
    assert chosen(precision, keys=keys).attention == attention


def test_a_compiled_model_has_the_compiler_s_own_kernels() -> None:
    found = chosen("bf16", compiled=True, keys={"model.dropout": 0.1})
    assert (found.attention, found.dropout) == ("sdpa", "default")


def test_every_choice_of_auto_has_a_key_that_turns_it_off() -> None:
    keys = {"attention": "sdpa", "dropout": "default", "keep_memory": False, "matmul": "default", "residual": "fp32"}
    plain = chosen("bf16", keys={f"fast.{key}": value for key, value in keys.items()} | {"model.dropout": 0.1})
    assert {key: getattr(plain, key) for key in keys} == keys
    assert set(RunConfig().fast.model_dump()) == set(keys)


def test_reference_turns_all_of_it_off() -> None:
    found = asdict(chosen("bf16", keys={"kernels": "reference", "model.dropout": 0.1}))
    assert found == asdict(Kernels(backend=found["backend"]))


def test_a_recorded_choice_is_made_again_unless_another_is_asked_for() -> None:
    before = asdict(Kernels(attention="sdpa", dropout="default", keep_memory=False))
    assert chosen("bf16", recorded=before).attention == "sdpa"
    assert not chosen("bf16", recorded=before).keep_memory
    assert chosen("bf16", recorded=before, keys={"fast.attention": "products"}).attention == "products"


def test_the_choices_are_named_and_torch_s_own_are_named_by_what_they_come_to() -> None:
    words = chosen("bf16", keys={"model.dropout": 0.1}).words(dropout=True)
    assert words == ["attention by products", "dropout by bits", KEPT]
    assert chosen(keys={"fast.matmul": "default"}).words(dropout=False) == ["attention by flash", KEPT]
    assert chosen(keys={"fast.keep_memory": True}).words(dropout=False)[-1] == "freed memory kept"


@pytest.mark.parametrize("attention", ["cudnn", "efficient"])
def test_a_kernel_of_another_device_is_refused_naming_those_there_are(attention: str) -> None:
    with pytest.raises(ConfigError, match=rf"fast.attention: {attention} is not to be had on cpu; allowed there are"):
        chosen(keys={"fast.attention": attention})


def test_a_short_run_holds_no_race_of_matrix_products() -> None:
    said: list[str] = []
    assert chosen(keys={"duration": 1}, said=said).matmul == "default"
    assert said == []


@pytest.mark.parametrize(("key", "value"), [("attention", "products"), ("dropout", "bits")])
def test_kernels_for_eager_models_are_refused_for_compiled_ones(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"fast.{key}: {value} is for eager models, and this one is compiled"):
        chosen(compiled=True, keys={f"fast.{key}": value})


@pytest.mark.skipif(not onednn_rounds(), reason="this CPU has no AMX")
def test_products_that_would_round_to_bf16_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fast.matmul: onednn would round fp32 to bf16 on this CPU"):
        chosen(keys={"fast.matmul": "onednn"})


def test_a_given_model_has_none_of_the_kernels_of_ours() -> None:
    ours = chosen("bf16", keys={"model.dropout": 0.1})
    assert ours.of_given_model().words(dropout=True) == [KEPT]
