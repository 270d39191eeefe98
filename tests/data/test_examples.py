"""Examples in rows: nothing is lost, added or crossed, whether each has a row of its own or they share one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.tree import DataConfig
from trainwell.data import batches
from trainwell.data.examples import IGNORED, Example, ExampleRows, ExampleSettings, longest_text, pack
from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.prepare import prepare
from trainwell.data.tokenizer import Gpt2Tokenizer

SEQ_LEN = 12
PAD = 99
LENGTHS = st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=40)


def examples_of(lengths: list[int]) -> list[Example]:
    """Examples whose inputs count on from 1 over all of them, and of whose targets every third is not learned."""
    made = []
    start = 1
    for length in lengths:
        ids = np.arange(start, start + length + 1, dtype=np.int32)
        made.append(Example(ids[:-1], np.where(ids[1:] % 3 == 0, IGNORED, ids[1:]), held_out=False))
        start += length + 1
    return made


def rows_of(lengths: list[int], *, packed: bool) -> ExampleRows:
    return ExampleRows(examples_of(lengths), seq_len=SEQ_LEN, pad=PAD, vocab_size=10_000, packed=packed)


def test_the_settings_of_a_run_are_enough() -> None:
    settings: ExampleSettings = DataConfig()
    assert settings.rows == "buckets"


def test_what_is_not_learned_is_so_for_the_loss_too() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED
    assert isinstance(rows_of([3], packed=False), batches.Gathering)


@given(LENGTHS)
def test_an_example_alone_in_its_row_is_filled_up(lengths: list[int]) -> None:
    rows = rows_of(lengths, packed=False)
    assert len(rows) == len(lengths)
    inputs, targets, documents = rows.gather(np.arange(len(lengths)))
    assert documents is None
    assert inputs.shape == targets.shape == (len(lengths), SEQ_LEN)
    assert inputs.dtype == targets.dtype == np.int64
    for row, example in enumerate(examples_of(lengths)):
        missing = SEQ_LEN - lengths[row]
        assert inputs[row].tolist() == [*example.inputs.tolist(), *[PAD] * missing]
        assert targets[row].tolist() == [*example.targets.tolist(), *[IGNORED] * missing]
    assert rows.lengths.tolist() == lengths


@given(LENGTHS)
def test_packed_rows_hold_the_same_and_no_target_crosses(lengths: list[int]) -> None:
    rows = rows_of(lengths, packed=True)
    inputs, targets, documents = rows.gather(np.arange(len(rows)))
    assert documents is not None
    found = []
    for row in range(len(rows)):
        real = int(rows.lengths[row])
        assert (np.diff(documents[row]) >= 0).all()
        assert (inputs[row, real:] == PAD).all()
        assert (targets[row, real:] == IGNORED).all()
        assert (documents[row, real:] == documents[row, real - 1]).all()
        for number in range(documents[row].max() + 1):
            here = np.flatnonzero(documents[row, :real] == number)
            found.append((inputs[row, here].tolist(), targets[row, here].tolist()))
    expected = [(example.inputs.tolist(), example.targets.tolist()) for example in examples_of(lengths)]
    assert sorted(found) == sorted(expected)


@given(LENGTHS, st.booleans(), st.data())
def test_rows_may_be_asked_for_in_any_order(lengths: list[int], packed: bool, data: st.DataObject) -> None:
    rows = rows_of(lengths, packed=packed)
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=9))
    inputs, targets, _ = rows.gather(np.array(indices))
    for place, index in enumerate(indices):
        one_input, one_target = rows[index]
        assert one_input.tolist() == inputs[place].tolist()
        assert one_target.tolist() == targets[place].tolist()


@given(LENGTHS)
def test_packing_uses_every_example_once_and_leaves_no_two_rows_that_fit_together(lengths: list[int]) -> None:
    groups = pack(lengths, SEQ_LEN)
    assert Counter(index for group in groups for index in group) == Counter(range(len(lengths)))
    filled = sorted(sum(lengths[index] for index in group) for group in groups)
    assert filled[-1] <= SEQ_LEN
    assert len(filled) == 1 or filled[0] + filled[1] > SEQ_LEN
    assert groups == sorted(sorted(group) for group in groups)
    assert groups == pack(lengths, SEQ_LEN)


def test_packing_by_hand() -> None:
    assert pack([7, 5, 4, 3, 5], 12) == [[0, 1], [2, 3, 4]]
    assert pack([6, 6, 6], 6) == [[0], [1], [2]]


def test_examples_are_held_out_as_texts_are(tmp_path: Path) -> None:
    texts = [f"This is text number {index}." for index in range(40)]
    for index, text in enumerate(texts):
        (tmp_path / f"{index:02}.txt").write_text(text)
    store = prepare(DataConfig(corpus=None, path=str(tmp_path), val_fraction=0.3, seq_len=4), cache=tmp_path / "cache")
    held_out = [text for text in texts if is_held_out(key_of(text), 0.3)]
    assert store.tokenizer.decode(store.val[:].tolist()) == "".join(f"{text}<|endoftext|>" for text in held_out)


@pytest.mark.parametrize("text", ["x", " ", "word "])
def test_the_longest_text_is_more_than_a_row_holds(text: str) -> None:
    limit = longest_text(32)
    assert len(Gpt2Tokenizer().encode((text * limit)[:limit])) > 32 + 1
