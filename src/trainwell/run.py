"""A run: a trainer, its data and a folder, and everything the loop says to them. Made by `build`, driven by `fit`.

What a step does is the trainer's; what a file looks like is the business of `runs` and `checkpoint`.
"""

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import nn

from trainwell import faults
from trainwell.answers import continued, prompt_ids
from trainwell.checkpoint.layout import saved_steps
from trainwell.checkpoint.store import CheckpointStore
from trainwell.config.tree import RunConfig
from trainwell.data.batches import BatchSource, MicroBatch, Prefetch
from trainwell.data.order import seed_for
from trainwell.data.templates import Template
from trainwell.data.tokenizer import Tokenizer
from trainwell.distributed.world import ALONE, World
from trainwell.errors import ConfigError, StorageError
from trainwell.evaluate import Evaluation, evaluate
from trainwell.hellaswag import Question, hellaswag
from trainwell.model.loss import Loss
from trainwell.planning.bands import Band, band_line
from trainwell.planning.due import Due, due
from trainwell.planning.resolve import Plan
from trainwell.planning.target import best_evaluation
from trainwell.recorder import Recorder
from trainwell.rehearsal import rehearse
from trainwell.restoring import load_newest, on_file, own_folder, set_aside
from trainwell.runs.bystander import NoSamples
from trainwell.runs.console import Console, Silent, parts_line
from trainwell.runs.rundir import RunDir
from trainwell.runs.samples import Sample, SamplesFile
from trainwell.saver import Saver, Stateful, describe
from trainwell.settings import Settings
from trainwell.stopping import Stop
from trainwell.trainer import Trainer

_T = TypeVar("_T")


class _GivenUpError(Exception):
    """An evaluation or a sample was left in its middle, because the run is asked to stop."""


