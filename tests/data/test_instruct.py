"""Instructions in rows: the book's inputs and targets, every example accounted for, every mistake with its line."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from trainwell.config.tree import DataConfig
from trainwell.data.examples import IGNORED, ExampleRows, ExampleStore
from trainwell.data.instruct import InstructSettings, prepare_instruct
from trainwell.data.tokenizer import BytesTokenizer
from trainwell.errors import ConfigError, DataError

END = 256
QA = "Q: {instruction}\nA: {output}"
Prepare = Callable[..., ExampleStore]


def records(count: int = 30) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Say {index}.", "input": "x" * (index % 3), "output": "ab" * (1 + index % 7)}
        for index in range(count)
    ]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepare records, as JSON lines, with a short template and settings of a few tokens."""

    def make(content: list[Any] | str | bytes, **keys: Any) -> ExampleStore:
        path = tmp_path / "data.jsonl"
        if isinstance(content, list):
            content = "\n".join(json.dumps(record) for record in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "qa.txt").write_text(QA)
        settings = {"corpus": None, "path": str(path), "template": str(tmp_path / "qa.txt"), "val_fraction": 0.3}
        return prepare_instruct(DataConfig(**settings | {"seq_len": 64} | keys))

    return make


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chapter 7 of the package that accompanies the book, which imports psutil for a function of no interest here."""
    if find_spec("psutil") is None:
        monkeypatch.setitem(sys.modules, "psutil", ModuleType("psutil"))
    return import_module("llms_from_scratch.ch07")


def pairs(rows: ExampleRows) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of all rows, sorted."""
    inputs, targets, _ = rows.gather(np.arange(len(rows)))
    return sorted(zip(inputs.tolist(), targets.tolist(), strict=True))


def told(row: tuple[list[int], list[int]]) -> tuple[str, str]:
    """A row as text, and its learned targets as text; the end of text as |."""
    decode = BytesTokenizer().decode
    texts = [decode([index for index in part if index != IGNORED]) for part in row]
    return texts[0].replace("<|endoftext|>", "|"), texts[1].replace("<|endoftext|>", "|")


def test_the_settings_of_a_run_are_enough() -> None:
    settings: InstructSettings = DataConfig()
    with pytest.raises(ConfigError, match=r"data\.path is null, and task instruct is read from a file"):
        prepare_instruct(settings)


@pytest.mark.parametrize("seq_len", [200, 400])
def test_with_the_prompt_learned_rows_are_those_of_the_book(book: Any, prepared: Prepare, seq_len: int) -> None:
    """The book fills up to the longest of a batch, we to seq_len: what is beyond is filler here."""
    store = prepared(records(), template="alpaca", train_on_prompt=True, seq_len=seq_len)
    encode = BytesTokenizer().encode
    texts = [f"{book.format_input(record)}\n\n### Response:\n{record['output']}" for record in records()]
    batch = [encode(text).tolist() for text in texts]
    inputs, targets = book.custom_collate_fn(batch, pad_token_id=END, allowed_max_length=seq_len)
    missing = ((0, 0), (0, seq_len - inputs.shape[1]))
    inputs = np.pad(inputs.numpy(), missing, constant_values=END)
    targets = np.pad(targets.numpy(), missing, constant_values=IGNORED)
    theirs = sorted(zip(inputs.tolist(), targets.tolist(), strict=True))
    assert sorted(pairs(store.train) + pairs(store.val)) == theirs


def test_only_answers_and_one_end_of_text_are_learned(prepared: Prepare) -> None:
    store = prepared(records())
    rows = [told(row) for row in pairs(store.train) + pairs(store.val)]
    assert sorted(learned for _, learned in rows) == sorted(f"{record['output']}|" for record in records())
    for text, learned in rows:
        assert text.rstrip("|").endswith(f"A: {learned.rstrip('|')}")


