"""The names that `import trainwell as tw` offers: a promise, so a change here is a decision."""

import pytest

import trainwell

PUBLIC = {
    "Batch",
    "MicroBatch",
    "StepResult",
    "Trainer",
    "build",
    "cli",
    "evaluate",
    "fit",
    "from_loader",
    "generate",
    "gradient_report",
    "largest_gradient",
    "open_run",
    "schedules",
    "steps",
    "token_loss",
}


def test_the_public_names_are_these() -> None:
    assert set(trainwell.__all__) == PUBLIC
    assert set(dir(trainwell)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_can_be_had_and_is_documented(name: str) -> None:
    assert getattr(trainwell, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = trainwell.fitt  # type: ignore[attr-defined, unused-ignore]
