"""Whole runs on several ranks: the numbers, and the files, of one process; stops and failures that all share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainwell.checkpoint.layout import directory_of, read_manifest, saved_steps
from trainwell.distributed.local import run_distributed
from trainwell.runs.metrics import MetricsFile, Records
from trainwell.testing import TINY, tiny_corpus

ROOT = Path(__file__).parents[2]
CLOSE = 2e-6
"""Relative: sums of fp32 in another order."""
OF_THE_CLOCK = ("time", "train/tokens_per_sec", "train/step_ms", "train/data_ms", "train/mfu")

SMALL: dict[str, Any] = TINY | {
    "precision": "fp32",
    "eval": {"every": 4, "batches": 3},
    "log": {"plots": False, "every": 4},
}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo", SMALL | {"batch_size": 6, "micro_batch": 2, "sample": {"every": 6, "tokens": 5}}),
    "uneven": ("demo", SMALL | {"batch_size": 5, "micro_batch": 2}),
    "ramp": ("demo", SMALL | {"batch_size": 8, "batch_ramp": {"from_tokens": 32, "over": "400 tokens"}}),
    "book": (
        "demo",
        SMALL
        | {
            "model": {"num_layers": 1, "num_heads": 2, "width": 16, "dropout": 0.1, "tie_head": False, "init": "torch"},
            "optim": {"lr": 3e-3, "decay": "all"},
        },
    ),
    "llama": (
        "demo",
        SMALL | {"model": {"arch": "llama", "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "width": 16}},
    ),
    "instruct": ("instruct", SMALL | {"task": "instruct"}),
    "classify": ("classify", SMALL | {"task": "classify"}),
}

QUESTIONS = [
    {"instruction": f"Say {word} {'please ' * (number % 5)}", "input": "", "output": word * (1 + number % 4)}
    for number, word in enumerate(["tide", "boat", "turns", "knows", "every"] * 8)
]
MESSAGES = "label,text\n" + "".join(
    f"{('ham', 'spam')[number // 3 % 2]},{('see you ', 'win a boat ')[number // 3 % 2]}{'now ' * (number % 5)}\n"
    for number in range(48)
)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processes must find this module, which pytest imports in a way of its own; and share a cache."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path / "cache"))


def keys_of(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Target and keys of a kind of run, with its data written into the folder."""
    target, keys = KINDS[kind]
    data: dict[str, Any] = {"seq_len": 16, "val_fraction": 0.25, "path": str(folder / "corpus.txt")}
    if kind == "instruct":
        data = {"seq_len": 160, "val_fraction": 0.25, "path": str(folder / "questions.json"), "tokenizer": "bytes"}
        (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    elif kind == "classify":
        data = {"seq_len": 32, "val_fraction": 0.25, "path": str(folder / "messages.csv"), "tokenizer": "bytes"}
        (folder / "messages.csv").write_text(MESSAGES)
    else:
        tiny_corpus(folder)
    return target, keys | {"data": data}


def train(rank: int, size: int, folder: str, target: str, keys: dict[str, Any], until: int | None = None) -> int:
    """Train in `folder`, to the end or `until` so many steps are taken, by a stop that the last rank is asked for.

    A wish that comes after a step travels with the next one.
    """
    import torch

    import trainwell
    from trainwell.fit import steps

    torch.set_num_threads(1)
    with trainwell.build(target, run_dir=folder, **keys) as run:
        for result in steps(run):
            if until is not None and result.step == until - min(size, 2) and rank == size - 1:
                run.stop()
    return run.trainer.step


def on(size: int, folder: Path, target: str, keys: dict[str, Any], until: int | None = None) -> list[int]:
    """Train on so many ranks, in processes of their own, one alike; where each of them ended."""
    steps: list[int] = run_distributed(train, size, str(folder), target, keys, until, timeout_s=200)
    return steps


def records(folder: Path) -> Records:
    """What is on record, after a look that no line is there twice."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    places = [(row["step"], "val/loss" in row) for row in lines]
    assert len(set(places)) == len(places), "a line for each step and each evaluation"
    return MetricsFile(folder / "metrics.jsonl").read()


def assert_same(first: Path, second: Path, *, steps: int = 12) -> None:
    """The same lines with the same keys, and the same numbers to the rounding of sums."""
    a, b = records(first), records(second)
    assert len(a.train) == len(b.train) == steps
    assert len(a.val) == len(b.val) > 1
    for one, other in zip(a.train + a.val, b.train + b.val, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - set(OF_THE_CLOCK):
            close = 1e-4 if "norm" in key else CLOSE
            assert one[key] == pytest.approx(other[key], rel=close, nan_ok=True), (one["step"], key)


def tensors_of(folder: Path) -> dict[str, dict[str, list[int]]]:
    """The newest state, as it lies on disk: by file, the bits of each tensor; what else a header says has no order."""
    directory = directory_of(folder / "checkpoints", saved_steps(folder / "checkpoints")[-1])
    return {
        path.name: {name: tensor.flatten().view(torch.uint8).tolist() for name, tensor in load_file(path).items()}
        for path in directory.glob("*.safetensors")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_two_ranks_train_and_record_what_one_process_does(kind: str, tmp_path: Path) -> None:
    target, keys = keys_of(kind, tmp_path)
    on(1, tmp_path / "one", target, keys)
    assert on(2, tmp_path / "two", target, keys) == [12, 12]
    assert_same(tmp_path / "one", tmp_path / "two")
    assert saved_steps(tmp_path / "one/checkpoints") == saved_steps(tmp_path / "two/checkpoints")
    assert sorted(path.name for path in tmp_path.iterdir() if (path / "config.yaml").exists()) == ["one", "two"]
    assert json.loads((tmp_path / "two/env.json").read_text())["settings"]["parallel"] == "ddp"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_so_do_eight_of_which_some_have_no_work_in_a_step(parallel: str, tmp_path: Path) -> None:
    target, keys = keys_of("uneven", tmp_path)
    keys |= {"batch_size": 13, "micro_batch": 2}
    on(1, tmp_path / "one", target, keys)
    assert on(8, tmp_path / "eight", target, keys | {"parallel": parallel}) == [12] * 8
    assert_same(tmp_path / "one", tmp_path / "eight")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["demo", "uneven", "book", "llama", "instruct", "classify"])
def test_ranks_that_share_the_weights_do_too(kind: str, tmp_path: Path) -> None:
    target, keys = keys_of(kind, tmp_path)
    on(1, tmp_path / "one", target, keys)
    on(2, tmp_path / "two", target, keys | {"parallel": "fsdp"})
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_blocks_between_which_weights_are_gathered_can_be_compiled(tmp_path: Path) -> None:
    """In fp32 on a CPU compiled code rounds as eager code does, but for the order of a few sums."""
    target, keys = keys_of("llama", tmp_path)
    on(1, tmp_path / "one", target, keys)
    on(2, tmp_path / "two", target, keys | {"parallel": "fsdp", "compile": "blocks"})
    one, two = (records(tmp_path / name) for name in ("one", "two"))
    assert json.loads((tmp_path / "two/env.json").read_text())["settings"]["compile"] == "blocks"
    for key in ("train/loss", "val/loss"):
        ours, theirs = ([row[key] for row in found.train + found.val if key in row] for found in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_saved_on_two_ranks_goes_on_with_one_and_with_three_and_back(parallel: str, tmp_path: Path) -> None:
    target, keys = keys_of("demo", tmp_path)
    on(1, tmp_path / "whole", target, keys)
    for folder, first, then in (("a", 2, 1), ("b", 2, 3), ("c", 1, 2)):
        how = {size: keys | ({} if size == 1 else {"parallel": parallel}) for size in (1, 2, 3)}
        assert set(on(first, tmp_path / folder, target, how[first], until=6)) == {6}
        assert set(on(then, tmp_path / folder, target, keys)) == {12}
        assert_same(tmp_path / "whole", tmp_path / folder)
        meta = read_manifest(directory_of(tmp_path / folder / "checkpoints", 12)).meta
        assert meta["world_size"] == then


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_on_as_many_ranks_a_run_goes_on_bit_for_bit_after_a_stop_that_one_was_asked_for(
    parallel: str, tmp_path: Path
) -> None:
    target, keys = keys_of("book", tmp_path)
    keys |= {"parallel": parallel}
    on(2, tmp_path / "whole", target, keys)
    assert on(2, tmp_path / "parts", target, keys, until=6) == [6, 6]
    assert saved_steps(tmp_path / "parts/checkpoints")[-1] == 6
    on(2, tmp_path / "parts", target, keys)
    assert tensors_of(tmp_path / "parts") == tensors_of(tmp_path / "whole")


def fails(rank: int, size: int, folder: str, target: str, keys: dict[str, Any]) -> tuple[str, str]:
    """The error that a rank ends with."""
    from trainwell.errors import TrainwellError

    try:
        train(rank, size, folder, target, keys)
    except TrainwellError as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.slow
def test_a_mistake_in_the_configuration_is_the_same_error_on_all_ranks(tmp_path: Path) -> None:
    target, keys = keys_of("demo", tmp_path)
    for wrong, said in (
        ({"optim": {"lr": -1}}, "optim.lr"),
        ({"parallel": "none"}, "parallel: none, and 2 processes"),
        ({"parallel": "fsdp", "optim": {"name": "muon"}}, "optim.name: muon"),
        ({"parallel": "fsdp", "compile": True}, "compile: True"),
        ({"data": {"path": str(tmp_path / "gone.txt")}}, "gone.txt"),
    ):
        first, second = run_distributed(fails, 2, str(tmp_path / "run"), target, keys | wrong)
        assert first == second
        assert said in first[1]


@pytest.mark.slow
def test_a_folder_that_is_in_use_is_the_same_error_on_all_ranks(tmp_path: Path) -> None:
    from trainwell.runs.rundir import RunDir

    target, keys = keys_of("demo", tmp_path)
    with RunDir(tmp_path / "run").lock():
        first, second = run_distributed(fails, 2, str(tmp_path / "run"), target, keys)
    assert first == second
    assert first[0] == "RunBusyError"


def keep_and_fail(rank: int, size: int, folder: str, target: str, keys: dict[str, Any], step: int) -> str:
    """Train with a kept part whose state cannot be saved on rank 1 from a step on."""
    import trainwell
    from trainwell.fit import fit

    class Part:
        def state_dict(self) -> dict[str, Any]:
            if rank == 1 and run.trainer.step >= step:
                raise ValueError("the part is broken")
            return {"number": 1}

        def load_state_dict(self, state: dict[str, Any], /) -> None: ...

    run = trainwell.build(target, run_dir=folder, **keys)
    run.keep("part", Part())
    try:
        fit(run)
    except Exception as error:  # noqa: BLE001  it is what is asked for
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
def test_an_exception_on_one_rank_in_the_middle_of_a_save_ends_all_and_names_it(tmp_path: Path) -> None:
    target, keys = keys_of("demo", tmp_path)
    first, second = run_distributed(keep_and_fail, 2, str(tmp_path / "run"), target, keys, 8)
    assert second == "ValueError: the part is broken"
    assert first == "TrainwellError: rank 1: ValueError: the part is broken"
    assert saved_steps(tmp_path / "run/checkpoints") == [4]


def in_the_way(rank: int, size: int, folder: str, target: str, keys: dict[str, Any]) -> tuple[int | None, int]:
    """Train while a file is where checkpoints go, until step 6; what a rank takes for saved then, and where it ends."""
    import trainwell
    from trainwell.fit import steps

    seen: int | None = -1
    checkpoints = Path(folder) / "checkpoints"
    with trainwell.build(target, run_dir=folder, **keys) as run:
        for result in steps(run):
            if result.step == 1 and rank == 0:
                checkpoints.write_text("in the way")
            elif result.step == 6:
                run.saver.join()
                seen = run.saver.step
                checkpoints.unlink(missing_ok=True)
    return seen, run.trainer.step


@pytest.mark.slow
def test_a_save_that_fails_where_it_is_written_has_failed_on_all_ranks_and_training_goes_on(tmp_path: Path) -> None:
    target, keys = keys_of("demo", tmp_path)
    outcomes = run_distributed(in_the_way, 2, str(tmp_path / "run"), target, keys)
    assert outcomes == [(None, 12), (None, 12)]
    assert saved_steps(tmp_path / "run/checkpoints") == [8, 12]
