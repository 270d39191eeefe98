"""What the lm-evaluation-harness is told about a model, and tasks of one's own that it runs without a network."""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer, Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, DataError
from trainwell.harness import HarnessModel, run_tasks
from trainwell.model.gpt2 import GPT2

Make = Callable[..., GPT2]

pytestmark = pytest.mark.usefixtures("one_thread")

MERGES = [
    ("k", "n"),
    ("o", "w"),
    ("kn", "ow"),
    ("Ġ", "know"),
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "t"),
    ("Ġt", "i"),
    ("Ġ", "Ġ"),
]
SMALL: dict[str, Any] = {"vocab_size": 266, "seq_len": 24, "tie_head": False, "dtype": torch.float64}

ROWS: list[dict[str, Any]] = [
    {"question": "the tide", "choices": ["turns", "knows it", "sleeps"], "answer": 0},
    {"question": "every boat", "choices": ["and", "turns", "it"], "answer": 1},
    {"question": "who knows", "choices": ["it?", "the boat", "you"], "answer": 2},
    {"question": "the boat and", "choices": ["the tide", "sleep", "it"], "answer": 0},
]
TASK: dict[str, Any] = {
    "task": "tides",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "tides.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def merging(tmp_path: Path) -> Tokenizer:
    """A tokenizer.json whose ids of a text are not those of its two halves put together."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES), "<|endoftext|>"]
    inner = Inner(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(str(tmp_path / "tokenizer.json"))


def write_task(folder: Path, **changes: Any) -> Path:
    """A task file and its data beside it; None removes a key."""
    folder.mkdir(exist_ok=True)
    (folder / "tides.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    content = {key: value for key, value in (TASK | changes).items() if value is not None}
    path = folder / f"{content.get('task', 'none')}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@torch.no_grad()
def log_probability(model: nn.Module, context: str, continuation: str) -> float:
    """Of each byte of the continuation, given all bytes before it: added up one after another."""
    total, ids = 0.0, list(context.encode())
    for byte in continuation.encode():
        total += model(torch.tensor([ids]))[0, -1].double().log_softmax(0)[byte].item()
        ids.append(byte)
    return total


# The numbers in the next three tests are those of HFLM, the harness's own adapter (lm_eval 0.4.13), on a transformers
# GPT2LMHeadModel with the same weights in float64 and the same tokenizer.json.


def test_log_likelihoods_are_those_of_the_harness_for_the_same_weights(gpt2_of: Make, merging: Tokenizer) -> None:
    found = HarnessModel(gpt2_of(**SMALL), merging, 24).loglikelihood(
        [
            ("the tide", " turns"),
            ("every boat ", "knows it"),  # its space goes to the continuation
            ("", " and it"),
            ("the tide turns " * 4, "knows"),  # longer than the context
            ("x", "yyy"),
            ("it k", "nows it"),  # ids that go over the border
        ]
    )
    assert [total for total, _ in found] == pytest.approx(
        [
            -27.498873161815997,
            -27.899428870894916,
            -40.19709361097464,
            -11.634379459590264,
            -16.79264670463279,
            -16.862852117415088,
        ],
        abs=1e-9,
    )
    assert not any(greedy for _, greedy in found)


def test_rolling_log_likelihoods_are_those_of_the_harness_for_the_same_weights(
    gpt2_of: Make, merging: Tokenizer
) -> None:
    texts = ["the tide turns and every boat knows it " * 3, "it", "boats know the tide here."]
    found = HarnessModel(gpt2_of(**SMALL), merging, 24).loglikelihood_rolling(texts)
    assert found == pytest.approx([-510.44999516922496, -12.079485979013898, -92.70526989031694], abs=1e-9)


def test_answers_are_those_of_the_harness_for_the_same_weights(gpt2_of: Make, merging: Tokenizer) -> None:
    found = HarnessModel(gpt2_of(**SMALL), merging, 24).generate_until(
        [
            ("the tide", {"until": ["\n"], "max_gen_toks": 12}),
            ("every boat knows the tide", {"until": "o", "max_gen_toks": 8}),  # cut to leave room for the answer
        ]
    )
    assert found == ["\ufffds\x05\x1d3P\ufffd\r_SQe", "\ufffd<\ufffd\ufffd;\u0657\ufffd"]


def test_a_continuation_that_the_model_itself_would_give_is_greedy() -> None:
    class Next(nn.Module):
        """After each byte comes the next one."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.eye(257).roll(1, 1) * 9)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table[ids]

    answers = HarnessModel(Next(), BytesTokenizer(), 16)
    assert [greedy for _, greedy in answers.loglikelihood([("ab", "cd"), ("ab", "ce"), ("ab", "")])] == [
        True,
        False,
        True,
    ]
    asked = [("abc", {"until": ["gh"], "max_new_tokens": 9}), ("abc", {"until": "h", "max_gen_toks": 3}), ("~", {})]
    assert answers.generate_until(asked)[:2] == ["def", "def"]
    assert answers.generate_until(asked)[2].startswith("\x7f")
    assert answers.generate_until([("abc", {"max_gen_toks": 40})]) == [
        bytes(range(ord("d"), ord("d") + 40)).decode(errors="replace")  # past the context, which moves along
    ]


def test_an_answer_ends_with_an_end_of_text() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(257).index_fill(0, torch.tensor(256), 9.0))

        def forward(self, ids: Tensor) -> Tensor:
            return self.logits.expand(*ids.shape, 257)

    assert HarnessModel(Ends(), BytesTokenizer(), 16).generate_until([("a", {})]) == [""]


