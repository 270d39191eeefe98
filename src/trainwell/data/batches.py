"""The global batch of a step, as a function of the step and of nothing else: there is no loader state.

Ranks take whole micro-batches in turn, so neither their number nor anything else here changes which text a step sees.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainwell.data.examples import IGNORED
from trainwell.data.order import count_windows, windows_at
from trainwell.data.stream import Ids, TokenStream
from trainwell.errors import ConfigError, DataError

BUCKET = 32
"""Micro-batches of uneven rows are as wide as a multiple of it, so that there are few shapes."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees: `inputs` and `targets` (B, T) int64, and the place of its first row in the batch.

    `documents` (B, T) int64 says which document of its row a token is from, where several are packed into one.
    """

    inputs: Tensor
    targets: Tensor
    index: int
    documents: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """This rank's part of a step's global batch; `tokens` and `epoch` (a float) describe the global one."""

    micro_batches: Sequence[MicroBatch]
    tokens: int
    epoch: float


BatchSource = Callable[[int], Batch]
"""What the trainer asks for data: the step in, its batch out."""


@runtime_checkable
class Examples(Protocol):
    """Map-style data: `len(d)` examples, each a pair (inputs, targets) of equally long sequences of ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class Windows:
    """Windows of `seq_len` tokens at a stride over ids, each with its targets one token later."""

    def __init__(self, tokens: NDArray[Any] | TokenStream, seq_len: int, stride: int) -> None:
        self._stream = tokens if isinstance(tokens, TokenStream) else TokenStream([tokens])
        self._span, self._stride = seq_len + 1, stride
        self._count = count_windows(len(tokens), seq_len, stride)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        inputs, targets, _ = self.gather(np.array([range(self._count)[index]]))
        return inputs[0], targets[0]

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], None]:
        """Inputs and targets (len(indices), seq_len) of several windows at once."""
        rows = self.ids(indices)
        return rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64), None

    def ids(self, indices: NDArray[np.int64]) -> Ids:
        """The same in one piece and in the type in which the ids are stored: (len(indices), seq_len + 1)."""
        return self._stream.rows(indices * self._stride, self._span)


