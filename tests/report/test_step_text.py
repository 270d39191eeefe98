"""The text of a step: it is the text that training reads, and it is found where it stands."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainwell.config.load import load
from trainwell.data.prepare import prepare
from trainwell.data.tasks import open_data
from trainwell.errors import DataError
from trainwell.planning.resolve import Plan, resolve
from trainwell.report.step_text import text_of_step, window_indices

PlanOf = Callable[..., Plan]


@pytest.fixture
def planned(own_folders: Path) -> PlanOf:
    """Plan a tiny run on the text at a path, with the counts of that text."""

    def plan(path: Path, **changes: object) -> Plan:
        tiny: dict[str, object] = {"duration": 30, "batch_size": 4, "micro_batch": 2, "data.path": str(path)}
        tiny |= {"data.seq_len": 16, "data.val_fraction": 0.25, "schedule.warmup": 1}
        tiny |= {key.replace("__", "."): value for key, value in changes.items()}
        config = load("demo", flags=tiny)
        return resolve(config, prepare(config.data).info)

    return plan


RAMP: dict[str, object] = {"batch_ramp__from_tokens": 16, "batch_ramp__over": "900 tokens"}
SKIP: dict[str, object] = {**RAMP, "data__skip": "2+5, 7+3"}


@pytest.mark.parametrize("changes", [{}, {"data__order": "sequential"}, {"data__stride": 5, "seed": 3}, RAMP, SKIP])
def test_the_windows_are_those_that_training_reads(planned: PlanOf, text: Path, changes: dict[str, object]) -> None:
    import torch

    from trainwell.data.batches import Batches, Windows

    plan = planned(text, **changes)
    config, store = plan.config, prepare(plan.config.data)
    windows = Windows(store.train, plan.seq_len, config.data.stride or plan.seq_len)
    assert len(windows) == plan.num_windows
    batches = Batches(
        windows, plan.batch, micro_batch=2, seed=config.seed, order=config.data.order, device=torch.device("cpu")
    )
    for step in range(plan.num_steps):  # some three passes over the text
        assert window_indices(plan, step) == batches.indices(step).tolist()
    shown = text_of_step(plan, 7)
    inputs = [row for micro in batches(7).micro_batches for row in micro.inputs]
    for window, row in zip(shown.windows, inputs, strict=False):
        assert window.text == store.tokenizer.decode(row.tolist())
        assert window.first_token == window.index * (config.data.stride or 16)


def test_a_window_of_one_text_says_where_in_the_text_it_is(planned: PlanOf, text: Path) -> None:
    plan, said = planned(text), text.read_text()
    for step in (0, 5, 29):
        for window in text_of_step(plan, step).windows:
            assert window.place is not None
            assert said[window.place :].startswith(window.text)
            assert (window.sources, window.unit) == ((str(text),), "byte")


def test_examples_and_passes_are_counted_from_the_start_of_the_run(planned: PlanOf, text: Path) -> None:
    plan = planned(text)
    shown = text_of_step(plan, 29, most=2)
    assert [window.example for window in shown.windows] == [116, 117]
    assert [window.epoch for window in shown.windows] == [116 // plan.num_windows, 117 // plan.num_windows]
    assert len(shown.indices) == 4


def test_what_is_skipped_counts_in_the_number_and_the_pass_of_a_window(planned: PlanOf, text: Path) -> None:
    plan, plain = planned(text, data__skip="3+20"), planned(text)
    shown, later = text_of_step(plan, 5), text_of_step(plain, 25)
    assert shown == later
    assert [window.epoch for window in shown.windows] == [number // plan.num_windows for number in (100, 101, 102)]
    assert text_of_step(plan, 2) == text_of_step(plain, 2)


def test_characters_are_counted_where_tokens_are_longer(planned: PlanOf, text: Path) -> None:
    text.write_text("Æ " + text.read_text())
    plan = planned(text, data__tokenizer="gpt2", data__seq_len=8)
    for window in text_of_step(plan, 3).windows:
        assert window.unit == "character"
        assert window.place is not None
        assert text.read_text()[window.place :].startswith(window.text)


@pytest.mark.parametrize(("tokenizer", "split"), [("bytes", "documents"), ("chars", "tail"), ("gpt2", "documents")])
def test_of_several_texts_the_file_is_named(planned: PlanOf, tmp_path: Path, tokenizer: str, split: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"text {number} begins and says {number} until it ends " * 3)
    plan = planned(folder, data__tokenizer=tokenizer, data__split=split, data__seq_len=12, duration=10)
    for step in range(10):
        for window in text_of_step(plan, step).windows:
            first = Path(window.sources[0]).read_text()
            assert window.place is not None
            inside = window.text.split("<|endoftext|>")[0]
            assert first[window.place :].startswith(inside)
            following = window.text.split("<|endoftext|>")[1:]
            assert [
                Path(source).read_text().startswith(part)
                for source, part in zip(window.sources[1:], following, strict=False)
            ] == [True] * len(window.sources[1:])


def test_a_text_that_was_changed_is_not_shown(planned: PlanOf, text: Path) -> None:
    plan = planned(text)
    text.write_text(text.read_text() + " and one more")
    with pytest.raises(DataError, match="is not what the run read: it has 684 training tokens"):
        text_of_step(plan, 0)


def test_a_text_that_is_gone_is_said_to_be(planned: PlanOf, text: Path) -> None:
    plan = planned(text)
    text.unlink()
    with pytest.raises(DataError, match="does not exist"):
        text_of_step(plan, 0)


def test_data_given_in_python_is_not_looked_for(planned: PlanOf, text: Path) -> None:
    plan = planned(text)
    given = replace(plan, config=plan.config.model_copy(update={"custom": {"data": "mine.py:Texts"}}))
    with pytest.raises(DataError, match=r"given in Python, by mine\.py:Texts"):
        text_of_step(given, 0)


def test_a_recipe_without_a_text_asks_for_one(own_folders: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.path"):
        text_of_step(resolve(load("gpt3-125m")), 0)


def test_a_plan_that_does_not_know_its_text_cannot_show_it(planned: PlanOf, text: Path) -> None:
    with pytest.raises(DataError, match="did not record"):
        text_of_step(replace(planned(text), info=None), 0)


def test_the_rows_of_a_task_are_those_that_training_reads(planned: PlanOf, own_folders: Path) -> None:
    Path("q.jsonl").write_text("".join(f'{{"instruction": "Say {n}", "output": "{n}"}}\n' for n in range(60)))
    Path("t.txt").write_text("Q {instruction} A {output}")
    config = load("demo", flags={**ASKED, "data.path": "q.jsonl", "data.template": "t.txt"})
    store = open_data(config.task, config.data)
    plan = resolve(config, store.info)
    shown = text_of_step(plan, 3)
    assert len(shown.indices) == 4
    for window, index in zip(shown.windows, shown.indices, strict=False):
        inputs, _, _ = store.train.gather(np.array([index]))  # type: ignore[union-attr]
        assert re.fullmatch(r"Q Say (\d+) A »\1<\|endoftext\|>«", window.text), "what is learned is marked"
        read = re.sub("[»«]", "", window.text).removesuffix("<|endoftext|>")
        assert store.tokenizer.decode(inputs[0].tolist()).startswith(read)
        assert (window.sources, window.place) == (("q.jsonl",), None)


ASKED: dict[str, object] = {
    "task": "instruct",
    "duration": 30,
    "batch_size": 4,
    "data.seq_len": 32,
    "data.val_fraction": 0.25,
}
