"""The batch of a step, whoever asks for it: every example once per epoch, the same rows however they are cut."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from trainwell.data.batches import (
    Batch,
    Batches,
    MicroBatch,
    Prefetch,
    Windows,
    apart,
    cut,
    evaluation_batches,
    from_loader,
    stack,
)
from trainwell.data.examples import IGNORED
from trainwell.data.order import count_windows
from trainwell.data.stream import TokenStream
from trainwell.errors import ConfigError, DataError
from trainwell.optim.batch_plan import BatchPlan

CPU = torch.device("cpu")
SMALL = st.integers(1, 12)


class Numbered:
    """`count` examples of three ids each; those of example i say i."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        assert 0 <= index < self.count
        return [index, 1, 2], [1, 2, index]


def batches_of(count: int, size: int, micro_batch: int, seed: int = 7, **how: Any) -> Batches:
    plan = BatchPlan(batch_size=size, seq_len=3)
    return Batches(Numbered(count), plan, micro_batch=micro_batch, seed=seed, device=CPU, **how)


def rows_of(batch: Batch) -> list[tuple[int, int]]:
    """Place in the global batch and number of the example, of every row that counts."""
    return [
        (micro.index + place, int(row[0]))
        for micro in batch.micro_batches
        for place, (row, target) in enumerate(zip(micro.inputs, micro.targets, strict=True))
        if (target != IGNORED).all()
    ]


def same_batch(one: Batch, other: Batch) -> bool:
    def equal(a: MicroBatch, b: MicroBatch) -> bool:
        return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and a.index == b.index

    parts = zip(one.micro_batches, other.micro_batches, strict=True)
    return (one.tokens, one.epoch) == (other.tokens, other.epoch) and all(equal(*pair) for pair in parts)


