"""Notes: each provoked once, and the shipped recipes say nothing that their reader does not need."""

from typing import Any

import pytest

from trainwell.planning.lints import notes


@pytest.mark.parametrize(("recipe", "tokens"), [("demo", 450_000), ("shakespeare-char", 1_003_854), ("gpt2-124m", 0)])
def test_shipped_recipes_have_no_surprises(plan_of: Any, recipe: str, tokens: int) -> None:
    assert notes(plan_of(recipe, tokens=tokens, as_shipped=True)) == []


def test_the_book_is_told_what_it_does(plan_of: Any) -> None:
    short, few = notes(plan_of("book", tokens=4612))
    assert short == "the dialect book stops just short of its minimum: the last step has 1.021e-5, not 1e-5"
    assert few.startswith("0.00043 tokens per parameter, far below the 20 that use the arithmetic best")


@pytest.mark.parametrize(
    ("recipe", "flags", "words"),
    [
        ("demo", {"schedule.horizon": 2400}, "the run is the first 1,200 steps of a schedule of 2,400: it ends at 1.8"),
        ("demo", {"schedule.horizon": 1000}, "the run goes on past its horizon: the last 200 steps"),
        ("gpt2-124m", {"duration": 60}, "the run ends inside its warmup of 715 steps: the peak is never reached"),
        ("demo", {"optim.clip_from": 5000}, "no step is clipped: clipping starts at step 5,000, after the last"),
        ("demo", {"schedule.dialect": "hf-linear"}, "has an end of its own: schedule.min_lr is not used"),
        ("demo", {"schedule.dialect": "litgpt"}, "the dialect litgpt takes step 0 at rate 0: it changes no weight"),
        ("demo", {"schedule.dialect": "hf-cosine-with-min-lr", "schedule.horizon": 900}, "raises the rate again"),
        ("demo", {"data.stride": 200}, "72 of every 200 tokens are never read"),
        ("demo", {"duration": "30 epochs"}, "the run reads its text 30 times: expect overfitting"),
        ("demo", {"model.num_layers": 1, "model.width": 4, "duration": 9999}, "a larger model would learn more"),
        ("demo", {"eval.batches": 9999}, "eval.batches asks for 159,984 sequences, the validation text has 439: all"),
    ],
)
def test_what_is_worth_knowing_is_said(plan_of: Any, recipe: str, flags: dict[str, object], words: str) -> None:
    found = notes(plan_of(recipe, flags, tokens=450_000))
    assert any(words in line for line in found), found


def test_the_note_of_the_corpus_is_passed_on(plan_of: Any) -> None:
    assert notes(plan_of("demo", tokens=450_000, note="its topics quote each other")) == ["its topics quote each other"]