@runtime_checkable
class Gathering(Protocol):
    """Examples that give several rows at once: inputs, targets and documents (None: one a row), each (n, T)."""

    def gather(
        self, indices: NDArray[np.int64], /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
        """The rows of the examples named."""


class Rows(NamedTuple):
    """Rows of a global batch, as int64 (n, T); see `MicroBatch`."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None


def stack(examples: Examples, indices: NDArray[np.int64]) -> Rows:
    """The rows of the named examples, on the CPU."""
    if isinstance(examples, Gathering):
        parts = examples.gather(indices)
        return Rows(*(None if part is None else torch.from_numpy(np.ascontiguousarray(part)) for part in parts))  # type: ignore[arg-type]
    rows = [_as_ids(examples[int(index)]) for index in indices]
    for index, row in zip(indices, rows, strict=True):
        if row[0].shape != rows[0][0].shape or row[1].shape != row[0].shape:
            raise DataError(
                f"data: example {index} has {row[0].numel()} inputs and {row[1].numel()} targets, but example "
                f"{indices[0]} has {rows[0][0].numel()} inputs; all must be of one length, "
                f"filled up with targets {IGNORED}"
            )
    return Rows(torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows]))


def fetch(examples: Examples, indices: NDArray[np.int64], device: torch.device) -> Rows:
    """The rows of the named examples for use on `device`; those of windows are on a GPU by then, all others not yet.

    Windows go there as they are stored, T + 1 ids a row: with 16 bits an eighth of the bytes of two rows of int64.
    """
    if device.type == "cuda" and isinstance(examples, Windows):
        return apart(_to(torch.from_numpy(examples.ids(indices)), device))
    return stack(examples, indices)


def apart(ids: Tensor) -> Rows:
    """Inputs and targets from ids (n, T + 1) of any integer type, where they are."""
    return Rows(ids[:, :-1].long(), ids[:, 1:].long())


def _as_ids(pair: Sequence[Any]) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(pair[0], dtype=torch.int64), torch.as_tensor(pair[1], dtype=torch.int64)


def shortest_first(rows: Rows) -> Rows:
    """The same rows by length, which is where their last target is: micro-batches cut from them need little filling."""
    order = _lengths(rows.targets).argsort(stable=True)
    return Rows(*(None if part is None else part[order] for part in rows))  # type: ignore[arg-type]


def _lengths(targets: Tensor) -> Tensor:
    """For each row the number of columns up to its last target; what comes after is seen by nothing that counts."""
    columns = torch.arange(1, targets.shape[1] + 1)
    return (columns * (targets != IGNORED)).amax(dim=1)


def cut(
    inputs: Tensor,
    targets: Tensor,
    micro_batch: int,
    device: torch.device,
    *,
    documents: Tensor | None = None,
    buckets: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> list[MicroBatch]:
    """Cut rows into micro-batches of one shape, every `world_size`-th of them; filler rows have IGNORED targets.

    Every rank gets the same number, so shapes never change and no rank waits for another; indices do not depend on
    the number of ranks. With `buckets` a micro-batch ends after its last target, at the next multiple of BUCKET:
    a few shapes in place of one.
    """
    rows = inputs.shape[0]
    in_turn = -(-rows // (micro_batch * world_size)) * world_size
    missing = in_turn * micro_batch - rows
    if missing:
        inputs = torch.cat((inputs, inputs[:1].expand(missing, -1)))
        targets = torch.cat((targets, targets.new_full((missing, targets.shape[1]), IGNORED)))
        documents = None if documents is None else torch.cat((documents, documents[:1].expand(missing, -1)))
    found = []
    for index in list(range(0, rows + missing, micro_batch))[rank::world_size]:
        here, width = slice(index, index + micro_batch), inputs.shape[1]
        if buckets:
            width = min(width, max(1, -(-int(_lengths(targets[here]).max()) // BUCKET)) * BUCKET)
        x, y = _to(inputs[here, :width], device), _to(targets[here, :width], device)
        found.append(MicroBatch(x, y, index, None if documents is None else _to(documents[here, :width], device)))
    return found


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in one piece on the device; a GPU is asked to copy it, and nobody waits until it has."""
    tensor = tensor.contiguous()
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Plan(Protocol):
    """How many examples each step takes; `trainwell.optim.batch_plan.BatchPlan` is one."""

    def size(self, step: int) -> int:
        """Sequences of the step's global batch."""

    def first_example(self, step: int) -> int:
        """Place in the data of the first of them: i % n in epoch i // n of n examples."""


class Batches:
    """Examples without replacement, reshuffled every epoch; batches run across epoch ends and nothing is dropped."""

    def __init__(
        self,
        examples: Examples,
        plan: Plan,
        *,
        micro_batch: int,
        seed: int,
        order: Literal["shuffled", "sequential"] = "shuffled",
        buckets: bool = False,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(examples) == 0:
            raise DataError("the training data has no examples; at least one is needed")
        self.examples = examples
        self.plan = plan
        self._buckets = buckets
        self._cut: dict[str, Any] = {
            "micro_batch": micro_batch,
            "device": device,
            "rank": rank,
            "world_size": world_size,
            "buckets": buckets,
        }
        self._seed = seed
        self._order: Literal["shuffled", "sequential"] = order

    def indices(self, step: int) -> NDArray[np.int64]:
        """The examples of a step's global batch, in order."""
        start, size = self.plan.first_example(step), self.plan.size(step)
        return windows_at(start, size, len(self.examples), self._seed, self._order)

    def __call__(self, step: int) -> Batch:
        """This rank's part of the step's global batch, on the device."""
        rows = fetch(self.examples, self.indices(step), self._cut["device"])
        if self._buckets:
            rows = shortest_first(rows)
        micro_batches = cut(rows.inputs, rows.targets, documents=rows.documents, **self._cut)
        return Batch(micro_batches, rows.inputs.numel(), self.plan.first_example(step) / len(self.examples))


DATA_THREAD = "trainwell-data"
"""How the thread that prepares batches is named."""


class Prefetch:
    """Prepares the next step's batch in a thread while this one trains; `wait_s` is what the trainer had to wait.

    On a GPU the thread queues its copies in the stream of whoever asks, in front of the work that reads them: neither
    waits for the other, and the memory belongs to the stream it is used in. A copy takes microseconds of a step.
    """

    def __init__(self, batches: BatchSource) -> None:
        self.source = batches
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=DATA_THREAD)
        self._next: tuple[int, Future[Batch]] | None = None
        self.wait_s = 0.0

    def __call__(self, step: int) -> Batch:
        """The step's batch, prepared before if the step is the one after the last that was asked for."""
        begin = time.perf_counter()
        ahead = self._next
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self.source(step)
        self._next = (step + 1, self._pool.submit(self._prepare, step + 1, _stream()))
        self.wait_s = time.perf_counter() - begin
        return batch

    def _prepare(self, step: int, stream: torch.cuda.Stream | None) -> Batch:
        if stream is None:
            return self.source(step)
        with torch.cuda.stream(stream):  # each thread has a current stream of its own
            return self.source(step)

    def idle(self) -> None:
        """Wait until the thread reads nothing, so that somebody else may; what it has prepared stays."""
        if self._next is not None:
            wait([self._next[1]])

    def close(self, *, wait_for_it: bool = True) -> None:
        """Drop what was prepared and end the thread."""
        self._pool.shutdown(wait=wait_for_it, cancel_futures=True)


def _stream() -> torch.cuda.Stream | None:
    """The stream in which this thread's work on a GPU goes on; None where no GPU is used."""
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None


class Stream:
    """Batches from an iterable that only runs forward, begun anew when it ends; made by `from_loader`.

    What is not promised with it: the data order is the iterable's own, and a resumed run starts the iterable from its
    beginning, so resuming is not exact.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._rows: Iterator[Any] | None = None
        self._first: Any = None
        self._epoch = 0
        self._micro_batch: int | None = None
        self._device = torch.device("cpu")

    def place(self, micro_batch: int | None, device: torch.device) -> "Stream":
        """Say how its batches are cut (None: not at all) and where they go; the composition root does."""
        self._micro_batch, self._device = micro_batch, device
        return self

    def shape(self) -> tuple[int, int]:
        """Rows and columns of the first batch, from which tokens and epochs are planned; the batch is not used up."""
        rows, columns = torch.as_tensor(self._look()[0]).shape
        return rows, columns

    def first(self) -> Batch:
        """The batch that comes next; it is not used up."""
        return self._cut(self._look())

    def __call__(self, step: int) -> Batch:
        """The next batch, whatever the step."""
        pair, self._first = self._look(), None
        return self._cut(pair)

    def _look(self) -> Any:
        self._first = self._pull() if self._first is None else self._first
        return self._first

    def _cut(self, pair: Any) -> Batch:
        inputs, targets = _as_ids(pair)
        micro_batches = cut(inputs, targets, self._micro_batch or len(inputs), self._device)
        return Batch(micro_batches, inputs.numel(), float(self._epoch))

    def _pull(self) -> Any:
        for _ in range(2):
            if self._rows is None:
                self._rows = iter(self.loader)
            pair = next(self._rows, None)
            if pair is not None:
                return pair
            self._rows, self._epoch = None, self._epoch + 1
        raise DataError("the loader ended at once when begun anew; it must yield (inputs, targets) batches each time")


def from_loader(loader: Iterable[Any]) -> Stream:
    """Train on any iterable of (inputs, targets) batches, both (B, T) integer tensors; each is one step's global batch.

    Forward only: order, batch size and epochs are the iterable's, and resuming starts it anew (see `Stream`).
    """
    if not isinstance(loader, Iterable):
        raise ConfigError(f"from_loader takes an iterable of (inputs, targets) batches, not {type(loader).__name__}")
    return Stream(loader)


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    micro_batch: int,
    batches: int,
    device: torch.device,
    buckets: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[MicroBatch]:
    """The same micro-batches each time: `batches` x `batch_size` examples spread evenly over the data; 0 takes all.

    Ranks take them in turn, and each gets equally many: where they do not come out even, the last ranks get the first
    one again with all its targets IGNORED.
    """
    count = len(examples)
    taken = count if batches == 0 else min(count, batches * batch_size)
    indices = np.arange(taken, dtype=np.int64) * count // max(taken, 1)
    starts = list(range(0, taken, micro_batch))
    for turn in range(-(-len(starts) // world_size)):
        place = turn * world_size + rank
        start = starts[place] if place < len(starts) else 0
        rows = fetch(examples, indices[start : start + micro_batch], device)
        for micro in cut(rows.inputs, rows.targets, micro_batch, device, documents=rows.documents, buckets=buckets):
            targets = micro.targets if place < len(starts) else torch.full_like(micro.targets, IGNORED)
            yield replace(micro, targets=targets, index=start)
