"""Drawing tokens: the right ones, the same ones with and without a cache, and no trace left behind."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.generate import draw, generate
from trainwell.model.attention import KVCache
from trainwell.model.gpt2 import GPT2

Make = Callable[..., GPT2]

pytestmark = pytest.mark.usefixtures("one_thread")


class Bigram(nn.Module):
    """Knows no cache and no limit: what follows an id depends on that id alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.lengths: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.lengths.append(ids.shape[1])
        return self.table[ids]


class InAnObject(Bigram):
    """The same with its logits in an object, as Hugging Face models have them."""

    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(ids))


class CountsTokens(nn.Module):
    """A GPT-2 that notes how many tokens each forward pass reads."""

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model, self.seq_len, self.read = model, model.seq_len, list[int]()

    def new_cache(self) -> KVCache:
        return self.model.new_cache()

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        self.read.append(ids.shape[1])
        return self.model(ids, cache)  # type: ignore[no-any-return]


def table(size: int = 6, seed: int = 0) -> Tensor:
    return torch.randn((size, size), generator=Generator().manual_seed(seed))


def always(probabilities: Sequence[float]) -> Bigram:
    """After any id, the next one has these probabilities."""
    return Bigram(torch.tensor(probabilities).log().expand(len(probabilities), -1))


PROMPTS = st.lists(st.integers(0, 18), min_size=1, max_size=16)


@given(
    prompt=PROMPTS,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 99),
    context=st.sampled_from([None, 5]),
)
@examples(max_examples=12)
def test_the_cache_changes_no_token_also_past_the_context(
    gpt2_of: Make, prompt: list[int], temperature: float, seed: int, context: int | None
) -> None:
    model = gpt2_of(dtype=torch.float64)
    tokens = [
        list(generate(model, prompt, 15, temperature=temperature, seed=seed, context=context, cache=cache))
        for cache in (True, False)
    ]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 15


def test_with_a_cache_a_token_costs_one_token_until_the_context_is_full(gpt2_of: Make) -> None:
    model = CountsTokens(gpt2_of())
    list(generate(model, [1, 2, 3], 12))
    assert model.read == [3, *[1] * 9, 12, 12]
    model.read.clear()
    list(generate(model, [1, 2, 3], 4, cache=False))
    assert model.read == [3, 4, 5, 6]


def test_greedy_tokens_are_the_likeliest_of_the_model_written_out(gpt2_of: Make) -> None:
    model = gpt2_of(dropout=0.5).eval()
    ids = [3, 1, 4]
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(model(torch.tensor([ids[-12:]]))[0, -1].argmax()))
    assert list(generate(model.train(), [3, 1, 4], 20, temperature=0)) == ids[3:]


@given(PROMPTS, st.integers(0, 99), st.floats(0.1, 5))
@examples(max_examples=6)
def test_the_likeliest_alone_is_greedy_whatever_the_temperature(
    gpt2_of: Make, prompt: list[int], seed: int, temperature: float
) -> None:
    model = gpt2_of()
    greedy = list(generate(model, prompt, 6, temperature=0))
    assert list(generate(model, prompt, 6, top_k=1, seed=seed, temperature=temperature)) == greedy
    assert list(generate(model, prompt, 6, top_p=1e-9, seed=seed, temperature=temperature)) == greedy


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(gpt2_of: Make) -> None:
    model = gpt2_of()
    assert list(generate(model, [1], 20, seed=4)) == list(generate(model, [1], 20, seed=4))
    assert list(generate(model, [1], 20, seed=4)) != list(generate(model, [1], 20, seed=5))


def test_the_beginning_does_not_depend_on_how_many_tokens_are_asked_for(gpt2_of: Make) -> None:
    model = gpt2_of()
    assert list(generate(model, [1], 20))[:7] == list(generate(model, [1], 7))
    assert list(generate(model, [1], 0)) == []


