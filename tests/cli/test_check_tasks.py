"""`trainwell check RUN --tasks ...`: benchmarks by others on the weights of a run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trainwell.build import open_run

Command = Callable[..., Any]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [("the tide", ["turns", "and"], 0), ("every", ["tide", "boat"], 1), ("and", ["knows", "it"], 0)]


@pytest.fixture
def task(own_folders: Path) -> str:
    """A task file with its data beside it, in a folder of its own."""
    folder = own_folders / "tasks"
    folder.mkdir()
    lines = [
        json.dumps({"question": question, "choices": choices, "answer": answer}) for question, choices, answer in ROWS
    ]
    (folder / "tides.jsonl").write_text("\n".join(lines))
    content = {
        "task": "tides",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "tides.jsonl"}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tides.yaml").write_text(yaml.safe_dump(content))
    return "tasks/tides.yaml"


@torch.no_grad()
def by_hand(run: str) -> float:
    """The share of ROWS whose answer is the likeliest of its choices."""
    model, won = open_run(run).model.eval(), 0
    for question, choices, answer in ROWS:
        likely = []
        for choice in choices:
            known, asked = list(question.encode()), list(f" {choice}".encode())
            logits = model(torch.tensor([known + asked[:-1]]))[0, len(known) - 1 :]
            likely.append(logits.double().log_softmax(-1)[range(len(asked)), asked].sum().item())
        won += likely.index(max(likely)) == answer
    return won / len(ROWS)


@pytest.mark.slow
def test_what_is_measured_is_what_one_would_find_by_hand_and_at_the_step_that_was_asked_for(
    command: Command, finished: Path, task: str
) -> None:
    for target, step in ((str(finished), 12), (f"{finished}@4", 4)):
        said = command("check", target, "--tasks", task, "--json")
        assert (said.code, said.err) == (0, "")
        facts = json.loads(said.out)
        assert (facts["target"], facts["step"], facts["limit"]) == (str(finished), step, None)
        assert facts["tasks"].keys() == {"tides"}
        assert facts["tasks"]["tides"]["samples"] == 3
        assert facts["tasks"]["tides"]["metrics"]["acc"]["value"] == pytest.approx(by_hand(target))


@pytest.mark.slow
def test_the_table_has_a_line_for_each_metric(command: Command, finished: Path, task: str) -> None:
    said = command("check", str(finished), "--tasks", task, "--limit", "2")
    assert (said.code, said.err) == (0, "")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == [str(finished), "at", "step", "12"]
    assert ["task", "metric", "value", "stderr", "documents"] in lines
    (row,) = (line for line in lines if line[:2] == ["tides", "acc"])
    assert row[-1] == "2"
    assert all(0 <= float(number) <= 1 for number in row[2:4])


@pytest.mark.slow
def test_a_task_that_is_not_there_is_one_message(refused: Refused, finished: Path, task: str) -> None:
    said = refused(2, "check", str(finished), "--tasks", f"{task}, none.yaml")
    assert said.startswith("--tasks: there is no file or folder none.yaml (looked in ")
    (Path("tasks") / "tides.jsonl").unlink()
    said = refused(65, "check", str(finished), "--tasks", task)
    assert said.startswith("--tasks: tides cannot be loaded: FileNotFoundError")
    assert said.count("\n") == 1


def test_a_recipe_has_no_weights_to_ask(refused: Refused) -> None:
    assert refused(2, "check", "demo", "--tasks", "my.yaml") == (
        "--tasks asks the weights of a run, and demo is none; train one first (trainwell train demo), then: "
        "trainwell check runs/demo --tasks my.yaml\n"
    )


def test_what_does_not_go_with_tasks_is_refused(refused: Refused, finished: Path) -> None:
    run = str(finished)
    assert "is asked as it is" in refused(2, "check", run, "--tasks", "my.yaml", "--seed", "3")
    assert "--config and --strict are about a plan" in refused(2, "check", run, "--tasks", "my.yaml", "--strict")
    assert refused(2, "check", run, "--tasks", " , ").startswith("--tasks: it is empty")
    assert refused(2, "check", run, "--limit", "3") == "--limit 3 is for --tasks, and there are none\n"
    assert "Must be >= 1" in refused(2, "check", run, "--tasks", "my.yaml", "--limit", "0")


@pytest.mark.slow
def test_the_example_of_the_page_works(command: Command, finished: Path, own_folders: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"```yaml\n# tasks/keywords.yaml\n(.*?)```", page, flags=re.DOTALL)
    (lines,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    (own_folders / "tasks").mkdir()
    (own_folders / "tasks" / "keywords.yaml").write_text(task)
    (own_folders / "tasks" / "keywords.jsonl").write_text(lines)
    assert "trainwell check runs/demo --tasks tasks/keywords.yaml" in page
    said = command("check", str(finished), "--tasks", "tasks/keywords.yaml", "--json")
    assert (said.code, said.err) == (0, "")
    measured = json.loads(said.out)["tasks"]["keywords"]
    assert measured["samples"] == 3
    assert measured["metrics"].keys() == {"acc", "acc_norm"}
