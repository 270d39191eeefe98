"""Closed formulas against the counts that the sources print."""

from trainwell.config.load import load
from trainwell.planning.model_size import count_parameters, flops_per_token


def test_gpt2_124m_has_karpathys_counts() -> None:
    model = load("gpt2-124m").model
    count = count_parameters(model, 50304, 1024)
    assert (count.decayed_tensors, count.decayed) == (50, 124_354_560)
    assert (count.not_decayed_tensors, count.not_decayed) == (98, 121_344)
    assert count_parameters(model, 50257, 1024).total == 124_439_808


def test_the_book_model_has_the_books_count() -> None:
    count = count_parameters(load("book").model, 50257, 256)
    assert count.total == 162_419_712
    assert count.total == count.decayed + count.not_decayed
    assert count.head == 50257 * 768
    assert count.embedding == (2 * 50257 + 256) * 768


def test_flops_of_a_token_count_the_vocabulary_once_and_attention_by_its_length() -> None:
    model = load("gpt2-124m").model
    multiplied = 124_439_808 - 1024 * 768
    assert flops_per_token(model, 50257, 1024) == 6 * multiplied + 12 * 12 * 12 * 64 * 1024
    untied = model.model_copy(update={"tie_head": False})
    assert flops_per_token(untied, 50257, 1024) == flops_per_token(model, 50257, 1024)
