"""An incident as it is printed and explained."""

import io
import math
from typing import Any

import pytest
from rich.console import Console, Group

from trainwell.report.incident import commands, explained, one_line, show_incident
from trainwell.runs.incidents import Incident, SampleLoss, TensorNorms


def sample(loss: float, index: int = 7, text: str | None = "some text") -> SampleLoss:
    return SampleLoss(place=index, index=index, loss=loss, targets=16, text=text)


def an_incident(**changes: Any) -> Incident:
    said: dict[str, Any] = {"step": 40, "reason": "gradient norm 9 is above 2", "skipped": False, "loss": 3.0}
    said |= {"grad_norm": 9.0, "lr": 1e-3, "bounds": {"loss": 4.0, "grad_norm": 2.0}, "windows": (7, 8, 9)}
    return Incident(**said | changes)


def printed(incident: Incident, *next_commands: str, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(Group(*show_incident(incident, next_commands)))
    return stream.getvalue()


def test_it_says_why_with_value_and_threshold_and_what_became_of_the_update() -> None:
    text = " ".join(printed(an_incident()).split())
    assert "reason gradient norm 9 is above 2" in text
    assert "loss 3, no outlier: an outlier is above 4" in text
    assert "gradient norm 9, an outlier: above 2" in text
    assert "update made, at rate 1.0000e-03" in text
    left_out = an_incident(skipped=True, loss=math.nan)
    assert "update left out: nothing has changed" in " ".join(printed(left_out).split())
    assert "loss nan gradient norm" in " ".join(printed(left_out).split())


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ([9.0, 3.0, 2.9], "example 0: the loss is 3 times the median of the step's examples"),
        ([3.1, 3.0, 2.9], "no example stands out: the loss of the worst is less than twice the median"),
        ([3.1, 3.0], "none of the 2 measured stands out: the loss of the worst is less than twice the median"),
        ([math.nan, 3.0, 2.9], "example 0: the loss is not finite; of the other 2 it is"),
        ([math.inf, math.nan, 2.9], "examples 0, 1: the loss is not finite; of the other 1 it is"),
        ([math.nan] * 3, "no example has a finite loss: it is the weights, not one text"),
    ],
)
def test_it_says_whether_one_example_is_to_blame(losses: list[float], sentence: str) -> None:
    samples = tuple(sample(loss, index) for index, loss in enumerate(losses))
    assert explained(an_incident(samples=samples)) == [sentence]


def test_it_counts_the_gradients_with_holes_and_shows_them_first() -> None:
    good, bad = TensorNorms("a", 5.0, 0, 2.0, 0.0), TensorNorms("b", math.nan, 3, 2.0, 0.0)
    incident = an_incident(tensors=(good, bad))
    assert explained(incident) == ["1 of 2 gradients have elements that are not finite"]
    lines = [line.split() for line in printed(incident).splitlines()]
    assert ["b", "nan", "3", "2"] in lines
    assert lines.index(["b", "nan", "3", "2"]) < lines.index(["a", "5", "0", "2"])


def test_columns_that_say_nothing_are_left_out() -> None:
    tensors = (TensorNorms("a", 5.0, 0, 2.0, None), TensorNorms("b", 4.0, 0, 2.0, 0.0))
    text = printed(an_incident(tensors=tensors, samples=(sample(3.0, text=None),)))
    assert "not finite" not in text
    assert "update " not in text.partition("by norm")[2]
    assert "text" not in text


def test_an_update_is_told_beside_the_weights_it_changed() -> None:
    lines = printed(an_incident(tensors=(TensorNorms("a", 5.0, 0, 2.0, 0.01),))).splitlines()
    assert lines[-1].split() == ["a", "5", "2", "0.01", "0.50%"]


def test_the_worst_come_first_and_the_rest_is_counted() -> None:
    samples = tuple(sample(20.0 - place, place) for place in range(12))
    tensors = tuple(TensorNorms(f"t{place}", float(place), 0, 1.0, 0.1) for place in range(12))
    text = printed(an_incident(samples=samples, tensors=tensors, weights="the weights after step 40"))
    assert "the first 8 of 12 examples by loss, with the weights after step 40, dropout off" in text
    assert "the first 10 of 12 gradients by norm, before clipping" in text
    assert "t11" in text
    assert "t1 " not in text


@pytest.mark.parametrize("width", [60, 100])
def test_a_text_cannot_steer_the_terminal_and_everything_fits(width: int) -> None:
    text = printed(an_incident(samples=(sample(3.0, text="\x1b[2J[bold]\n" + 300 * "x"),)), width=width)
    assert "\x1b" not in text
    assert "\\x1b[2J[bold]\\n" in text.replace("\n", "").replace(" ", "")
    assert max(map(len, text.splitlines())) <= width
    assert one_line("x" * 201).endswith(" ...")


def test_what_comes_next_begins_at_the_newest_state_before_it() -> None:
    assert [line.partition("    ")[0] for line in commands("runs/a", 40, [10, 30, 50])] == [
        "trainwell train runs/a@40 --steps 1",
        "trainwell train runs/a@30 --run NEW --skip 200",
    ]
    assert commands("runs/a", 900, [100])[1].startswith("trainwell train runs/a@100 --run NEW --skip 1602 ")
    assert len(commands("runs/a", 40, [50])) == 1
    assert "what to do next\n  type this" in printed(an_incident(), "type this")
