"""HellaSwag (Zellers et al. 2019): which of four endings does a model find likeliest? As in Karpathy's lecture.

The questions come from a file on disk. Knows no configuration and no run.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainwell.data.tokenizer import Tokenizer
from trainwell.errors import DataError
from trainwell.evaluate import evaluating

ENDINGS = 4
_TOKENS_AT_ONCE = 2048
"""So many tokens go through a model together: GPT-2's logits of them are 400 MB."""

Row = tuple[Sequence[int], int]
"""Token ids, and how many of the last ones are asked about."""


@dataclass(frozen=True)
class Question:
    """A beginning, its four endings, and the number of the true one, from 0."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class HellaSwagScore:
    """Shares of `count` questions whose true ending won: by the sum of its tokens' losses, and by their mean."""

    accuracy: float
    accuracy_norm: float
    count: int


@dataclass(frozen=True)
class Likelihood:
    """How a model finds the last ids of a row: `total` is the logarithm of their probability, of `count` ids."""

    total: float
    count: int
    greedy: bool
    """Whether each of them was the likeliest at its place."""

    @property
    def mean(self) -> float:
        """The total for each id, in nats; 0 where none was asked about."""
        return self.total / max(1, self.count)


def hellaswag(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    context: int,
    autocast: torch.dtype | None = None,
    between: Callable[[], None] | None = None,
) -> HellaSwagScore:
    """Score `model` on `questions`, at least one: an ending wins by the least loss over its own tokens.

    The beginning and a space with the ending are encoded apart, as in build-nanogpt's hellaswag.py; `accuracy_norm`,
    by the mean of the ending's losses, is the number that is usually given. A row longer than `context` + 1 ids is cut
    on the left: the beginning loses its start, and only where that is not enough the ending does. Dropout is off, no
    random number is drawn.

    Args:
        model: ids (B, T) to logits (B, T, V), or an object with `.logits`.
        tokenizer: the model's own.
        questions: as `read_hellaswag` gives them.
        context: how many ids the model can read.
        autocast: compute in this type.
        between: called before each batch; what it raises ends the scoring.

    Raises:
        DataError: for text that the tokenizer cannot encode.
    """
    rows = [row for question in questions for row in _rows(question, tokenizer)]
    found = likelihoods(model, rows, context=context, autocast=autocast, between=between)
    by_sum = by_mean = 0
    for number, question in enumerate(questions):
        endings = found[number * ENDINGS : (number + 1) * ENDINGS]
        by_sum += question.label == max(range(ENDINGS), key=lambda ending: endings[ending].total)
        by_mean += question.label == max(range(ENDINGS), key=lambda ending: endings[ending].mean)
    return HellaSwagScore(by_sum / len(questions), by_mean / len(questions), len(questions))


def _rows(question: Question, tokenizer: Tokenizer) -> Iterator[Row]:
    beginning = tokenizer.encode(question.context).tolist()
    for ending in question.endings:
        ids = tokenizer.encode(f" {ending}").tolist()
        yield beginning + ids, len(ids)


def likelihoods(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    context: int,
    vocab_size: int | None = None,
    autocast: torch.dtype | None = None,
    between: Callable[[], None] | None = None,
) -> list[Likelihood]:
    """Say how likely `model` finds the last ids of each row, each id given all before it that fit into `context`.

    Of a row the last `context` + 1 ids are looked at, and nothing can be asked about the first of them. Rows go through
    the model together, similar lengths beside each other, filled up on the right, where a causal model does not look.
    With `vocab_size`, ids from there on (padding) have no share in the probability.
    """
    cut = [(list(ids[-context - 1 :]), count) for ids, count in rows]
    found = [Likelihood(0.0, 0, True)] * len(rows)
    device = next(model.parameters()).device
    with evaluating(model), torch.autocast(device.type, autocast, enabled=autocast is not None):
        for numbers in _together([len(ids) for ids, _ in cut]):
            if between is not None:
                between()
            some = _of_batch(model, [cut[number] for number in numbers], vocab_size, device)
            for number, likelihood in zip(numbers, some, strict=True):
                found[number] = likelihood
    return found


def _together(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of rows that go through the model at once, the longest first; rows of one id ask for nothing."""
    waiting = sorted((number for number, length in enumerate(lengths) if length > 1), key=lambda n: -lengths[n])
    while waiting:
        many = max(1, _TOKENS_AT_ONCE // lengths[waiting[0]])
        yield waiting[:many]
        waiting = waiting[many:]


def _of_batch(
    model: nn.Module, rows: Sequence[Row], vocab_size: int | None, device: torch.device
) -> Iterator[Likelihood]:
    longest = max(len(ids) for ids, _ in rows)
    counts = [min(count, len(ids) - 1) for ids, count in rows]
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    asked = torch.zeros((len(rows), longest - 1), dtype=torch.bool)
    for number, (row, _) in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        asked[number, len(row) - 1 - counts[number] : len(row) - 1] = True
    ids, asked = ids.to(device), asked.to(device)
    output: Any = model(ids[:, :-1])
    logits: Tensor = getattr(output, "logits", output)[asked][:, :vocab_size]
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    targets = ids[:, 1:][asked]
    losses = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double()
    likeliest = logits.argmax(-1) == targets
    for count, total, greedy in zip(counts, losses.split(counts), likeliest.split(counts), strict=True):
        yield Likelihood(float(total.sum()), count, bool(greedy.all()))


def read_hellaswag(path: str | Path) -> list[Question]:
    """Read questions from JSON lines: `ctx` (or `ctx_a` and `ctx_b`), four `endings`, and `label`, 0 to 3.

    That is the form of the published hellaswag_val.jsonl; other fields are ignored, and so are empty lines.

    Raises:
        DataError: for a file that cannot be read or has no question; names file and line.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"eval.hellaswag: {path} cannot be read: {error.strerror}. Give the path of a HellaSwag file (JSON lines)"
        ) from error
    questions = [_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise DataError(f"eval.hellaswag: {path} is empty. Give a file with a question on each line")
    return questions


def _question(line: bytes, where: str) -> Question:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, json.JSONDecodeError) else "not UTF-8 text, or nested too deeply"
        raise DataError(f"{where}: it is not JSON ({reason}). Each line is one question, an object") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: it is a {type(record).__name__}; each line is one question, an object")
    endings = record.get("endings")
    if not isinstance(endings, list) or len(endings) != ENDINGS or not all(map(_is_text, endings)):
        raise DataError(f"{where}: endings must be a list of {ENDINGS} texts that are not empty")
    return Question(_beginning(record, where), tuple(endings), _label(record, where))


def _beginning(record: Mapping[str, Any], where: str) -> str:
    """`ctx`, or the two halves from which the published file makes it."""
    halves = [record.get("ctx_a"), record.get("ctx_b")]
    text = record.get("ctx", " ".join(half for half in halves if isinstance(half, str) and half))
    if not _is_text(text):
        raise DataError(f"{where}: there is no beginning; give its text as ctx, or as ctx_a and ctx_b")
    return str(text)


def _label(record: Mapping[str, Any], where: str) -> int:
    """The number of the true ending, which some copies of the file write as text."""
    label = record.get("label")
    for number in range(ENDINGS):
        if label is not True and label is not False and label in (number, str(number)):
            return number
    raise DataError(
        f"{where}: label is {str(label)[:40]!r}; allowed are 0 to {ENDINGS - 1}. The published test set has none: "
        "use the validation set"
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