@given(count=SMALL, size=SMALL, micro_batch=SMALL, seed=st.integers(0, 2**63 - 1))
def test_every_epoch_holds_every_example_once_across_batch_ends(
    count: int, size: int, micro_batch: int, seed: int
) -> None:
    batches = batches_of(count, size, micro_batch, seed)
    steps = -(-3 * count // size)
    seen = [example for step in range(steps) for _, example in rows_of(batches(step))]
    for epoch in range(3):
        assert Counter(seen[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_epochs_are_shuffled_differently_and_sequential_ones_not_at_all() -> None:
    def epochs(**how: Any) -> list[list[int]]:
        return [[example for _, example in rows_of(batches_of(50, 50, 8, **how)(step))] for step in range(2)]

    shuffled = epochs()
    assert shuffled[0] != shuffled[1]
    assert shuffled[0] != list(range(50))
    assert epochs(order="sequential") == [list(range(50))] * 2


def test_another_seed_is_another_order() -> None:
    assert rows_of(batches_of(50, 50, 8, seed=1)(0)) != rows_of(batches_of(50, 50, 8, seed=2)(0))


@given(count=SMALL, size=SMALL, micro_batch=SMALL, step=st.integers(0, 40), ranks=st.sampled_from([1, 2, 3, 8]))
def test_ranks_together_see_the_rows_and_indices_that_one_process_sees(
    count: int, size: int, micro_batch: int, step: int, ranks: int
) -> None:
    alone = batches_of(count, size, micro_batch)(step)
    shares = [batches_of(count, size, micro_batch, rank=rank, world_size=ranks)(step) for rank in range(ranks)]
    assert sorted(row for share in shares for row in rows_of(share)) == rows_of(alone)
    assert {share.tokens for share in shares} == {alone.tokens}
    assert {share.epoch for share in shares} == {alone.epoch}


@given(count=SMALL, size=SMALL, micro_batch=SMALL, ranks=st.sampled_from([1, 2, 3, 8]))
def test_ranks_run_equally_many_micro_batches_of_one_shape(count: int, size: int, micro_batch: int, ranks: int) -> None:
    shares = [batches_of(count, size, micro_batch, rank=rank, world_size=ranks)(0) for rank in range(ranks)]
    assert {len(share.micro_batches) for share in shares} == {-(-size // (micro_batch * ranks))}
    shapes = {micro.inputs.shape for share in shares for micro in share.micro_batches}
    assert shapes == {(micro_batch, 3)}
    indices = sorted(micro.index for share in shares for micro in share.micro_batches)
    assert all(later - earlier == micro_batch for earlier, later in pairwise(indices))


@given(size=SMALL, one=SMALL, other=SMALL)
def test_the_size_of_a_micro_batch_changes_no_row(size: int, one: int, other: int) -> None:
    assert rows_of(batches_of(9, size, one)(2)) == rows_of(batches_of(9, size, other)(2))


def test_filler_rows_hold_real_ids_and_targets_that_are_ignored() -> None:
    inputs, targets = torch.arange(6).reshape(3, 2), torch.arange(1, 7).reshape(3, 2)
    last = cut(inputs, targets, 2, CPU)[-1]
    assert last.index == 2
    assert torch.equal(last.inputs, torch.tensor([[4, 5], [0, 1]]))
    assert torch.equal(last.targets, torch.tensor([[5, 6], [IGNORED, IGNORED]]))


def test_tokens_are_those_of_the_global_batch_without_filler() -> None:
    assert batches_of(9, 5, 4, rank=1, world_size=8)(0).tokens == 15


def test_the_epoch_of_a_step_is_what_was_seen_before_it() -> None:
    assert [batches_of(8, 4, 4)(step).epoch for step in range(4)] == [0.0, 0.5, 1.0, 1.5]


@given(count=SMALL, size=SMALL, at=st.integers(0, 5), left_out=SMALL, seed=st.integers(0, 2**63 - 1))
def test_a_skip_reads_on_where_the_run_would_have_been_so_much_later(
    count: int, size: int, at: int, left_out: int, seed: int
) -> None:
    plain = batches_of(count, size, 4, seed)
    how: dict[str, Any] = {"micro_batch": 4, "seed": seed, "device": CPU}
    skipping = Batches(Numbered(count), BatchPlan(size, 3, skips=((at, left_out),)), **how)
    for step in range(at):
        assert same_batch(skipping(step), plain(step))
    for step in range(at, at + 4):
        assert same_batch(skipping(step), plain(step + left_out))


def test_the_epoch_of_a_step_counts_what_was_skipped() -> None:
    skipping = Batches(Numbered(8), BatchPlan(4, 3, skips=((1, 3),)), micro_batch=4, seed=7, device=CPU)
    assert [skipping(step).epoch for step in range(3)] == [0.0, 2.0, 2.5]


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    batches = batches_of(11, 4, 2)
    forwards = [batches(step) for step in range(6)]
    backwards = [batches(step) for step in reversed(range(6))]
    assert all(same_batch(*pair) for pair in zip(forwards, reversed(backwards), strict=True))


def test_prefetching_gives_the_same_batches_in_any_order() -> None:
    plain, ahead = batches_of(11, 4, 2), Prefetch(batches_of(11, 4, 2))
    for step in [0, 1, 2, 7, 7, 8, 3, 0, 1]:
        assert same_batch(ahead(step), plain(step))
    ahead.close()


def test_the_next_batch_is_prepared_before_it_is_asked_for() -> None:
    prepared = threading.Event()

    def slow(step: int) -> Batch:
        if step == 1:
            prepared.set()
        return batches_of(4, 2, 2)(step)

    ahead = Prefetch(slow)
    ahead(0)
    assert prepared.wait(timeout=10)
    ahead.close()


def test_a_fault_in_the_data_thread_is_met_at_its_own_step() -> None:
    def faulty(step: int) -> Batch:
        if step == 2:
            raise DataError("example 5 is damaged")
        return batches_of(4, 2, 2)(step)

    ahead = Prefetch(faulty)
    ahead(0)
    ahead(1)
    with pytest.raises(DataError, match="example 5"):
        ahead(2)
    ahead.close()


def test_a_window_is_its_inputs_and_the_same_one_token_later() -> None:
    windows = Windows(np.arange(10, dtype=np.uint16), seq_len=3, stride=2)
    assert len(windows) == 4
    inputs, targets = windows[1]
    assert inputs.tolist() == [2, 3, 4]
    assert targets.tolist() == [3, 4, 5]
    assert inputs.dtype == np.int64


@given(tokens=st.integers(2, 60), seq_len=SMALL, stride=SMALL)
def test_windows_side_by_side_or_overlapping_stay_inside_the_text(tokens: int, seq_len: int, stride: int) -> None:
    windows = Windows(np.arange(tokens, dtype=np.uint16), seq_len, stride)
    if not len(windows):
        assert tokens < seq_len + 1
        return
    inputs, targets, _ = stack(windows, np.arange(len(windows)))
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs[:, 0], torch.arange(len(windows)) * stride)
    assert int(targets.max()) < tokens
    assert int(targets.max()) + stride >= tokens


@given(tokens=st.integers(0, 60), seq_len=SMALL, stride=SMALL)
def test_there_are_as_many_windows_as_the_text_has_room_for(tokens: int, seq_len: int, stride: int) -> None:
    windows = Windows(np.arange(tokens, dtype=np.uint16), seq_len, stride)
    assert len(windows) == count_windows(tokens, seq_len, stride)
    inputs, targets, _ = stack(windows, np.arange(len(windows)))
    assert inputs.shape == targets.shape == (len(windows), seq_len)


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 2**16 - 1), (np.uint32, 2**31), (np.int64, 2**40)])
def test_ids_that_travel_as_they_are_stored_come_out_the_same(dtype: type[np.integer[Any]], largest: int) -> None:
    text = np.linspace(0, largest, 50).astype(dtype)
    windows, indices = Windows(text, seq_len=4, stride=3), np.array([5, 0, 2])
    narrow = windows.ids(indices)
    assert narrow.dtype == np.dtype(dtype)
    assert narrow.shape == (3, 5)
    for ours, plain in zip(apart(torch.from_numpy(narrow))[:2], stack(windows, indices)[:2], strict=True):
        assert ours is not None
        assert plain is not None
        assert ours.dtype == torch.int64
        assert torch.equal(ours, plain)


def test_reading_a_text_on_disk_holds_nothing_of_it_in_memory(tmp_path: Path) -> None:
    np.arange(100, dtype="<u2").tofile(tmp_path / "tokens")
    text = np.memmap(tmp_path / "tokens", dtype="<u2", mode="r")
    stream = TokenStream([text])
    windows = Windows(stream, seq_len=9, stride=10)
    assert np.shares_memory(stream.parts[0], text)
    assert not np.shares_memory(windows.ids(np.arange(9)), text)
    assert windows[3][0].tolist() == list(range(30, 39))


def test_cutting_copies_no_row() -> None:
    inputs, targets = torch.arange(12).reshape(4, 3), torch.arange(1, 13).reshape(4, 3)
    for micro in cut(inputs, targets, 2, CPU):
        assert micro.inputs.data_ptr() == inputs[micro.index].data_ptr()
        assert micro.targets.data_ptr() == targets[micro.index].data_ptr()


class AsArrays(Numbered):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        inputs, targets = super().__getitem__(index)
        return np.array(inputs, dtype=np.uint16), torch.tensor(targets, dtype=torch.int32)


@pytest.mark.parametrize("kind", [Numbered, AsArrays])
def test_examples_may_be_lists_arrays_or_tensors(kind: type[Numbered]) -> None:
    inputs, targets, _ = stack(kind(5), np.array([3, 0]))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [[3, 1, 2], [0, 1, 2]]
    assert targets.tolist() == [[1, 2, 3], [1, 2, 0]]


def test_a_torch_dataset_is_examples_as_it_is() -> None:
    dataset = TensorDataset(torch.arange(12).reshape(4, 3), torch.arange(1, 13).reshape(4, 3))
    inputs, targets, _ = stack(dataset, np.array([2]))
    assert inputs.tolist() == [[6, 7, 8]]
    assert targets.tolist() == [[7, 8, 9]]


class Uneven(Numbered):
    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        return ([0] * (2 + index), [0] * (2 + index))


def test_examples_of_unequal_length_are_named() -> None:
    with pytest.raises(DataError, match=r"example 1 .* 3 .* 2"):
        stack(Uneven(3), np.array([0, 1]))


def test_data_without_examples_is_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        batches_of(0, 4, 2)


def drawn(count: int, *, batches: int, batch_size: int = 4, micro_batch: int = 3) -> tuple[list[int], list[MicroBatch]]:
    micros = list(
        evaluation_batches(Numbered(count), batch_size=batch_size, micro_batch=micro_batch, batches=batches, device=CPU)
    )
    return [example for _, example in rows_of(Batch(micros, 0, 0.0))], micros


@given(count=st.integers(1, 100), batches=st.integers(0, 9), batch_size=SMALL, micro_batch=SMALL)
def test_evaluation_takes_that_many_different_examples_spread_evenly(
    count: int, batches: int, batch_size: int, micro_batch: int
) -> None:
    taken, micros = drawn(count, batches=batches, batch_size=batch_size, micro_batch=micro_batch)
    assert len(taken) == (count if batches == 0 else min(count, batches * batch_size))
    gaps = [later - earlier for earlier, later in pairwise([*taken, count + taken[0]])]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1
    assert {micro.inputs.shape for micro in micros} == {(micro_batch, 3)}


def test_evaluation_takes_the_same_each_time_however_it_is_cut() -> None:
    assert drawn(50, batches=3)[0] == drawn(50, batches=3)[0] == drawn(50, batches=3, micro_batch=7)[0]


def test_zero_batches_are_the_whole_validation_set() -> None:
    assert drawn(50, batches=0)[0] == list(range(50))


def pairs(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((2, 3), number), torch.full((2, 3), number + 1)) for number in range(count)]


