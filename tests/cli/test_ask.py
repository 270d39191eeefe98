"""`trainwell sample` of fine-tuned runs: a chat, a file of questions, the label of a text."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainwell.build import open_run
from trainwell.cli.app import run
from trainwell.cli.ask import chat, say
from trainwell.data.tokenizer import BytesTokenizer

Command = Callable[..., Any]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = {
    "batch-size": 8,
    "micro-batch": 8,
    "data.seq-len": 32,
    "data.val-fraction": 0.2,
    "model.num-layers": 1,
    "model.num-heads": 2,
    "model.width": 32,
    "optim.lr": 1e-2,
    "schedule.warmup": 2,
    "eval.every": "none",
    "checkpoint.every": "none",
    "sample.every": "none",
}
ANSWERS = {"cat": "meow", "dog": "woof"}


def write_sets(folder: Path) -> None:
    """What a cat or a dog says; which of the two a text is about."""
    dice = random.Random(3)
    animals = [dice.choice(["cat", "dog"]) for _ in range(120)]
    questions = [{"instruction": f"{each} {n}", "output": ANSWERS[each]} for n, each in enumerate(animals)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (folder / "template.txt").write_text("{instruction}?{output}")
    rows = [f"a {each} {n},{each}" for n, each in enumerate(animals)]
    (folder / "animals.csv").write_text("\n".join(["text,label", *rows]))


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the finished runs `runs/says` (instruct) and `runs/which` (classify)."""
    import torch

    folder, threads = tmp_path_factory.mktemp("tuned"), torch.get_num_threads()
    write_sets(folder)
    torch.set_num_threads(1)
    flags = [token for key, value in COMMON.items() for token in (f"--{key}", str(value))]
    says = ["--task", "instruct", "--data.path", "questions.jsonl", "--data.template", "template.txt"]
    which = ["--task", "classify", "--data.path", "animals.csv"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRAINWELL_CACHE_DIR", str(folder / "cache"))
        assert run(["train", "demo", "--run", "runs/says", "--duration", "100", *says, *flags]) == 0
        assert run(["train", "demo", "--run", "runs/which", "--duration", "60", *which, *flags]) == 0
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def tuned(tuned_once: Path, own_folders: Path) -> Path:
    """Both runs, copied into this test's own folder, without what they were trained on."""
    shutil.copytree(tuned_once / "runs", own_folders / "runs")
    return own_folders


def test_a_chat_answers_each_line_and_new_forgets(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat(open_run("runs/says"), io.StringIO("cat 7\n\n/new\ndog 9\n"), {"max_tokens": 9, "temperature": 0})
    assert capsys.readouterr() == ("meow\nwoof\n", "")


def test_a_question_that_does_not_fit_is_said_to_be_cut(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat(open_run("runs/says"), io.StringIO("cat " * 20), {"max_tokens": 1, "temperature": 0})
    assert "the question has 80 tokens, of which 32 are read" in capsys.readouterr().err


def interrupted(ids: list[int]) -> Iterator[int]:
    """An answer during which somebody types Ctrl-C."""
    yield from ids
    raise KeyboardInterrupt


def test_at_a_terminal_an_interrupt_cuts_an_answer_short_and_elsewhere_it_ends_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert say(interrupted([109, 101]), BytesTokenizer(), at_terminal=True) == "me"
    assert capsys.readouterr().out == "me"
    with pytest.raises(KeyboardInterrupt):
        say(interrupted([109, 101]), BytesTokenizer(), at_terminal=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_at_a_terminal_a_chat_asks_and_answers_until_the_input_ends(tuned: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    tokens = [sys.executable, "-m", "trainwell", "sample", "runs/says", "--chat", "--temperature", "0"]
    process = subprocess.Popen(tokens, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)

    def until(mark: bytes) -> bytes:
        seen = b""
        while not seen.endswith(mark):
            seen += os.read(ours, 1)
        return seen

    try:
        assert b"/new starts anew" in until(b"> ")
        os.write(ours, b"cat 7\n")
        assert until(b"> ").split() == [b"cat", b"7", b"meow", b">"]
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_prompt_is_a_question(command: Command, tuned: Path) -> None:
    said = command("sample", "runs/says", "--prompt", "dog 5", "--temperature", "0")
    assert said.out == "woof\n"


def test_a_file_of_questions_becomes_a_file_of_answers(command: Command, tuned: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"instruction": "cat 900", "id": 7},
        {"messages": [{"role": "user", "content": "dog 3"}]},
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    said = command("sample", "runs/says@last", "--file", "asked.jsonl", "-o", "said.jsonl", "--temperature", "0")
    assert (said.code, said.out, said.err) == (0, "wrote said.jsonl\n", "")
    found = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert found == [asked[0] | {"answer": "meow"}, asked[1] | {"answer": "woof"}]


def test_a_label_comes_with_the_probability_of_each(command: Command, tuned: Path) -> None:
    said = command("sample", "runs/which", "--label", "a dog 4")
    first, *others = said.out.splitlines()
    assert first == "dog"
    assert [line.split()[1] for line in others] == ["dog", "cat"]
    assert sum(float(line.split()[0].rstrip("%")) for line in others) == pytest.approx(100, abs=0.2)


def test_a_file_of_texts_is_labelled_on_the_screen(command: Command, tuned: Path) -> None:
    Path("texts.csv").write_text('text,who\n"a cat 3",me\n"a dog 9",you\n')
    said = command("sample", "runs/which", "--file", "texts.csv")
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["who"], row["predicted"]) for row in found] == [("me", "cat"), ("you", "dog")]
    assert all(0.5 < row["probability"] <= 1 for row in found)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["runs/says", "--label", "x"], "--label: runs/says was trained with task instruct and knows no labels"),
        (["runs/which", "--chat"], "runs/which gives labels and answers nothing; use --label TEXT"),
        (["runs/which"], "runs/which gives labels and writes no text; use --label TEXT or --file FILE"),
        (["runs/which", "--label", "  "], "--label: the text is empty; give at least one word"),
        (["runs/says", "--chat", "--label", "x"], "--chat and --label exclude each other; give one of them"),
        (["runs/says", "-o", "x.jsonl"], "--output x.jsonl is where the answers to a --file go"),
        (
            ["runs/says", "--file", "there.jsonl", "-o", "there.jsonl"],
            "--output there.jsonl: it exists; name a new file",
        ),
    ],
)
def test_a_run_that_cannot_do_it_says_what_it_can(
    refused: Refused, tuned: Path, tokens: list[str], message: str
) -> None:
    Path("there.jsonl").write_text('{"instruction": "cat 1"}\n')
    assert message in refused(2, "sample", *tokens)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "x"}', "bad.jsonl, line 1: there is no field instruction (it has question)"),
        ('{"instruction": "x"}\nno json', "bad.jsonl, line 2: broken JSON"),
        ("", "bad.jsonl is empty"),
    ],
)
def test_a_mistake_in_a_file_is_found_before_anything_is_answered(
    refused: Refused, tuned: Path, content: str, message: str
) -> None:
    Path("bad.jsonl").write_text(content)
    assert message in refused(65, "sample", "runs/says", "--file", "bad.jsonl", "-o", "said.jsonl")
    assert not Path("said.jsonl").exists()