def test_packed_rows_learn_the_same(prepared: Prepare) -> None:
    apart, packed = prepared(records()), prepared(records(), rows="packed")
    assert len(packed.train) < len(apart.train)
    for one, other in ((apart.train, packed.train), (apart.val, packed.val)):
        assert "".join(told(row)[1] for row in pairs(one)).count("|") == len(one)
        learned = [np.sort(rows.gather(np.arange(len(rows)))[1].ravel()) for rows in (one, other)]
        assert learned[0][learned[0] >= 0].tolist() == learned[1][learned[1] >= 0].tolist()
        assert one.lengths.sum() == other.lengths.sum()


def test_the_counts_are_those_of_rows(prepared: Prepare) -> None:
    store = prepared(records())
    info = store.info
    assert (info.train_tokens - 1) // 64 == len(store.train)
    assert (info.val_tokens - 1) // 64 == len(store.val)
    assert len(store.train) + len(store.val) == info.num_texts == 30
    assert info.vocab_size == 257
    assert info.tokenizer == "bytes"
    assert info.corpus.endswith("data.jsonl")
    assert store.notes == ()
    assert store.template is not None
    assert store.template.ids([{"role": "user", "content": "x"}], store.tokenizer) == list(b"Q: x\nA: ")


def test_every_answer_of_a_conversation_is_learned(prepared: Prepare) -> None:
    turns = [("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), ("assistant", "So.")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    store = prepared([chat, *records()])
    rows = [told(row) for row in pairs(store.train) + pairs(store.val)]
    assert ("Q: Hi\nA: Ho|Q: And?\nA: So.", "Ho|So.|") in [(text.rstrip("|"), learned) for text, learned in rows]


def test_copies_of_an_example_stay_on_one_side_and_more_examples_move_none(prepared: Prepare) -> None:
    once, twice = prepared(records()), prepared(records(60) + records())
    assert {row[0] for row in map(told, pairs(once.val))} <= {row[0] for row in map(told, pairs(twice.val))}
    assert not {str(row) for row in pairs(twice.train)} & {str(row) for row in pairs(twice.val)}


def test_a_long_example_is_cut_and_noted(prepared: Prepare) -> None:
    store = prepared([*records(), {"instruction": "Long?", "output": "y" * 100}])
    assert store.notes == ("1 of 31 examples are longer than data.seq_len 64 and cut at the end (line 31)",)
    learned = [told(row)[1] for row in pairs(store.train) + pairs(store.val)]
    assert "y" * (64 + 1 - len("Q: Long?\nA: ")) in learned


def test_an_example_that_just_fits_is_whole(prepared: Prepare) -> None:
    answer = "y" * (64 - len("Q: Fit?\nA: "))
    store = prepared([*records(), {"instruction": "Fit?", "output": answer}])
    assert store.notes == ()
    assert f"{answer}|" in [told(row)[1] for row in pairs(store.train) + pairs(store.val)]


def test_an_example_without_an_answer_in_its_row_is_left_out_and_noted(prepared: Prepare) -> None:
    long = {"instruction": "z" * 64, "output": "never seen"}
    for train_on_prompt in (False, True):
        store = prepared([long, *records(), *[long] * 6], train_on_prompt=train_on_prompt)
        assert store.info.num_texts == len(store.train) + len(store.val) == 30
        assert store.notes == (
            "7 of 37 examples are left out: nothing of their answer is within data.seq_len 64 (line 1, line 32, "
            "line 33, line 34, line 35 and 2 more); raise data.seq_len, or use a shorter data.template",
        )


def test_the_last_token_of_a_row_may_be_the_first_of_an_answer(prepared: Prepare) -> None:
    """The prompt has 64 ids, so the target of the last is the answer's first."""
    store = prepared([*records(), {"instruction": "z" * (64 - len("Q: \nA: ")), "output": "kept"}])
    assert "k" in [told(row)[1] for row in pairs(store.train) + pairs(store.val)]


def test_an_empty_answer_is_learned_as_an_end_and_noted(prepared: Prepare) -> None:
    store = prepared([*records(), {"instruction": "Silent?", "output": ""}])
    assert store.notes[0].startswith("1 of 31 examples have an empty answer")
    assert "|" in [told(row)[1] for row in pairs(store.train) + pairs(store.val)]


def test_no_answer_at_all_within_the_rows_is_a_message(prepared: Prepare) -> None:
    with pytest.raises(
        DataError,
        match=r"no answer fits into data\.seq_len 4: with data\.template .* the prompts of all 30 examples are longer",
    ):
        prepared(records(), seq_len=4)


def test_an_empty_side_is_a_message(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"the validation set of .* is empty: with data\.val_fraction 1e-09"):
        prepared(records(), val_fraction=1e-9)
    with pytest.raises(DataError, match=r"the training set of .* is empty"):
        prepared(records(1), val_fraction=0.999999)


def test_an_answer_of_ten_megabytes_is_cut_like_any_other(prepared: Prepare) -> None:
    long = "word" * 2_500_000
    store = prepared([{"instruction": "Long?", "output": long}, *records()], tokenizer="gpt2")
    assert "and cut at the end (line 1)" in store.notes[0]
    store = prepared([{"instruction": long, "input": long, "output": "a"}, *records()], tokenizer="gpt2")
    assert "are left out: nothing of their answer" in store.notes[0]


def test_a_record_that_cannot_be_used_names_its_line(prepared: Prepare) -> None:
    lines = [json.dumps(record) for record in records(3)]
    with pytest.raises(DataError, match=r"data\.jsonl, line 4: there is no field output \(it has instruction\)"):
        prepared("\n".join([*lines, '{"instruction": "Hi"}']))
    with pytest.raises(DataError, match=r"data\.jsonl, line 4: the text has half a character \(U\+D800\)"):
        prepared("\n".join([*lines, '{"instruction": "Hi", "output": "\\ud800"}']))
    with pytest.raises(DataError, match=r"data\.jsonl is empty"):
        prepared("")


def test_a_mistake_in_the_settings_is_told_before_one_in_the_data(prepared: Prepare) -> None:
    with pytest.raises(ConfigError, match=r"data\.template: there is no template 'alpacca'"):
        prepared("", template="alpacca")


def test_chars_are_those_of_the_file_and_the_template(prepared: Prepare) -> None:
    store = prepared(records(), tokenizer="chars")
    assert store.tokenizer.decode(store.train[0][0].tolist()).startswith("Q: Say ")
    with pytest.raises(ConfigError, match="chars has no chat template of its own"):
        prepared(records(), tokenizer="chars", template="tokenizer")


def test_the_tokenizer_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(records()))
    tokenizer = BytesTokenizer()
    settings = DataConfig(corpus=None, path=str(tmp_path / "a.json"), tokenizer="chars", seq_len=400, val_fraction=0.5)
    assert prepare_instruct(settings, tokenizer=tokenizer).tokenizer is tokenizer


def test_the_fingerprint_covers_what_decides_the_rows_and_no_path(prepared: Prepare, tmp_path: Path) -> None:
    first = prepared(records())
    assert prepared(records()).info == first.info
    (tmp_path / "other.txt").write_text(QA.replace("Q", "F"))
    (tmp_path / "same.txt").write_text(QA)
    others = [
        prepared(records(29)),
        prepared(records(), seq_len=65),
        prepared(records(), val_fraction=0.31),
        prepared(records(), train_on_prompt=True),
        prepared(records(), rows="packed"),
        prepared(records(), tokenizer="gpt2"),
        prepared(records(), template=str(tmp_path / "other.txt")),
    ]
    assert len({store.info.fingerprint for store in [first, *others]}) == 8
    for same in (prepared(records(), rows="padded"), prepared(records(), template=str(tmp_path / "same.txt"))):
        assert same.info.fingerprint == first.info.fingerprint
