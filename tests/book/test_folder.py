"""`train_model(run=...)`: the same numbers, and a run folder that can be continued, plotted and shown."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from trainwell.book import folder, train_model
from trainwell.checkpoint.layout import saved_steps
from trainwell.cli.app import main
from trainwell.config.load import load
from trainwell.errors import ConfigError
from trainwell.report.load import load_run

pytestmark = pytest.mark.usefixtures("one_thread", "own_folders")

Prepare = Callable[..., dict[str, Any]]
SCHEDULE: dict[str, Any] = {
    "n_epochs": 3,
    "eval_freq": 2,
    "eval_iter": 1,
    "warmup_steps": 4,
    "initial_lr": 1e-4,
    "min_lr": 1e-4,
}
RUN = Path("runs") / "verdict"


class Breaks(DataLoader[Any]):
    """A loader that fails after so many batches in all; evaluations count."""

    left = 10**9

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


def breaking(loader: Any, after: int) -> Breaks:
    made = Breaks(loader.dataset, batch_size=2, shuffle=True, drop_last=loader.drop_last, generator=loader.generator)
    made.left = after
    return made


def test_a_run_folder_changes_no_number(notebook: Prepare, ours: SimpleNamespace) -> None:
    outcomes = []
    for run in (None, RUN):
        cell = notebook(ours)
        lists = train_model(**cell, **SCHEDULE, run=run)
        weights = [tensor.tolist() for tensor in cell["model"].parameters()]
        outcomes.append((lists, weights, torch.rand(()).item()))
    assert outcomes[0] == outcomes[1]


def test_the_lines_of_the_book_come_first_and_then_those_of_the_run(
    notebook: Prepare, ours: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    train_model(**notebook(ours), **SCHEDULE)
    alone = capsys.readouterr().out
    train_model(**notebook(ours), **SCHEDULE, run=RUN)
    beside = capsys.readouterr().out
    assert beside.startswith(alone)
    said = beside.removeprefix(alone).splitlines()
    assert [line.partition(":")[0] for line in said[-2:]] == ["plots", "report"]


@pytest.mark.parametrize(
    ("every", "batches", "drop_last"),
    [(500, 4, True), (500, 14, True), (1, 4, True), (1, 10, False), (1, 20, True), (2, 17, False)],
)
def test_a_training_that_was_stopped_continues_as_if_it_had_not_been(
    notebook: Prepare, ours: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, every: int, batches: int, drop_last: bool
) -> None:
    monkeypatch.setattr(folder, "SAVE_EVERY", every)
    cell = notebook(ours, drop_last=drop_last)
    expected = train_model(**cell, **SCHEDULE)
    weights, drawn = [tensor.tolist() for tensor in cell["model"].parameters()], torch.rand(()).item()

    cell = notebook(ours, drop_last=drop_last)
    with pytest.raises(KeyboardInterrupt):
        train_model(**cell | {"train_loader": breaking(cell["train_loader"], batches)}, **SCHEDULE, run=RUN)
    assert saved_steps(RUN / "checkpoints")

    cell = notebook(ours, drop_last=drop_last)
    torch.manual_seed(99)  # another process would have drawn something else by now
    found = train_model(**cell, **SCHEDULE, run=RUN)
    assert found == expected
    assert [tensor.tolist() for tensor in cell["model"].parameters()] == weights
    assert torch.rand(()).item() == drawn
    assert [row["train/lr"] for row in load_run(RUN).train] == expected[3]


def test_the_cell_that_was_interrupted_in_its_first_epoch_can_be_run_again_with_the_same_objects(
    notebook: Prepare, ours: SimpleNamespace
) -> None:
    expected = train_model(**notebook(ours), **SCHEDULE)
    cell = notebook(ours)
    with pytest.raises(KeyboardInterrupt):
        train_model(**cell | {"train_loader": breaking(cell["train_loader"], 4)}, **SCHEDULE, run=RUN)
    assert saved_steps(RUN / "checkpoints") == [0]
    assert train_model(**cell, **SCHEDULE, run=RUN) == expected


def test_a_loader_with_a_generator_of_its_own_continues_too(notebook: Prepare, ours: SimpleNamespace) -> None:
    def cell() -> dict[str, Any]:
        made = notebook(ours)
        own = torch.Generator().manual_seed(5)
        loader = DataLoader(made["train_loader"].dataset, batch_size=2, shuffle=True, drop_last=True, generator=own)
        return made | {"train_loader": loader}

    expected = train_model(**cell(), **SCHEDULE)
    stopped = cell()
    with pytest.raises(KeyboardInterrupt):
        train_model(**stopped | {"train_loader": breaking(stopped["train_loader"], 12)}, **SCHEDULE, run=RUN)
    assert train_model(**cell(), **SCHEDULE, run=RUN) == expected


def test_the_same_cell_can_be_run_again_with_the_same_objects(notebook: Prepare, ours: SimpleNamespace) -> None:
    expected = train_model(**notebook(ours), **SCHEDULE)
    cell = notebook(ours)
    cell["train_loader"] = loader = breaking(cell["train_loader"], 12)
    with pytest.raises(KeyboardInterrupt):
        train_model(**cell, **SCHEDULE, run=RUN)
    loader.left = 10**9
    assert train_model(**cell, **SCHEDULE, run=RUN) == expected
    assert train_model(**cell, **SCHEDULE, run=RUN) == expected  # finished: nothing is left to do


def test_what_is_continued_is_said(
    notebook: Prepare, ours: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = notebook(ours)
    with pytest.raises(KeyboardInterrupt):
        train_model(**cell | {"train_loader": breaking(cell["train_loader"], 13)}, **SCHEDULE, run=RUN)
    capsys.readouterr()
    train_model(**notebook(ours), **SCHEDULE, run=RUN)
    assert f"continuing {RUN} from step 5 of 15" in capsys.readouterr().out


def test_a_run_with_other_settings_is_not_continued(notebook: Prepare, ours: SimpleNamespace) -> None:
    train_model(**notebook(ours), **SCHEDULE, run=RUN)
    with pytest.raises(ConfigError, match=r"schedule.warmup: 4 there, 5 wanted"):
        train_model(**notebook(ours), **SCHEDULE | {"warmup_steps": 5}, run=RUN)
    with pytest.raises(ConfigError, match=r"optim.lr: 0.01 there, 0.02 wanted"):
        train_model(**notebook(ours, lr=0.02), **SCHEDULE, run=RUN)
    for change, word in (
        ({"eval_freq": 3}, "eval_freq"),
        ({"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2)}, "SGD"),
        (
            {"train_loader": lambda loader: DataLoader(loader.dataset, batch_size=2, drop_last=True)},
            "SequentialSampler",
        ),
    ):
        cell = notebook(ours) | SCHEDULE
        ((name, new),) = change.items()
        old = cell["model"] if name == "optimizer" else cell.get(name)
        with pytest.raises(ConfigError, match=word):
            train_model(**cell | {name: new(old) if callable(new) else new}, run=RUN)


def test_the_configuration_has_the_shape_of_the_books_model(notebook: Prepare, ours: SimpleNamespace) -> None:
    train_model(**notebook(ours), **SCHEDULE, run=RUN)
    model = load_run(RUN).config.model
    assert (model.num_layers, model.num_heads, model.width, model.dropout, model.pad_vocab_to) == (2, 2, 16, 0.1, 28)


def test_the_command_line_says_how_such_a_run_goes_on(
    notebook: Prepare, ours: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    train_model(**notebook(ours), **SCHEDULE, run=RUN)
    with pytest.raises(SystemExit):
        main(["train", str(RUN)])
    assert "continue it with the script that has it: trainwell.cli.main(...), build(...), or the same train_model" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["show", str(RUN)])
    assert "trainwell sample" not in capsys.readouterr().out


def test_a_run_needs_loaders_whose_examples_can_be_counted(notebook: Prepare, ours: SimpleNamespace) -> None:
    cell = notebook(ours)
    with pytest.raises(ConfigError, match="run: train_loader is a list"):
        train_model(**cell | {"train_loader": list(cell["train_loader"])}, **SCHEDULE, run=RUN)
    assert not RUN.exists()


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_folder_is_a_run_like_any_other(
    notebook: Prepare, ours: SimpleNamespace, capsys: pytest.CaptureFixture[str], drop_last: bool
) -> None:
    lists = train_model(**notebook(ours, drop_last=drop_last), **SCHEDULE, run=RUN)
    num_steps = len(lists[3])
    run = load_run(RUN)
    assert run.status == f"finished after {num_steps} steps"
    assert [row["train/lr"] for row in run.train] == lists[3] == [run.plan.lr(step) for step in range(num_steps)]  # type: ignore[union-attr]
    assert [row["val/loss"] for row in run.val] == lists[1]
    assert [row["step"] for row in run.val] == [step + 1 for step in range(0, num_steps, 2)]
    assert [row["tokens"] for row in run.val] == lists[2]
    assert run.train[-1]["epoch"] == 3.0
    assert [sample.step for sample in run.samples] == [num_steps // 3, num_steps * 2 // 3, num_steps]
    assert sorted(path.name for path in (RUN / "plots").iterdir()) == ["grad_norm.png", "loss.png", "lr.png"]
    clipped = [row["step"] for row in run.train if row["train/clipped"]]
    assert all(step >= SCHEDULE["warmup_steps"] for step in clipped)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["show", str(RUN)])
    assert ended.value.code in {0, None}
    assert f"finished after {num_steps} steps" in capsys.readouterr().out


def test_the_configuration_says_what_ran(notebook: Prepare, ours: SimpleNamespace) -> None:
    train_model(**notebook(ours), **SCHEDULE, orig_book_version=True, run=RUN)
    config = load(None, file=RUN / "config.yaml")
    assert (config.name, config.seed, config.batch_size, config.data.seq_len) == ("verdict", 123, 2, 12)
    assert (config.optim.lr, config.optim.betas, config.optim.weight_decay) == (1e-2, (0.9, 0.999), 0.1)
    assert (config.schedule.dialect, config.schedule.warmup.plain()) == ("book", 4)
    assert config.optim.clip_from.plain() == 5  # type: ignore[union-attr]
    assert (config.sample.prompt, config.sample.temperature) == ("every boat", 0.0)
    assert config.custom["model"] == "trainwell.book.model:GPTModel"
    assert json.loads((RUN / "env.json").read_text())["duration"] == "3 epochs"
