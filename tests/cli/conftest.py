"""The command line in this process, and one finished tiny run that many tests look at."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainwell.cli.app import run

TINY = {
    "duration": "12",
    "batch-size": "4",
    "micro-batch": "2",
    "data.seq-len": "16",
    "data.val-fraction": "0.25",
    "model.num-layers": "1",
    "model.num-heads": "2",
    "model.width": "16",
    "optim.lr": "3e-3",
    "schedule.warmup": "1",
    "eval.every": "4",
    "eval.batches": "2",
    "sample.every": "none",
    "checkpoint.every": "4",
    "log.plots": "false",
}


@dataclass(frozen=True)
class Said:
    """What one command printed, and how it ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


def flags_of(text: Path, **changes: str) -> list[str]:
    """The tiny run on `text` as flags; `model__width="32"` changes one."""
    keys = TINY | {"data.path": str(text)} | {key.replace("__", ".").replace("_", "-"): changes[key] for key in changes}
    return [token for key, value in keys.items() for token in (f"--{key}", value)]


@pytest.fixture(scope="package")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `text.txt` and the finished run `runs/tiny` trained on it."""
    import torch

    folder, threads = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    words = random.Random(7).choices(["the", "tide", "turns", "and", "every", "boat", "knows"], k=300)
    (folder / "text.txt").write_text(" ".join(words)[:900])
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRAINWELL_CACHE_DIR", str(folder / "cache"))
        assert run(["train", "demo", "--run", "runs/tiny", *flags_of(Path("text.txt"))]) == 0
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def finished(finished_once: Path, own_folders: Path) -> Path:
    """The run `runs/tiny` and its text, copied into this test's own folder, which is the current one."""
    shutil.copytree(finished_once, own_folders, dirs_exist_ok=True)
    return Path("runs/tiny")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], own_folders: Path) -> Command:
    """Run one command line and give its exit code and what it printed."""

    def call(*tokens: str) -> Said:
        capsys.readouterr()
        code = run(list(tokens))
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(command: Command) -> Callable[..., str]:
    """Run a command line that must fail with `code`, and give its message: one, on stderr, without a traceback."""

    def call(code: int, *tokens: str) -> str:
        said = command(*tokens)
        assert (said.code, said.out) == (code, "")
        assert said.err.startswith("trainwell: ")
        assert "Traceback" not in said.err
        return said.err.removeprefix("trainwell: ")

    return call


@pytest.fixture
def tiny_flags(text: Path) -> Callable[..., list[str]]:
    """The flags of the tiny run on a text of the test's own."""

    def flags(**changes: str) -> list[str]:
        return flags_of(text, **changes)

    return flags