def test_a_stream_gives_each_batch_once_and_then_begins_anew() -> None:
    stream = from_loader(pairs(3)).place(1, CPU)
    got = [stream(step) for step in range(7)]
    assert [int(batch.micro_batches[0].inputs[0, 0]) for batch in got] == [0, 1, 2, 0, 1, 2, 0]
    assert [batch.epoch for batch in got] == [0, 0, 0, 1, 1, 1, 2]
    assert {batch.tokens for batch in got} == {6}
    assert {len(batch.micro_batches) for batch in got} == {2}


def test_looking_at_the_shape_of_a_stream_uses_up_nothing() -> None:
    stream = from_loader(pairs(3)).place(None, CPU)
    assert stream.shape() == (2, 3)
    assert stream.shape() == (2, 3)
    assert int(stream(0).micro_batches[0].inputs[0, 0]) == 0


def test_a_data_loader_of_torch_is_a_stream() -> None:
    dataset = TensorDataset(torch.arange(12).reshape(4, 3), torch.arange(1, 13).reshape(4, 3))
    stream = from_loader(DataLoader(dataset, batch_size=2)).place(2, CPU)
    assert stream(0).micro_batches[0].targets.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_stream_of_arrays_or_short_integers_becomes_int64() -> None:
    stream = from_loader([(np.ones((2, 3), dtype=np.int32), [[1, 2, 3], [4, 5, 6]])]).place(2, CPU)
    micro = stream(0).micro_batches[0]
    assert micro.inputs.dtype == micro.targets.dtype == torch.int64


