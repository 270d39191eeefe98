"""Train, save, kill, corrupt, resume, branch, change the micro-batch, in any sequence: a model says what must come.

The model knows the losses and states of each line of training from one run that nothing interrupted, which checkpoints
lie on disk, and which of them are whole. A kill is a run that is left in the middle of its loop and never touched
again: nothing more of it is written, metrics that wait are lost, and its lock is given back, as the kernel does for a
dead process. What SIGKILL itself does to a process is the soak's business (tests/soak).
"""

import copy
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trainwell.checkpoint.layout import MANIFEST, TENSORS, candidates, directory_of, saved_steps
from trainwell.checkpoint.store import CheckpointStore
from trainwell.errors import ConfigError, StorageError
from trainwell.runs.metrics import MetricsFile

if TYPE_CHECKING:
    from trainwell.run import Run
    from trainwell.trainer import StepResult

pytestmark = pytest.mark.slow

STEPS, EVERY, KEEP = 40, 4, 3
MICRO_BATCH = 2
"""Of the runs that nothing interrupts. With another, sums are taken in another order, and equality is to rounding."""
ROUNDING = 1e-3
EXAMPLES = int(os.environ.get("TRAINWELL_EXAMPLES", "0"))
"""Sequences of the long form; without it a few, the same each time."""

Branches = tuple[tuple[int, float], ...]
"""A line of training: at which steps it branched off, with which rate; the first begins at step 0."""
Build = Callable[..., "Run"]


@dataclass
class Saved:
    """A checkpoint as the model knows it."""

    bits: Any
    exact: bool
    """Whether every step that led to it was taken with MICRO_BATCH."""
    whole: bool = True
    named: bool = True
    """Whether it has a manifest."""


