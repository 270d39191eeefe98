"""A state taken apart into JSON and tensors, and put together again: nothing is lost, and nothing can run."""

import json
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainwell.checkpoint.state import describe, pack, same_bits, unpack
from trainwell.errors import ConfigError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
KEYS = st.integers(-3, 12) | st.sampled_from(["a", "b", "a.b", "a.0", "0", "", "a\u0101/\n"])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any small tensor, without elements or without dimensions among them; each its own memory."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = 8 * math.prod(shape)
    bits = torch.tensor(draw(st.lists(st.integers(0, 255), min_size=size, max_size=size)))
    dtype = draw(st.sampled_from(DTYPES))
    if dtype == torch.bool:
        return (bits[: math.prod(shape)] > 100).reshape(shape)
    return bits.to(torch.uint8).view(dtype)[: math.prod(shape)].reshape(shape).clone()


STATES = st.recursive(
    SCALARS | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit, types and order of keys included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return same_bits(a, b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def through_json(state: Any) -> Any:
    plain, found = pack(state)
    return unpack(json.loads(json.dumps(plain)), found)


@given(STATES)
def test_any_state_comes_back_as_it_was(state: Any) -> None:
    assert same(through_json(state), state)


def test_keys_keep_their_type_and_their_order() -> None:
    state = {1: "one", "1": "text", None: 0, 0: {True: 2.5}, "z": 1, "a": 2}
    assert same(through_json(state), state)


def test_tensors_whose_paths_look_alike_are_all_kept() -> None:
    state = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}
    assert same(through_json(state), state)


def test_the_state_of_an_optimizer_that_has_stepped_comes_back() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert same(through_json(optimizer.state_dict()), optimizer.state_dict())


def test_a_tied_tensor_is_stored_once_and_under_its_first_name() -> None:
    head = torch.arange(6.0).reshape(2, 3)
    plain, found = pack({"wte": head, "lm_head": head, "again": [head.detach()]})
    assert list(found) == ["wte"]
    both = unpack(plain, found)
    assert both["wte"] is both["lm_head"] is both["again"][0]


def test_tensors_that_are_equal_but_not_shared_stay_two() -> None:
    assert len(pack({"a": torch.zeros(2), "b": torch.zeros(2)})[1]) == 2


def test_tensors_without_elements_are_not_taken_for_one() -> None:
    state = {"a": torch.zeros(0, 3), "b": torch.zeros(0, dtype=torch.int64)}
    assert same(through_json(state), state)


def test_a_parameter_is_stored_without_its_gradient() -> None:
    _, found = pack({"w": nn.Parameter(torch.ones(2))})
    assert not found["w"].requires_grad


@pytest.mark.parametrize(
    ("value", "kind"),
    [(lambda: 0, "function"), (object(), "object"), (Fraction(1, 2), "Fraction"), (b"x", "bytes"), ({1}, "set")],
)
def test_what_is_no_plain_value_is_refused_by_its_path(value: object, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"^kept\.ema\.1 is a {kind}; a checkpoint holds tensors, numbers, text"):
        pack({"kept": {"ema": [1.0, value]}})


@pytest.mark.parametrize("key", [(1, 2), Fraction(1, 2), b"x"])
def test_a_key_that_is_no_plain_value_is_refused_by_its_path(key: object) -> None:
    with pytest.raises(ConfigError, match=rf"^kept\.ema has a key that is a {type(key).__name__}"):
        pack({"kept": {"ema": {key: 1}}})


def test_a_description_has_type_and_shape() -> None:
    found = describe({"w": torch.zeros(2, 3, dtype=torch.bfloat16), "n": torch.tensor(1)})
    assert found == {"w": {"dtype": "bfloat16", "shape": [2, 3]}, "n": {"dtype": "int64", "shape": []}}


def test_bits_tell_what_equality_does_not() -> None:
    nan = torch.tensor([math.nan])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert same_bits(torch.arange(6).reshape(2, 3).t(), torch.arange(6).reshape(2, 3).t().contiguous())