def test_a_generator_that_cannot_begin_anew_is_told_so() -> None:
    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield from pairs(2)

    stream = from_loader(once()).place(None, CPU)
    stream(0)
    stream(1)
    with pytest.raises(DataError, match="ended at once when begun anew"):
        stream(2)


def test_what_is_not_iterable_is_no_loader() -> None:
    with pytest.raises(ConfigError, match="not int"):
        from_loader(5)  # type: ignore[arg-type]


class Ragged:
    """Examples of different lengths in rows of 70, as a task has them: filled up at the end, some with no target."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = torch.zeros(70, dtype=torch.int64), torch.full((70,), IGNORED)
        length = self.lengths[index]
        inputs[:length] = torch.arange(1, length + 1) + 100 * index
        targets[length // 2 : length] = inputs[length // 2 : length] + 1
        return inputs, targets


def counted(micro_batches: Iterable[MicroBatch]) -> list[tuple[int, ...]]:
    """What counts in micro-batches: of each row that has a target, its ids up to the last one; in any order."""
    rows = []
    for micro in micro_batches:
        for inputs, targets in zip(micro.inputs, micro.targets, strict=True):
            end = int((targets != IGNORED).nonzero().max()) + 1 if (targets != IGNORED).any() else 0
            rows += [(*inputs[:end].tolist(), *targets[:end].tolist())] if end else []
    return sorted(rows)


@given(st.lists(st.integers(0, 70), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 3))
def test_buckets_change_the_shape_of_a_batch_and_nothing_that_counts(
    lengths: list[int], micro_batch: int, world_size: int
) -> None:
    plan = BatchPlan(len(lengths), 70)

    def of(rank: int, buckets: bool) -> Batch:
        batches = Batches(
            Ragged(lengths),
            plan,
            micro_batch=micro_batch,
            seed=1,
            buckets=buckets,
            device=CPU,
            rank=rank,
            world_size=world_size,
        )
        return batches(0)

    plain = [micro for rank in range(world_size) for micro in of(rank, buckets=False).micro_batches]
    bucketed = [micro for rank in range(world_size) for micro in of(rank, buckets=True).micro_batches]
    assert counted(bucketed) == counted(plain)
    assert sorted(micro.index for micro in bucketed) == sorted(micro.index for micro in plain)
    assert {micro.inputs.shape[1] for micro in bucketed} <= {32, 64, 70}
    assert sum(micro.inputs.numel() for micro in bucketed) <= sum(micro.inputs.numel() for micro in plain)
    assert of(0, buckets=True).tokens == of(0, buckets=False).tokens == 70 * len(lengths)


def test_rows_of_like_length_go_together() -> None:
    batches = Batches(Ragged([70, 5, 60, 7]), BatchPlan(4, 70), micro_batch=2, seed=1, buckets=True, device=CPU)
    assert [micro.inputs.shape for micro in batches(0).micro_batches] == [(2, 32), (2, 70)]


class InDocuments(Ragged):
    """The same as rows that say to which document a token belongs."""

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        pairs = [self[int(index)] for index in indices]
        inputs, targets = (np.stack([pair[side].numpy() for pair in pairs]) for side in (0, 1))
        return inputs, targets, np.broadcast_to(indices[:, None], inputs.shape)


def test_documents_stay_with_their_rows_through_sorting_cutting_and_filling_up() -> None:
    examples = InDocuments([70, 5, 60])
    batches = Batches(examples, BatchPlan(3, 70), micro_batch=2, seed=1, buckets=True, device=CPU)
    for micro in batches(0).micro_batches:
        assert micro.documents is not None
        assert micro.documents.shape == micro.inputs.shape
        rows = zip(micro.inputs, micro.documents, strict=True)
        assert all(int(inputs[0]) == 1 + 100 * int(documents[0]) for inputs, documents in rows)


def test_an_evaluation_in_buckets_has_the_same_targets() -> None:
    examples = Ragged([70, 5, 60, 7, 0])
    how: dict[str, Any] = {"batch_size": 2, "micro_batch": 2, "batches": 0, "device": CPU}
    plain, bucketed = (list(evaluation_batches(examples, **how, buckets=buckets)) for buckets in (False, True))
    assert counted(bucketed) == counted(plain)
    assert [micro.inputs.shape[1] for micro in bucketed] == [70, 64, 32]
