"""HellaSwag: the file as it is published, and the same winners as one ending at a time finds."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from trainwell.data.tokenizer import BytesTokenizer, CharsTokenizer
from trainwell.errors import DataError
from trainwell.hellaswag import HellaSwagScore, Question, hellaswag, likelihoods, read_hellaswag
from trainwell.model.gpt2 import GPT2

Make = Callable[..., GPT2]

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["the", "tide", "turns", "and", "every", "boat", "knows", "it"]
PUBLISHED = {
    "ind": 24,
    "activity_label": "Sailing",
    "ctx_a": "A man stands in a boat.",
    "ctx_b": "he",
    "ctx": "A man stands in a boat. he",
    "split": "val",
    "split_type": "indomain",
    "label": 3,
    "endings": ["sings.", "sleeps all day.", "turns into a tide.", "rows."],
    "source_id": "activitynet~v_x",
}


def questions(count: int, seed: int = 0, longest: int = 9) -> list[Question]:
    dice = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))

    return [Question(words(longest), tuple(words(5) for _ in range(4)), dice.randrange(4)) for _ in range(count)]


def file(folder: Path, *lines: str | dict[str, Any]) -> Path:
    path = folder / "hellaswag.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


@torch.no_grad()
def losses_of(model: nn.Module, beginning: str, ending: str) -> Tensor:
    """The loss of each token of an ending, by itself: no batch, nothing filled up."""
    known, asked = list(beginning.encode()), list(f" {ending}".encode())
    ids = torch.tensor([known + asked])
    logits = model(ids[:, :-1])[0].double()
    return cross_entropy(logits[len(known) - 1 :], ids[0, len(known) :], reduction="none")


def one_at_a_time(model: nn.Module, asked: list[Question]) -> HellaSwagScore:
    by_sum = by_mean = 0
    for question in asked:
        losses = [losses_of(model, question.context, ending) for ending in question.endings]
        by_sum += int(torch.stack([loss.sum() for loss in losses]).argmin()) == question.label
        by_mean += int(torch.stack([loss.mean() for loss in losses]).argmin()) == question.label
    return HellaSwagScore(by_sum / len(asked), by_mean / len(asked), len(asked))


def test_the_winners_are_those_of_one_ending_at_a_time(gpt2_of: Make) -> None:
    model, asked = gpt2_of(vocab_size=257, seq_len=96, dropout=0.5), questions(40)
    score = hellaswag(model.train(), BytesTokenizer(), asked, context=96)
    assert score == one_at_a_time(model.eval(), asked)
    assert score.count == 40
    assert score.accuracy != score.accuracy_norm


class SaysA(nn.Module):
    """Finds the letter a likeliest, whatever came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(257).index_fill(0, torch.tensor(ord("a")), 9.0))

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits.expand(*ids.shape, 257)


def test_an_ending_wins_by_its_own_tokens_and_by_their_mean_whatever_its_length() -> None:
    endings = ("aaaaaaaa", "bb", "cccc", "dd")
    asked = [Question("bcd" * label, (*endings[4 - label :], *endings[: 4 - label]), label) for label in range(4)]
    assert hellaswag(SaysA(), BytesTokenizer(), asked, context=64) == HellaSwagScore(1.0, 1.0, 4)
    endings = ("aaaaaaaab", "b", "cccc", "dd")  # two bytes are unlikely in the first two, of 10 and of 2
    asked = [Question("bcd", endings, 0), Question("bcd", endings, 1)]
    assert hellaswag(SaysA(), BytesTokenizer(), asked, context=64) == HellaSwagScore(0.5, 0.5, 2)
    assert hellaswag(SaysA(), BytesTokenizer(), asked[:1], context=64).accuracy_norm == 1.0
    assert hellaswag(SaysA(), BytesTokenizer(), asked[1:], context=64).accuracy == 1.0


@given(st.integers(0, 99), st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=9))
@examples(max_examples=15)
def test_how_rows_share_a_batch_changes_no_likelihood(gpt2_of: Make, seed: int, shapes: list[tuple[int, int]]) -> None:
    model, generator = gpt2_of(dtype=torch.float64), Generator().manual_seed(seed)
    rows = [(torch.randint(19, (length,), generator=generator).tolist(), asked) for length, asked in shapes]
    together = likelihoods(model, rows, context=12)
    alone = [likelihoods(model, [row], context=12)[0] for row in rows]
    assert [found.count for found in together] == [min(asked, length - 1, 12) for length, asked in shapes]
    assert [found.total for found in together] == pytest.approx([found.total for found in alone], abs=1e-12)
    assert [found.greedy for found in together] == [found.greedy for found in alone]


def test_what_is_longer_than_the_context_is_cut_on_the_left(gpt2_of: Make) -> None:
    model = gpt2_of(dtype=torch.float64)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    (found,) = likelihoods(model, [(ids, 4)], context=8)
    logits = model(torch.tensor([ids[-9:-1]]))[0]
    expected = -cross_entropy(logits[-4:], torch.tensor(ids[-4:]), reduction="sum").item()
    assert found.total == pytest.approx(expected, abs=1e-12)
    assert found.mean == pytest.approx(expected / 4, abs=1e-12)