def test_an_answer_is_drawn_only_where_a_task_asks_for_it(gpt2_of: Make) -> None:
    answers = HarnessModel(gpt2_of(vocab_size=257, seq_len=24), BytesTokenizer(), 24)

    def answer(**how: Any) -> str:
        return answers.generate_until([("the", {"max_gen_toks": 12} | how)])[0]

    assert answer() == answer(do_sample=False, temperature=0.7) == answer(do_sample=True, temperature=5.0, top_k=1)
    assert answer() != answer(do_sample=True, temperature=5.0)


def test_text_after_nothing_needs_an_end_of_text(gpt2_of: Make) -> None:
    answers = HarnessModel(gpt2_of(), CharsTokenizer("abc", ends_texts=False), 12)
    assert len(answers.loglikelihood([("a", "b")])) == 1
    for ask in (
        lambda: answers.loglikelihood([("", "b")]),
        lambda: answers.loglikelihood_rolling(["b"]),
        lambda: answers.generate_until([("", {})]),
    ):
        with pytest.raises(ConfigError, match="tokenizer chars has none; train with bytes or gpt2"):
            ask()


def test_without_the_package_it_says_what_to_install(gpt2_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.api.model", raising=False)
    with pytest.raises(ConfigError, match=r"lm_eval is not installed; run: pip install 'trainwell\[eval\]'"):
        run_tasks(gpt2_of(), BytesTokenizer(), ["hellaswag"], context=12)


@pytest.fixture
def model(gpt2_of: Make) -> GPT2:
    return gpt2_of(vocab_size=257, seq_len=64)


@pytest.mark.slow
def test_a_task_file_is_run_and_scored_as_by_hand(model: GPT2, own_folders: Path) -> None:
    path = write_task(own_folders / "tasks")
    found = run_tasks(model, BytesTokenizer(), [str(path)], context=64)
    won = [
        max(range(3), key=lambda n: log_probability(model, row["question"], f" {row['choices'][n]}")) == row["answer"]
        for row in ROWS
    ]
    share = sum(won) / 4
    assert found == {
        "tides": {
            "samples": 4,
            "shots": 0,
            "metrics": {"acc": {"value": share, "stderr": pytest.approx((share * (1 - share) / 3) ** 0.5)}},
        }
    }
    (fewer,) = run_tasks(model, BytesTokenizer(), [str(path)], context=64, limit=2).values()
    assert fewer["samples"] == 2
    assert fewer["metrics"]["acc"]["value"] == sum(won[:2]) / 2


@pytest.mark.slow
def test_tasks_that_generate_or_measure_perplexity_are_run_too(model: GPT2, own_folders: Path) -> None:
    with torch.no_grad():
        ids = list(b"the tide")
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    greedy = bytes(ids[8:]).decode(errors="replace")
    (own_folders / "answers.jsonl").write_text(
        "".join(json.dumps({"question": "the tide", "answer": answer}) + "\n" for answer in (greedy, "no"))
    )
    shared = {"dataset_kwargs": {"data_files": {"test": ["answers.jsonl"]}}, "doc_to_choice": None}
    generates = write_task(
        own_folders,
        task="says",
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n\n"], "max_gen_toks": 5},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **shared,
    )
    rolls = write_task(
        own_folders,
        task="reads",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        **shared,
    )
    found = run_tasks(model, BytesTokenizer(), [str(generates), str(rolls)], context=64)
    assert found["says"]["metrics"]["exact_match"]["value"] == 0.5
    with torch.no_grad():
        read = model(torch.tensor([[256, *b"the tid"]]))[0].double().log_softmax(-1)
    nats = -sum(read[place, byte].item() for place, byte in enumerate(b"the tide"))
    bits = found["reads"]["metrics"]["bits_per_byte"]
    assert bits["value"] == pytest.approx(nats / 8 / torch.tensor(2.0).log().item(), rel=1e-6)
    assert bits["stderr"] is None


@pytest.mark.slow
def test_a_folder_is_all_tasks_in_it_and_a_group_finds_its_own(model: GPT2, own_folders: Path) -> None:
    folder = own_folders / "tasks"
    write_task(folder)
    write_task(folder, task="others")
    (folder / "notes.yaml").write_text("just: notes")
    assert run_tasks(model, BytesTokenizer(), [str(folder)], context=64).keys() == {"tides", "others"}
    (folder / "all.yml").write_text(
        yaml.safe_dump({"group": "both", "task": ["tides", "others"], "aggregate_metric_list": [{"metric": "acc"}]})
    )
    found = run_tasks(model, BytesTokenizer(), [str(folder / "all.yml")], context=64)
    assert found.keys() == {"both", "tides", "others"}
    assert found["both"]["metrics"]["acc"]["value"] == found["tides"]["metrics"]["acc"]["value"]


@pytest.mark.slow
def test_functions_beside_a_task_file_are_found(model: GPT2, own_folders: Path) -> None:
    path = write_task(own_folders / "tasks")
    (path.parent / "mine.py").write_text("def question(doc):\n    return doc['question'].upper()\n")
    text = path.read_text().replace("'{{question}}'", "!function mine.question")
    assert "!function" in text
    path.write_text(text)
    (found,) = run_tasks(model, BytesTokenizer(), [str(path)], context=64).values()
    won = [
        max(range(3), key=lambda n: log_probability(model, row["question"].upper(), f" {row['choices'][n]}"))
        == row["answer"]
        for row in ROWS
    ]
    assert found["metrics"]["acc"]["value"] == sum(won) / 4


@pytest.mark.slow
def test_running_tasks_says_nothing_and_leaves_everything_as_it_was(
    gpt2_of: Make, own_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = gpt2_of(vocab_size=257, seq_len=64, dropout=0.5).train()
    path = write_task(own_folders / "tasks", metric_list=None)  # which the harness has something to say about
    run_tasks(model, BytesTokenizer(), [str(path)], context=64)  # importing the harness sets a variable of its own
    state, dice, environment = torch.get_rng_state(), random.getstate(), dict(os.environ)
    run_tasks(model, BytesTokenizer(), [str(path)], context=64)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == dice
    assert model.training
    assert sorted(file.name for file in path.parent.iterdir()) == ["tides.jsonl", "tides.yaml"]
    assert dict(os.environ) == environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["none.yaml"], "--tasks: there is no file or folder none.yaml (looked in "),
        (["empty"], "--tasks: no file in empty is a task; one is a .yaml with the key task"),
        (["notes.yaml"], "--tasks: notes.yaml is no task; give it a name with the key task"),
        (["broken.yaml"], "--tasks: broken.yaml cannot be read: "),
        (["tides.yaml", "again.yaml"], "--tasks: two task files have the name tides; give each a name of its own"),
        (["lost.yaml"], "--tasks: lost cannot be loaded: "),
        (["wrong.yaml"], "--tasks: wrong cannot be loaded: "),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_a_task_that_cannot_be_run_is_one_message(model: GPT2, own_folders: Path, tasks: list[str], said: str) -> None:
    write_task(own_folders)
    (own_folders / "empty").mkdir()
    (own_folders / "notes.yaml").write_text("just: notes")
    (own_folders / "broken.yaml").write_text("task: [")
    (own_folders / "again.yaml").write_text((own_folders / "tides.yaml").read_text())
    write_task(own_folders, task="lost", dataset_kwargs={"data_files": {"test": "lost.jsonl"}})
    write_task(own_folders, task="wrong", doc_to_text="{{quest.ion}}")
    with pytest.raises((ConfigError, DataError)) as caught:
        run_tasks(model, BytesTokenizer(), tasks, context=64)
    assert str(caught.value).startswith(said)


@pytest.mark.slow
def test_a_name_that_the_harness_lacks_is_answered_with_near_ones(model: GPT2) -> None:
    with pytest.raises(ConfigError, match="the harness has no task 'helaswag'; did you mean hellaswag "):
        run_tasks(model, BytesTokenizer(), ["helaswag"], context=64)


@pytest.mark.slow
def test_nothing_is_fetched(model: GPT2, own_folders: Path) -> None:
    path = write_task(own_folders, task="far", dataset_path="trainwell/nowhere", dataset_kwargs=None)
    with pytest.raises(
        DataError, match=r"far cannot be loaded: .*Offline.*\. Data that is not on this machine is fetched"
    ):
        run_tasks(model, BytesTokenizer(), [str(path)], context=64)
