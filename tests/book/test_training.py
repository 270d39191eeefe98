"""`train_model` and `train_model_simple` against the book's own: the same lists, lines, weights and draws."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from trainwell.book import train_model, train_model_simple
from trainwell.errors import ConfigError, DivergedError

pytestmark = pytest.mark.usefixtures("one_thread")

Prepare = Callable[..., dict[str, Any]]
Both = Callable[..., tuple[Any, Any]]
SCHEDULE: dict[str, Any] = {
    "n_epochs": 3,
    "eval_freq": 2,
    "eval_iter": 1,
    "warmup_steps": 4,
    "initial_lr": 1e-4,
    "min_lr": 1e-4,
}


@pytest.fixture(scope="session")
def both(theirs: SimpleNamespace, ours: SimpleNamespace, notebook: Prepare) -> Both:
    """Call a function of the book and ours of that name; give what each returned, printed, trained and drew."""

    def outcome(book: SimpleNamespace, name: str, arguments: dict[str, Any], cell: dict[str, Any]) -> Any:
        made, printed = notebook(book, **cell), io.StringIO()
        with redirect_stdout(printed):
            returned = getattr(book, name)(**made, **arguments)
        weights = [tensor.tolist() for tensor in made["model"].parameters()]
        return returned, printed.getvalue(), weights, torch.rand(()).item()

    return lambda name, arguments, **cell: tuple(outcome(book, name, arguments, cell) for book in (theirs, ours))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as the notebook": ({}, {}),
    "a smaller last batch": ({}, {"drop_last": False}),
    "three batches an evaluation": ({"eval_iter": 3}, {"drop_last": False}),
    "all batches an evaluation": ({"eval_iter": None}, {}),
    "the first edition's clipping": ({"orig_book_version": True}, {"lr": 0.1}),
    "the default clipping at a high rate": ({}, {"lr": 0.1}),
    "one step of warmup": ({"warmup_steps": 1}, {}),
    "warmup to the last step but one": ({"warmup_steps": 14}, {}),
    "no dropout": ({}, {"drop_rate": 0.0}),
    "query, key and value with biases": ({}, {"qkv_bias": True}),
    "one epoch, evaluated every step": ({"n_epochs": 1, "eval_freq": 1}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_train_model_is_the_books_to_the_last_digit(both: Both, case: str) -> None:
    arguments, cell = CASES[case]
    expected, found = both("train_model", SCHEDULE | arguments, **cell)
    assert found == expected
    assert len(expected[0][3]) in {5, 15, 18}


@examples(max_examples=8)
@given(
    n_epochs=st.integers(1, 3),
    eval_freq=st.integers(1, 7),
    eval_iter=st.integers(1, 4),
    share=st.floats(0, 0.99),
    drop_last=st.booleans(),
    first_edition=st.booleans(),
    drop_rate=st.sampled_from([0.0, 0.1]),
    lr=st.sampled_from([1e-3, 1e-1]),
)
def test_whatever_the_lengths_train_model_is_the_books(
    both: Both,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    share: float,
    drop_last: bool,
    first_edition: bool,
    drop_rate: float,
    lr: float,
) -> None:
    arguments = {
        "n_epochs": n_epochs,
        "eval_freq": eval_freq,
        "eval_iter": eval_iter,
        "warmup_steps": max(1, int(share * n_epochs * (5 if drop_last else 6))),
        "orig_book_version": first_edition,
    }
    expected, found = both("train_model", arguments, drop_last=drop_last, drop_rate=drop_rate, lr=lr)
    assert found == expected


@pytest.mark.parametrize("case", ["as the notebook", "a smaller last batch", "three batches an evaluation"])
def test_train_model_simple_is_the_books_to_the_last_digit(both: Both, case: str) -> None:
    arguments, cell = CASES[case]
    simple = {"num_epochs": 3, "eval_freq": 2, "eval_iter": arguments.get("eval_iter", 1)}
    expected, found = both("train_model_simple", simple, **cell)
    assert found == expected


def test_the_default_rates_are_the_books(both: Both) -> None:
    expected, found = both("train_model", {"n_epochs": 2, "eval_freq": 5, "eval_iter": 1, "warmup_steps": 3})
    assert found == expected
    assert found[0][3][0] == 3e-5


def test_the_two_clipping_rules_differ_from_the_step_at_the_peak_on(notebook: Prepare, ours: SimpleNamespace) -> None:
    losses = []
    for first_edition in (False, True):
        cell = notebook(ours, lr=0.1, drop_rate=0.0)
        arguments = SCHEDULE | {"eval_freq": 1, "orig_book_version": first_edition}
        losses.append(train_model(**cell, **arguments)[0])
    peak = SCHEDULE["warmup_steps"]
    assert losses[0][:peak] == losses[1][:peak]
    assert losses[0][peak] != losses[1][peak]


@pytest.mark.parametrize("warmup", [0, -3])
def test_a_warmup_without_steps_is_refused(notebook: Prepare, ours: SimpleNamespace, warmup: int) -> None:
    with pytest.raises(ConfigError, match=f"warmup_steps: {warmup}, .* at least 1"):
        train_model(**notebook(ours), **SCHEDULE | {"warmup_steps": warmup})


@pytest.mark.parametrize("warmup", [15, 16])
def test_a_warmup_as_long_as_the_training_is_refused(notebook: Prepare, ours: SimpleNamespace, warmup: int) -> None:
    with pytest.raises(ConfigError, match=f"warmup_steps: {warmup}, .* 15 steps.*at most 14"):
        train_model(**notebook(ours), **SCHEDULE | {"warmup_steps": warmup})


@pytest.mark.parametrize("name", ["train_loader", "val_loader"])
@pytest.mark.parametrize("train", [train_model, train_model_simple])
def test_an_empty_loader_is_refused(notebook: Prepare, ours: SimpleNamespace, name: str, train: Any) -> None:
    arguments = SCHEDULE if train is train_model else {"num_epochs": 1, "eval_freq": 1, "eval_iter": 1}
    with pytest.raises(ConfigError, match=f"{name}: the loader is empty"):
        train(**notebook(ours) | {name: []}, **arguments)


def test_lengths_that_the_book_divides_by_are_refused_together(notebook: Prepare, ours: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"epochs: 0(.|\n)*eval_freq: 0(.|\n)*eval_iter: 0"):
        train_model(**notebook(ours), **SCHEDULE | {"n_epochs": 0, "eval_freq": 0, "eval_iter": 0})


def test_a_peak_that_the_optimizer_does_not_have_is_warned_about(notebook: Prepare, ours: SimpleNamespace) -> None:
    with pytest.warns(UserWarning, match=r"peak_lr is 0.0005, but .* lr=0.001, .* 0.001 is used") as warned:
        rates = train_model(**notebook(ours, lr=1e-3), **SCHEDULE, peak_lr=5e-4)[3]
    assert max(rates) == 1e-3
    assert warned[0].filename == __file__


def test_the_peak_that_the_optimizer_has_is_not_warned_about(notebook: Prepare, ours: SimpleNamespace) -> None:
    train_model(**notebook(ours, lr=1e-3), **SCHEDULE | {"n_epochs": 1}, peak_lr=1e-3)


def test_a_training_that_gives_no_numbers_ends_with_an_error(notebook: Prepare, ours: SimpleNamespace) -> None:
    cell = notebook(ours)
    with torch.no_grad():
        cell["model"].final_norm.shift.fill_(torch.nan)
    with pytest.raises(DivergedError, match="5 steps in a row up to step 4"):
        train_model(**cell, **SCHEDULE | {"eval_freq": 1000})


def test_what_is_asked_for_after_an_epoch_is_looked_at_before_it(notebook: Prepare, ours: SimpleNamespace) -> None:
    cell = notebook(ours)
    wrong = {"tokenizer": None, "model": torch.nn.Linear(2, 2)}
    with pytest.raises(ConfigError) as caught:
        train_model(**cell | wrong, **SCHEDULE)
    assert "tokenizer: NoneType has no encode and decode" in str(caught.value)
    assert "model: Linear does not say how many tokens it can see" in str(caught.value)
    with pytest.raises(ConfigError, match="start_context: '' gives the model nothing to continue"):
        train_model(**cell | {"start_context": ""}, **SCHEDULE)


@pytest.mark.parametrize("device", ["gpu", "xpu:99"])
def test_a_device_that_is_not_there_is_named(notebook: Prepare, ours: SimpleNamespace, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used here; give cpu, or cuda or mps"):
        train_model(**notebook(ours) | {"device": device}, **SCHEDULE)


def test_half_an_epoch_is_refused(notebook: Prepare, ours: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"n_epochs: 1.5, but it must be a whole number of at least 1"):
        train_model(**notebook(ours), **SCHEDULE | {"n_epochs": 1.5})


def test_a_warmup_that_falls_is_warned_about(notebook: Prepare, ours: SimpleNamespace) -> None:
    with pytest.warns(UserWarning, match="initial_lr is 1, above the peak of 0.01"):
        train_model(**notebook(ours), **SCHEDULE | {"n_epochs": 1, "initial_lr": 1.0})


def test_any_model_with_logits_trains(gpt2_of: Any, notebook: Prepare, ours: SimpleNamespace) -> None:
    model = gpt2_of(vocab_size=28)
    cell = notebook(ours) | {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2)}
    losses = train_model(**cell, **SCHEDULE)[0]
    assert losses[-1] < losses[0]