def test_only_the_likeliest_ids_are_greedy(gpt2_of: Make) -> None:
    model = gpt2_of()
    ids = [1, 2]
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 19]
    assert [found.greedy for found in likelihoods(model, [(ids, 5), (other, 5), (other, 0)], context=12)] == [
        True,
        False,
        True,
    ]


def test_ids_that_only_pad_the_vocabulary_can_be_left_out(gpt2_of: Make) -> None:
    model, row = gpt2_of(dtype=torch.float64), ([1, 2, 3, 4], 3)
    narrow = model(torch.tensor([row[0][:-1]]))[0, :, :11]
    expected = -cross_entropy(narrow, torch.tensor(row[0][1:]), reduction="sum").item()
    assert likelihoods(model, [row], context=12, vocab_size=11)[0].total == pytest.approx(expected, abs=1e-12)


def test_logits_may_come_in_an_object(gpt2_of: Make) -> None:
    class InAnObject(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: Tensor) -> Any:
            return SimpleNamespace(logits=self.inner(ids))

    model, asked = gpt2_of(vocab_size=257, seq_len=96), questions(5)
    expected = hellaswag(model, BytesTokenizer(), asked, context=96)
    assert hellaswag(InAnObject(model), BytesTokenizer(), asked, context=96) == expected


def test_scoring_leaves_the_mode_and_the_random_numbers_alone(gpt2_of: Make) -> None:
    model = gpt2_of(vocab_size=257, seq_len=96, dropout=0.5).train()
    state = torch.get_rng_state()
    scores = {hellaswag(model, BytesTokenizer(), questions(3), context=96) for _ in range(2)}
    assert len(scores) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_narrow_forward_pass_gives_numbers_too(gpt2_of: Make) -> None:
    model = gpt2_of(vocab_size=257, seq_len=96)
    wide, narrow = (
        likelihoods(model, [(list(b"the tide"), 5)], context=96, autocast=autocast)[0]
        for autocast in (None, torch.bfloat16)
    )
    assert narrow.total != wide.total
    assert narrow.total == pytest.approx(wide.total, rel=1e-2)


def test_text_that_the_tokenizer_lacks_is_said(gpt2_of: Make) -> None:
    with pytest.raises(DataError, match="the character 'k'"):
        hellaswag(gpt2_of(), CharsTokenizer(" abcdehinortuvy", ends_texts=False), questions(9), context=12)


def test_the_published_form_is_read(tmp_path: Path) -> None:
    plain = {"ctx": "It rains", "endings": ["a", "b", "c", "d"], "label": "0"}
    (first, second) = read_hellaswag(file(tmp_path, PUBLISHED, "", plain))
    assert first == Question("A man stands in a boat. he", tuple(PUBLISHED["endings"]), 3)  # type: ignore[arg-type]
    assert second == Question("It rains", ("a", "b", "c", "d"), 0)


@pytest.mark.parametrize(
    ("halves", "beginning"),
    [
        ({"ctx_a": "A man stands in a boat.", "ctx_b": "he"}, "A man stands in a boat. he"),
        ({"ctx_a": "A man stands in a boat.", "ctx_b": ""}, "A man stands in a boat."),
        ({"ctx_a": "A man stands in a boat."}, "A man stands in a boat."),
    ],
)
def test_a_beginning_may_come_in_halves(tmp_path: Path, halves: dict[str, str], beginning: str) -> None:
    line = {key: PUBLISHED[key] for key in ("endings", "label")} | halves
    assert read_hellaswag(file(tmp_path, line))[0].context == beginning


NO_QUESTIONS: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "it is not JSON ("),
    "nested": ("[" * 100_000, "it is not JSON ("),
    "ten megabytes": ("x" * 10_000_000, "it is not JSON ("),
    "a list": ("[1]", "it is a list; each line is one question, an object"),
    "an empty beginning": (PUBLISHED | {"ctx": ""}, "there is no beginning; give its text as ctx, or as ctx_a and"),
    "no beginning": ({"endings": PUBLISHED["endings"], "label": 0}, "there is no beginning"),
    "three endings": (PUBLISHED | {"endings": ["a", "b", "c"]}, "endings must be a list of 4 texts that are not empty"),
    "an empty ending": (PUBLISHED | {"endings": ["a", "b", "c", " "]}, "endings must be a list of 4 texts"),
    "no endings": (PUBLISHED | {"endings": None}, "endings must be a list of 4 texts"),
    "label 4": (PUBLISHED | {"label": 4}, "label is '4'; allowed are 0 to 3"),
    "label true": (PUBLISHED | {"label": True}, "label is 'True'; allowed are 0 to 3"),
    "no label": (PUBLISHED | {"label": ""}, "The published test set has none: use the validation set"),
    "a list of labels": (PUBLISHED | {"label": [0]}, "label is '[0]'; allowed are 0 to 3"),
}


@pytest.mark.parametrize("name", NO_QUESTIONS)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, name: str) -> None:
    line, said = NO_QUESTIONS[name]
    path = file(tmp_path, PUBLISHED, line)
    with pytest.raises(DataError) as caught:
        read_hellaswag(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_hellaswag(file(tmp_path, ""))
    with pytest.raises(DataError, match=r"eval\.hellaswag: none\.jsonl cannot be read: No such file"):
        read_hellaswag("none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"ctx": "\xe9"}\n')
    with pytest.raises(DataError, match="line 1: it is not JSON"):
        read_hellaswag(tmp_path / "latin.jsonl")