@dataclass(kw_only=True)
class Run:
    """One training run. A context manager: leaving it writes what waits and gives the folder back.

    Nothing is read or written in its folder before `restore`.
    """

    config: RunConfig
    """What was asked for, with what had to be measured filled in."""
    plan: Plan
    """What it comes to: steps, schedules, batches."""
    settings: Settings
    """What `auto` came to."""
    run_dir: RunDir
    """Its folder."""
    trainer: Trainer
    """Takes the steps."""
    model: nn.Module
    """The model as it was made or given, not compiled."""
    loss: Loss
    """The loss as the trainer calls it."""
    batches: BatchSource
    """The global batch of a step."""
    val: Callable[[], Iterable[MicroBatch]] | None
    """The validation micro-batches, the same each time; None where there are none."""
    tokenizer: Tokenizer | None
    """Turns text into ids and back; None for data that was given, and then there are no samples."""
    summary: list[str]
    """Lines for the screen before step 1."""
    flops_per_token: float | None
    """Of the model; None where it is not known."""
    bytes_per_token: float | None
    """Of the validation text, for bits per byte."""
    facts: dict[str, Any]
    """What identifies the data: another text on resume is noticed."""
    bands: tuple[Band, ...] = ()
    """Losses this recipe usually gives."""
    parent: tuple[RunDir, int] | None = None
    """The run and step it branches from."""
    template: Template | None = None
    """Of task instruct: how a question becomes text."""
    labels: tuple[str, ...] = ()
    """Of task classify: the names of the classes."""
    questions: Sequence[Question] = ()
    """Of HellaSwag, asked with every evaluation."""
    asked_duration: str = ""
    """The duration as it was asked for, before it was counted in steps."""
    picture: Callable[[Path], str] | None = None
    """Makes HTML of what is in its folder, for a notebook."""
    world: World = ALONE
    """The ranks that share its steps. All call every method here in the same order; the first prints and writes."""

    def __post_init__(self) -> None:
        main = self.world.main
        self.console = (Console if main else Silent)(self.num_steps, self.config.log.every)
        self.saver = Saver(self)
        self.metrics = Recorder(self)
        self.ends = Stop(self.world, self.settings.device)
        self.trainer.asked = lambda: self.ends.asked
        self._closed = False
        self._abandoned = False
        self._resources = ExitStack()
        self._restored = False
        self._given_up = False
        self._best: tuple[float, int] | None = None
        self.samples_file = (SamplesFile if main else NoSamples)(self.run_dir.samples_txt)
        self.trainer.measure_every = self.config.log.every

    @property
    def num_steps(self) -> int:
        """Length of the run."""
        return self.plan.num_steps

    @property
    def finished(self) -> bool:
        """Whether every step is taken, and what was due after the last one done."""
        return self.trainer.step >= self.num_steps and not self._given_up

    @property
    def samples(self) -> bool:
        """Whether text is drawn from it in between."""
        return self.tokenizer is not None and not self.labels and self.config.sample.every is not None

    @property
    def store(self) -> CheckpointStore:
        """Its checkpoints."""
        return self.saver.store

    def keep(self, name: str, part: Stateful) -> None:
        """Save, verify and restore `part` with the run; call it before the first step."""
        if self._restored:
            raise ConfigError(f"keep({name!r}) comes after the run was restored; call it before steps(run) or fit(run)")
        self.saver.kept[name] = part

    def log(self, **values: Any) -> None:
        """Add values (numbers, text, one-element tensors) to the current step's line in metrics.jsonl."""
        self.metrics.log(values)

    def stop(self) -> None:
        """Ask the run to save and end after the step it is in; safe to call from a signal handler, on any rank."""
        self.ends.asked = True

    @property
    def stopped(self) -> bool:
        """Whether it is asked to end, here or, once all know of it, on another rank."""
        return self.ends.asked or self.ends.agreed

    def due(self, step: int) -> Due:
        """What is to be done after `step`: a function of the step and of nothing else."""
        return due(self.plan, step, evaluates=self.val is not None, samples=self.samples)

    def restore(self) -> None:
        """Own the folder; take the newest checkpoint that verifies, or start afresh, and say which."""
        if self._closed:
            raise ConfigError(f"the run in {self.run_dir.shown} is closed; build it again to continue it")
        if self._restored:
            return
        own_folder(self, self._resources)
        self._restored = True
        for line in self.summary:
            self.console.message(line)
        load_newest(self)
        self.world.from_main(self._settle)
        self.find_best()
        self.metrics.begin()

    def _settle(self) -> None:
        set_aside(self)
        describe(self)

    def find_best(self) -> None:
        """Look which of the saved states is the best, where that one is kept."""
        best = self.config.checkpoint.best
        self._best = self.world.from_main(lambda: best_evaluation(self.run_dir) if best else None)

    def rehearse(self) -> None:
        """Do once what will be needed later; a fresh run then evaluates fully, at step 0.

        A run that goes on makes up for what it had no time for when it ended: what is due at its state and not on file.
        """
        if self.trainer.step < self.num_steps:
            rehearse(self)
        if self.trainer.step == 0:
            at_start = self.val is not None and self.config.eval.every is not None
            self.observe(self._missed(Due(save=False, evaluate=at_start, sample=False)))
        elif self.saver.step == self.trainer.step:
            self.observe(self._missed(self.due(self.trainer.step - 1)))
        self.metrics.pause()

    def _missed(self, due: Due) -> Due:
        evaluated, sampled = self.world.from_main(lambda: on_file(self))
        return replace(due, evaluate=due.evaluate and not evaluated, sample=due.sample and not sampled)

    def observe(self, due: Due) -> None:
        """Evaluate and sample what is due; given up when a stop is asked for, and made up for when the run goes on."""
        if not (due.evaluate or due.sample):
            return
        try:
            self._go_on()
            if due.evaluate:
                self.record(self.evaluate())
            if due.sample:
                self.sample()
        except _GivenUpError:
            self._given_up = True

    def _go_on(self) -> None:
        if self.ends.now():
            raise _GivenUpError

    def _unless_stopped(self, parts: Iterable[_T], point: str) -> Iterator[_T]:
        for part in parts:
            yield part
            faults.reach(point, self.trainer.step, self.world.rank)
            self._go_on()

    def evaluate(self) -> Evaluation:
        """Evaluate the model as it is now."""
        val = self.val
        if val is None:
            raise ConfigError("this run has no validation data; give some with build(val=...)")
        found = evaluate(
            self.model,
            lambda: self._unless_stopped(val(), "eval.mid"),
            self.loss,
            autocast=self.settings.autocast,
            bytes_per_token=self.bytes_per_token,
            world=self.world,
        )
        if not self.questions or self.tokenizer is None:
            return found
        score = hellaswag(
            self.model,
            self.tokenizer,
            self.questions,
            context=self.plan.seq_len,
            autocast=self.settings.autocast,
            between=self._go_on,
        )
        asked = {"hellaswag": score.accuracy_norm, "hellaswag/sum": score.accuracy}
        return replace(found, parts={**found.parts, **asked})

    def record(self, evaluation: Evaluation) -> None:
        """Write and print an evaluation of the current state; keep its checkpoint if it is the best."""
        step = self.trainer.step
        self.metrics.evaluated(step, evaluation)
        bits = "" if evaluation.bits_per_byte is None else f" | bits/byte: {evaluation.bits_per_byte:.3f}"
        self.console.message(f"step {step:4d} | val loss: {evaluation.loss:.6f}{bits}{parts_line(evaluation.parts)}")
        usual = band_line(self.bands, self.plan.batch.tokens_before(step), evaluation.loss)
        if usual is not None and step > 0:
            self.console.message(usual)
        if self.config.checkpoint.best and step > 0 and evaluation.loss < (self._best or (math.inf, 0))[0]:
            self._best = (evaluation.loss, step)
            self.save()
        self.metrics.pause()

    def sample(self) -> None:
        """Generate text from the current state; print it and append it to samples.txt."""
        with closing(self._drawn(self.config.sample.tokens)) as ids:
            if self.world.size == 1 or self.settings.parallel == "fsdp":
                drawn = self._decoded(self._unless_stopped(ids, "sample.mid"))
            else:  # the first rank has all weights too: it draws, and the others wait
                drawn = self.world.from_main(lambda: self._decoded(takewhile(lambda _: not self.ends.asked, ids)))
                self._go_on()  # what was left in its middle is given up on all
        text = f"{self.config.sample.prompt}{'' if self.template is None else ' -> '}{drawn}"
        self.write_sample(text)
        self.console.message(f"step {self.trainer.step:4d} | sample: {text}")
        self.metrics.pause()

    def write_sample(self, text: str) -> None:
        """Append text that the current state generated from the run's prompt to samples.txt."""
        about = f"prompt {json.dumps(self.config.sample.prompt)}"
        try:
            self.samples_file.append(Sample(self.trainer.step, about, text))
        except StorageError as error:
            self.console.message(f"{error}; training goes on without this sample")

    def generate(self, max_tokens: int) -> str:
        """Text that continues the run's prompt, the same for the same state."""
        return self._decoded(self._drawn(max_tokens))

    def _decoded(self, ids: Iterable[int]) -> str:
        assert self.tokenizer is not None, "drawn with it"
        return self.tokenizer.decode(list(ids))

    def _drawn(self, max_tokens: int) -> Generator[int, None, None]:
        tokenizer, how = self.tokenizer, self.config.sample
        if tokenizer is None:
            raise ConfigError("this run's data was given as ids, so there is no tokenizer and no text to sample")
        yield from continued(
            self.model,
            tokenizer,
            self.template,
            prompt_ids(tokenizer, how.prompt, self.template),
            context=self.plan.seq_len,
            max_tokens=max_tokens,
            temperature=how.temperature,
            top_k=how.top_k,
            seed=seed_for(self.config.seed, "sample", self.trainer.step),
        )

    def save(self) -> None:
        """Save the current state, verified, unless it is saved already; a failure is reported and ends nothing."""
        if self.saver.step == self.trainer.step:
            return
        self.metrics.add_expected()
        self.metrics.flush()
        self.saver.save({self._best[1]} if self._best is not None else set())
        self.metrics.pause()

    def finish(self) -> None:
        """Wait until the last state and all metrics are on disk; what failed is tried once more.

        Raises StorageError when that fails too.
        """
        self.saver.join()
        if self.saver.failed is not None:
            self.save()
            self.saver.join()
        self.metrics.flush(check=False)
        self.world.together(self._raise_unwritten)

    def _raise_unwritten(self) -> None:
        problem = self.saver.failed or self.metrics.unwritten
        if problem is not None:
            raise problem

    def _raise_unsaved(self) -> None:
        self._raise_unwritten()
        problem = self.saver.push() if self._restored else None
        if problem is not None:
            raise problem

    def close(self, *, failed: bool = False) -> None:
        """Write what waits, end the threads, give the folder back; may be called again.

        Raises StorageError where the last state or metrics could not be written, unless the run has `failed` already.
        """
        if self._closed:
            return
        self._closed = True
        if failed:
            self.world = replace(self.world, size=1)  # the others may be anywhere: nothing more is asked of them
        with self._resources:
            try:
                self.metrics.flush(check=False, measure=not failed)
            finally:
                self.metrics.close()
                self.console.close()
                if isinstance(self.batches, Prefetch):
                    self.batches.close(wait_for_it=not self._abandoned)
                self.saver.close()
            if failed:
                return
            self.world.together(self._raise_unsaved)

    def abandon(self) -> None:
        """Wait for no thread from now on: the process is about to end, and what is written stays."""
        self._abandoned = True
        self.saver.abandon()

    def _repr_html_(self) -> str | None:
        return None if self.picture is None else self.picture(self.run_dir.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(failed=error is not None)
        if kind is KeyboardInterrupt and self._restored:  # in the middle of a step: nothing half done is saved
            saved = saved_steps(self.run_dir.checkpoints)
            newest = f"step {saved[-1]:,}" if saved else "the beginning"
            self.console.message(
                f"interrupted at step {self.trainer.step:,}; it goes on from {newest} when started again"
            )