@dataclass
class Line:
    """A run's folder as the model knows it."""

    path: Path
    branches: Branches
    start: Saved | None
    """Where it begins by itself; None for a branch, which begins at a checkpoint of its `parent`."""
    parent: "Line | None" = None
    saved: dict[int, Saved] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The step that it branched off at, or 0."""
        return self.branches[-1][0]

    @property
    def begin(self) -> Saved | None:
        """What it begins with; None for a branch whose beginning its parent no longer has."""
        return self.start if self.parent is None else self.parent.saved.get(self.first)

    @property
    def newest(self) -> int | None:
        """The newest whole checkpoint."""
        return max((step for step, each in self.saved.items() if each.whole), default=None)

    def add(self, step: int, saved: Saved) -> None:
        """A save, and then what retention does: the newest `KEEP` stay, and never fewer than two that are whole."""
        self.saved[step] = saved
        named = sorted(each for each in self.saved if self.saved[each].named)
        whole = [each for each in named if self.saved[each].whole]
        if len(whole) >= 2:
            for old in named[:-KEEP]:
                if old < whole[-2]:
                    del self.saved[old]


class Reference:
    """Every line of training without interruptions, taken by the trainer alone: no folder, saver or resume in it."""

    def __init__(self, build: Build, bits_of: Callable[[Any], Any]) -> None:
        self.build, self.bits_of = build, bits_of
        self._known: dict[Branches, tuple[list[float], list[Any]]] = {}

    def losses(self, branches: Branches) -> list[float]:
        """The loss of every step from the last branch on, by step; before it nothing that is a number."""
        return self._of(branches)[0]

    def bits(self, branches: Branches, step: int) -> Any:
        """The state before `step`."""
        return self.bits_of(learned(self._of(branches)[1][step]))

    def _of(self, branches: Branches) -> tuple[list[float], list[Any]]:
        if branches not in self._known:
            self._known[branches] = self._take(branches)
        return self._known[branches]

    def _take(self, branches: Branches) -> tuple[list[float], list[Any]]:
        from trainwell.fit import deterministic

        begin, rate = branches[-1]
        run = self.build(run_dir=f"reference/{len(self._known)}", **keys(rate))
        trainer = run.trainer
        losses: list[float] = [math.nan] * begin
        states: list[Any] = [None] * begin
        if begin:
            trainer.load_state_dict(copied(self._of(branches[:-1])[1][begin]))  # an optimizer keeps what it is given
        with run, deterministic(run.settings.deterministic):
            states.append(copied(trainer.state_dict()))
            for result in trainer.steps(until=STEPS):
                losses.append(result.loss.item())
                states.append(copied(trainer.state_dict()))
        return losses, states


def learned(state: dict[str, Any]) -> dict[str, Any]:
    """What steps change; the optimizer's settings are the schedule's, and set anew before each update."""
    return state | {"optimizer": state["optimizer"]["state"]}


def copied(state: Any) -> Any:
    """A state with tensors of its own."""
    return copy.deepcopy(state)


def keys(rate: float, micro_batch: int = MICRO_BATCH, **checkpoint: Any) -> dict[str, Any]:
    how = {"every": EVERY, "keep": KEEP, "best": False, **checkpoint}
    return {"duration": STEPS, "optim": {"lr": rate}, "micro_batch": micro_batch, "checkpoint": how}


class Survival(RuleBasedStateMachine):
    """Commands in any order, and after each of them what the model says."""

    build: ClassVar[Build]
    reference: ClassVar[Reference]
    count: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        self.folder = Path(f"sequence-{self.count}")
        self.lines: list[Line] = []
        self.run: Run | None = None
        self.line: Line
        self.loop: Iterator[StepResult]
        self.step = 0
        self.exact = True
        self.untouched = True

    @property
    def bits(self) -> Any:
        """The state of the live run, to the bit."""
        assert self.run is not None
        return self.reference.bits_of(learned(self.run.trainer.state_dict()))

    @initialize(micro_batch=st.sampled_from([MICRO_BATCH, MICRO_BATCH, 4]), asynchronous=st.booleans())
    def begin(self, micro_batch: int, asynchronous: bool) -> None:
        branches: Branches = ((0, 3e-3),)
        line = Line(self.folder / "line-0", branches, Saved(self.reference.bits(branches, 0), exact=True))
        self.lines.append(line)
        self._start(line, micro_batch, asynchronous)

    @precondition(lambda self: self.run is not None and self.step < STEPS - 1)
    @rule(count=st.integers(1, 7))
    def train(self, count: int) -> None:
        losses = self.reference.losses(self.line.branches)
        for _ in range(min(count, STEPS - 1 - self.step)):
            self._saved_on_the_way()
            result = next(self.loop)
            assert result.step == self.step
            self._compare(result.loss.item(), losses[self.step])
            self.step += 1
        if self.exact:
            assert self.bits == self.reference.bits(self.line.branches, self.step)

    def _saved_on_the_way(self) -> None:
        """The loop goes on after its body: what was due after the last step is done before the next one is taken."""
        if self.step % EVERY == 0 and not self.untouched:
            self._note_save()
        self.untouched = False

    def _compare(self, loss: float, wanted: float) -> None:
        if self.exact:
            assert loss == wanted
        else:
            assert loss == pytest.approx(wanted, rel=ROUNDING)

    def _note_save(self) -> None:
        self.line.add(self.step, Saved(self.bits, self.exact))

    @precondition(lambda self: self.run is not None)
    @rule(how=st.sampled_from(["kill", "kill while saving", "close", "stop"]))
    def end(self, how: str) -> None:
        run = self.run
        assert run is not None
        if how == "stop":
            run.stop()
            if not self.untouched or self.step not in self.line.saved:
                self._note_save()
            assert next(self.loop, None) is None
        self.loop.close()  # type: ignore[attr-defined]  # leaves the loop where it is
        if how.startswith("kill"):
            run.saver.close()  # a save that had begun is one that was done
            run._resources.close()  # its lock
            run.batches.close()  # type: ignore[attr-defined]
        else:
            run.close()
            self._check_metrics(self.step if how == "stop" or self.untouched else self.step - 1)
        if how == "kill while saving":
            half = self.line.path / "checkpoints" / f"step-{self.step}.tmp-0123abcd"
            half.mkdir(parents=True, exist_ok=True)
            (half / TENSORS).write_bytes(b"half of it")
        self.run = None

    def _check_metrics(self, until: int) -> None:
        """A step is recorded when the loop goes on after it: the one whose body was left is not."""
        rows = MetricsFile(self.line.path / "metrics.jsonl").read().train
        assert [row["step"] for row in rows] == list(range(self.line.first, until))
        losses = self.reference.losses(self.line.branches)
        for row in rows:
            self._compare(row["train/loss"], losses[row["step"]])

    @precondition(lambda self: self.run is None and any(line.newest is not None for line in self.lines))
    @rule(
        draw=st.randoms(use_true_random=False),
        kind=st.sampled_from(["flip", "flip", "truncate", "drop manifest", "flip manifest", "swap"]),
    )
    def corrupt(self, draw: random.Random, kind: str) -> None:
        line = draw.choice([line for line in self.lines if line.newest is not None])
        step = draw.choice([*(step for step, each in line.saved.items() if each.whole), line.newest])
        assert step is not None
        directory = directory_of(line.path / "checkpoints", step)
        damage(directory, kind, draw)
        line.saved[step].whole = False
        line.saved[step].named = (directory / MANIFEST).exists()

    @precondition(lambda self: self.run is None)
    @rule(
        place=st.integers(0, 9),
        micro_batch=st.sampled_from([MICRO_BATCH, MICRO_BATCH, MICRO_BATCH, 1, 4]),
        asynchronous=st.booleans(),
    )
    def resume(self, place: int, micro_batch: int, asynchronous: bool) -> None:
        self._start(self.lines[place % len(self.lines)], micro_batch, asynchronous)

    @precondition(lambda self: self.run is None and any(line.saved for line in self.lines))
    @rule(draw=st.randoms(use_true_random=False), rate=st.sampled_from([3e-3, 1e-3]), asynchronous=st.booleans())
    def branch(self, draw: random.Random, rate: float, asynchronous: bool) -> None:
        source = draw.choice([line for line in self.lines if line.saved])
        step = draw.choice(list(source.saved))
        saved = source.saved[step]
        path = self.folder / f"line-{len(self.lines)}"
        changes = keys(rate, asynchronous=asynchronous)
        if not saved.whole:
            none_named = not any(each.named for each in source.saved.values())
            words = "no whole checkpoint" if none_named else f"step.{step}"
            with pytest.raises(StorageError if saved.named or none_named else ConfigError, match=words):
                self._branched(source, step, path, changes).restore()
            shutil.rmtree(path, ignore_errors=True)
            return
        line = Line(path, (*source.branches, (step, rate)), None, source)
        self.lines.append(line)
        self._begin(self._branched(source, step, path, changes), line, step, saved, MICRO_BATCH)

    def _branched(self, source: Line, step: int, path: Path, changes: dict[str, Any]) -> "Run":
        return self.build(f"{source.path}@{step}", run_dir=path, **changes)

    @precondition(lambda self: self.run is None)
    @rule(place=st.integers(0, 9))
    def move_away(self, place: int) -> None:
        """What the message advises where nothing whole is left."""
        line = self.lines[place % len(self.lines)]
        if line.saved and line.newest is None:
            shutil.rmtree(line.path / "checkpoints")
            line.saved.clear()

    def _start(self, line: Line, micro_batch: int, asynchronous: bool) -> None:
        """Start or resume a line; where checkpoints are and none is whole, it must refuse."""
        run = self.build(run_dir=line.path, **keys(line.branches[-1][1], micro_batch, asynchronous=asynchronous))
        step = line.first if line.newest is None else line.newest
        saved = line.begin if line.newest is None else line.saved[step]
        lost = bool(line.saved) and line.newest is None
        if lost or saved is None or not saved.whole:
            before = {path: path.read_bytes() for path in line.path.rglob("*") if path.is_file()}
            with run, pytest.raises(StorageError, match="none of its checkpoints is whole" if lost else f"step.{step}"):
                run.restore()
            assert {path: path.read_bytes() for path in before} == before
            return
        self._begin(run, line, step, saved, micro_batch)

    def _begin(self, run: "Run", line: Line, step: int, saved: Saved, micro_batch: int) -> None:
        from trainwell.fit import steps

        run.restore()
        self.run, self.line, self.step = run, line, step
        self.exact = saved.exact and micro_batch == MICRO_BATCH
        self.untouched = True
        assert run.trainer.step == step
        assert self.bits == saved.bits
        self.loop = steps(run)

    @invariant()
    def the_folder_holds_what_the_model_says(self) -> None:
        for line in self.lines:
            if self.run is not None and line is self.line:
                continue
            folder = line.path / "checkpoints"
            assert candidates(folder) == sorted(line.saved)
            assert saved_steps(folder) == sorted(step for step, each in line.saved.items() if each.named)
            store = CheckpointStore(folder)
            assert {step: store.problem(step) is None for step in line.saved} == {
                step: each.whole for step, each in line.saved.items()
            }

    def teardown(self) -> None:
        if self.run is not None:
            self.end("kill")
        shutil.rmtree(self.folder, ignore_errors=True)


def damage(directory: Path, kind: str, draw: random.Random) -> None:
    tensors, manifest = directory / TENSORS, directory / MANIFEST
    if kind == "drop manifest":
        manifest.unlink()
    elif kind == "truncate":
        os.truncate(tensors, draw.randrange(tensors.stat().st_size))
    elif kind == "swap":
        others = [path for path in directory.parent.glob(f"step-*/{TENSORS}") if path != tensors]
        shutil.copy(draw.choice(others), tensors) if others else tensors.unlink()
    else:
        file = manifest if kind == "flip manifest" else tensors
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)


def test_whatever_happens_in_whatever_order_a_run_goes_on_exactly_or_says_why_not(
    build_tiny: Build, bits_of: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    class Here(Survival):
        build = staticmethod(build_tiny)
        reference = Reference(build_tiny, bits_of)

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES or 10,
            stateful_step_count=30 if EXAMPLES else 16,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # a sequence takes a second: shrinking one would take minutes
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