def test_the_global_generator_the_mode_and_the_prompt_are_left_alone(gpt2_of: Make) -> None:
    model, prompt = gpt2_of(dropout=0.5).train(), [1, 2]
    state = torch.get_rng_state()
    list(generate(model, prompt, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert prompt == [1, 2]


def test_one_may_train_between_two_tokens(gpt2_of: Make) -> None:
    model = gpt2_of(dropout=0.5).train()
    tokens = generate(model, [1, 2], 5)
    next(tokens)
    assert model.training
    assert torch.is_grad_enabled()
    assert model(torch.tensor([[1, 2]])).requires_grad
    assert len(list(tokens)) == 4


def test_the_stop_id_ends_the_text_and_is_not_part_of_it() -> None:
    after = torch.full((5, 5), -math.inf)
    for given_id, next_id in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 4)):
        after[given_id, next_id] = 0.0
    assert list(generate(Bigram(after), [0], 9, stop=3)) == [1, 2]
    assert list(generate(Bigram(after), [3], 3, stop=3)) == [4, 4, 4]  # in the prompt it is text
    assert list(generate(Bigram(after), [0], 9, stop=1)) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_only_pad_the_vocabulary_are_never_drawn(temperature: float) -> None:
    padded = always([0.1, 0.2, 0.1, 0.3, 0.3])
    tokens = list(generate(padded, [0], 200, temperature=temperature, vocab_size=3))
    assert set(tokens) == ({1} if temperature == 0 else {0, 1, 2})


def test_any_model_will_do() -> None:
    plain, in_an_object = Bigram(table()), InAnObject(table())
    tokens = list(generate(plain, [2], 30, seed=1))
    assert tokens == list(generate(in_an_object, [2], 30, seed=1))
    assert plain.lengths == list(range(1, 31))


def test_a_model_without_a_cache_sees_as_much_as_it_is_said_to() -> None:
    model = Bigram(table())
    list(generate(model, [1, 2, 3], 5, context=4))
    assert model.lengths == [3, 4, 4, 4, 4]


def test_narrow_logits_are_drawn_from_as_well() -> None:
    model = Bigram(table().bfloat16())
    assert len(list(generate(model, [1], 5, top_k=3, top_p=0.9))) == 5


PROBABILITIES = [0.02, 0.4, 0.08, 0.3, 0.2]


def drawn(count: int = 1500, **how: Any) -> Counter[int]:
    generator, logits = Generator().manual_seed(0), torch.tensor(PROBABILITIES).log()
    return Counter(draw(logits, generator, **how) for _ in range(count))


def assert_drawn_as(seen: Counter[int], weights: dict[int, float]) -> None:
    """The chi-square test, one in a thousand with up to four degrees of freedom."""
    assert seen.keys() == weights.keys()
    scale = seen.total() / sum(weights.values())
    assert sum((seen[token] - weight * scale) ** 2 / (weight * scale) for token, weight in weights.items()) < 18.5


def test_ids_are_drawn_with_the_probabilities_of_the_model() -> None:
    assert_drawn_as(drawn(), dict(enumerate(PROBABILITIES)))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_or_flattens(temperature: float) -> None:
    assert_drawn_as(drawn(temperature=temperature), {i: p ** (1 / temperature) for i, p in enumerate(PROBABILITIES)})


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        ({"top_p": 0.97}, [1, 2, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.76}, [1, 3]),  # of the three, renormalised: 0.44, 0.33, 0.22
        ({"top_k": 3, "top_p": 0.79}, [1, 3, 4]),
        ({"temperature": 0.25, "top_p": 0.7}, [1]),  # sharpened first
    ],
    ids=str,
)
def test_what_may_be_drawn_is_drawn_in_proportion(how: dict[str, Any], allowed: list[int]) -> None:
    power = 1 / how.get("temperature", 1.0)
    assert_drawn_as(drawn(800, **how), {token: PROBABILITIES[token] ** power for token in allowed})


@given(
    st.lists(st.integers(-20, 20).map(lambda quarter: quarter / 4), min_size=1, max_size=8),
    st.integers(1, 9),
    st.floats(0.01, 1.0),
    st.integers(0, 999),
)
@examples(max_examples=40)
def test_what_is_drawn_is_among_the_k_likeliest_and_in_the_nucleus(
    values: list[float], top_k: int, top_p: float, seed: int
) -> None:
    token = draw(torch.tensor(values), Generator().manual_seed(seed), top_k=top_k, top_p=top_p)
    assert sum(value > values[token] for value in values) < top_k
    kept = sorted((math.exp(value) for value in values), reverse=True)[:top_k]
    likelier = sum(weight for weight in kept if weight > math.exp(values[token]) * (1 + 1e-6))
    assert likelier / sum(kept) < top_p + 1e-5


def test_of_equally_likely_ids_the_first_are_kept() -> None:
    equal = torch.zeros(50)
    generator = Generator().manual_seed(0)
    assert {draw(equal, generator, top_k=3) for _ in range(200)} == {0, 1, 2}
    assert draw(equal, generator, temperature=0) == 0
