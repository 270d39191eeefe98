"""A run: a trainer, its data and a folder, and everything the loop says to them. Made by `build`, driven by `fit`.

What a step does is the trainer's; what a file looks like is the business of `runs` and `checkpoint`.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self

from torch import nn

from trainwell.answers import continued, prompt_ids
from trainwell.checkpoint.layout import write_synced
from trainwell.checkpoint.store import CheckpointStore
from trainwell.config.render import to_yaml
from trainwell.config.tree import RunConfig
from trainwell.data.batches import BatchSource, MicroBatch, Prefetch
from trainwell.data.order import seed_for
from trainwell.data.templates import Template
from trainwell.data.tokenizer import Tokenizer
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.evaluate import Evaluation, evaluate
from trainwell.hellaswag import Question, hellaswag
from trainwell.model.loss import Loss
from trainwell.planning.bands import Band, band_line
from trainwell.planning.resolve import Plan
from trainwell.planning.target import best_evaluation
from trainwell.recorder import Recorder
from trainwell.runs.console import Console, parts_line, short_time
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir
from trainwell.settings import Settings, environment
from trainwell.trainer import Trainer

_BACKWARD_AND_UPDATE = 3.2
"""A training step takes about so many times its forward pass."""


class Stateful(Protocol):
    """Anything that can be saved with a run."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, text, and dicts and lists of them."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore what state_dict gave."""


def load_trainer(trainer: Trainer, state: dict[str, Any], source: str, *, own_settings: bool = False) -> None:
    """Restore a trainer, or raise ConfigError naming the `source` whose state does not fit it.

    A checkpoint carries the optimizer's settings with its state; `own_settings` keeps those of this trainer.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in trainer.optimizer.param_groups]
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the weights or the optimizer's state in {source} do not fit this run; give both the same model and "
            f"optim.name, tokenizer and data.seq_len. {str(error).splitlines()[-1].strip()}"
        ) from error
    if own_settings:
        for group, settings in zip(trainer.optimizer.param_groups, own, strict=True):
            group.update(settings)


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    save: bool
    evaluate: bool
    sample: bool
    stop: bool


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

    def __post_init__(self) -> None:
        self.console = Console(self.num_steps, self.config.log.every)
        self.store = CheckpointStore(self.run_dir.checkpoints, keep=self.config.checkpoint.keep)
        self.metrics = Recorder(self)
        self.stopped = False
        self._closed = False
        self._kept: dict[str, Stateful] = {}
        self._resources = ExitStack()
        self._restored = False
        self._best: tuple[float, int] | None = None
        self._saved: int | None = None

    @property
    def num_steps(self) -> int:
        """Length of the run."""
        return self.plan.num_steps

    @property
    def _samples(self) -> bool:
        """Whether text is drawn from it in between."""
        return self.tokenizer is not None and not self.labels and self.config.sample.every is not None

    def keep(self, name: str, part: Stateful) -> None:
        """Save, verify and restore `part` with the run; call it before the first step."""
        if self._restored:
            raise ConfigError(f"keep({name!r}) comes after the run was restored; call it before steps(run) or fit(run)")
        self._kept[name] = part

    def log(self, **values: Any) -> None:
        """Add values (numbers, text, one-element tensors) to the current step's line in metrics.jsonl."""
        self.metrics.log(values)

    def stop(self) -> None:
        """Ask the run to save and end after the step it is in; safe to call from a signal handler."""
        self.stopped = True

    def due(self, step: int) -> Due:
        """What is to be done after `step`: a function of the step, and of whether a stop was asked for."""
        state = step + 1
        last = state == self.num_steps
        stop = self.stopped and not last

        def on(every: int | None) -> bool:
            return last or (every is not None and state % every == 0)

        return Due(
            save=stop or on(self.plan.save_every),
            evaluate=not stop and self.val is not None and on(self.plan.eval_every),
            sample=not stop and self._samples and on(self.plan.sample_every),
            stop=stop,
        )

    def restore(self) -> None:
        """Own the folder; take the newest checkpoint that verifies, or start afresh, and say which."""
        if self._closed:
            raise ConfigError(f"the run in {self.run_dir.path} is closed; build it again to continue it")
        if self._restored:
            return
        self._resources.enter_context(self.run_dir.lock())
        self._restored = True
        for line in self.summary:
            self.console.message(line)
        step = self.store.newest(self.console.message)
        if step is not None:
            self._load(self.store, step)
            done = f"{self.run_dir.path} is finished: {step:,} of {self.num_steps:,} steps"
            goes_on = f"continuing {self.run_dir.path} from step {step:,} of {self.num_steps:,}"
            self.console.message(goes_on if step < self.num_steps else done)
        elif self.parent is not None:
            self._load(CheckpointStore(self.parent[0].checkpoints), self.parent[1], same_data=False)
            self.console.message(
                f"branching from {self.parent[0].path} at step {self.parent[1]:,} into {self.run_dir.path}"
            )
        MetricsFile(self.run_dir.metrics_jsonl).rewind(self.trainer.step, self.run_dir.attempts)
        self._describe()
        self._best = best_evaluation(self.run_dir)
        self.metrics.begin()

    def _load(self, store: CheckpointStore, step: int, *, same_data: bool = True) -> None:
        state, meta = store.load(step)
        if same_data and meta["data"] != self.facts:
            then, now = meta["data"], self.facts
            differing = "; ".join(
                f"{key}: {then.get(key)} then, {now.get(key)} now" for key in now if then.get(key) != now[key]
            )
            raise DataError(
                f"the data is not what {self.run_dir.path} was trained on ({differing}). Bring that text back, or "
                f"branch from it: trainwell train {self.run_dir.path}@{step} --run NEW"
            )
        missing, unknown = self._kept.keys() - state["kept"].keys(), state["kept"].keys() - self._kept.keys()
        if missing and same_data:
            raise ConfigError(
                f"{store.folder} holds no state of {', '.join(sorted(missing))}; it was not kept when it was saved"
            )
        if unknown:
            self.console.message(
                f"state of {', '.join(sorted(unknown))} in the checkpoint is left alone: nothing here keeps it"
            )
        load_trainer(self.trainer, state["trainer"], f"{store.folder}/step-{step}", own_settings=not same_data)
        for name in self._kept.keys() - missing:
            self._kept[name].load_state_dict(state["kept"][name])
        self._saved = step if same_data else None

    def _describe(self) -> None:
        """Write what the run is: config.yaml each time, env.json and the tokenizer once."""
        try:
            write_synced(self.run_dir.config_yaml, to_yaml(self.config).encode())
            if not self.run_dir.env_json.exists():
                parent = None if self.parent is None else f"{self.parent[0].path}@{self.parent[1]}"
                content = environment(self.settings) | {
                    "data": self.facts,
                    "counts": None if self.plan.info is None else asdict(self.plan.info),
                    "parent": parent,
                    "duration": self.asked_duration,
                }
                write_synced(self.run_dir.env_json, json.dumps(content, indent=1).encode())
                if self.tokenizer is not None:
                    self.tokenizer.save(self.run_dir.path)
                if self.template is not None:
                    write_synced(self.run_dir.template_json, json.dumps(self.template.state(), indent=1).encode())
        except OSError as error:
            raise StorageError(
                f"{self.run_dir.path} cannot be written: {error}; choose another folder with --run"
            ) from error

    def rehearse(self) -> None:
        """Do once what will be needed later, so that faults show now: evaluate a batch, draw a token, write a file.

        Nothing is recorded and nothing changes; a fresh run then evaluates fully, at step 0.
        """
        if self.trainer.step >= self.num_steps:
            return
        self._rehearse_file()
        if self._samples:
            self._generate(1)
        if self.val is not None:
            self._rehearse_evaluation(next(iter(self.val())))
        if self.val is not None and self.trainer.step == 0 and self.config.eval.every is not None:
            self.record(self.evaluate())
        self.metrics.pause()

    def _rehearse_file(self) -> None:
        trial = self.run_dir.path / ".rehearsal"
        try:
            write_synced(trial, bytes(4096))
            trial.unlink()
        except OSError as error:
            raise StorageError(
                f"{self.run_dir.path} cannot be written: {error}; choose another folder with --run"
            ) from error

    def _rehearse_evaluation(self, first: MicroBatch) -> None:
        seconds = math.inf
        for _ in range(2):
            begin = time.perf_counter()
            evaluate(self.model, lambda: [first], self.loss, autocast=self.settings.autocast)
            seconds = min(seconds, time.perf_counter() - begin)
        before = self.plan.batch.examples_before
        micro_batches = (before(self.num_steps) - before(self.trainer.step)) / self.settings.micro_batch
        left = micro_batches * seconds * _BACKWARD_AND_UPDATE
        self.console.message(f"about {short_time(left)} to go, judged by one forward pass")

    def evaluate(self) -> Evaluation:
        """Evaluate the model as it is now."""
        if self.val is None:
            raise ConfigError("this run has no validation data; give some with build(val=...)")
        found = evaluate(
            self.model, self.val, self.loss, autocast=self.settings.autocast, bytes_per_token=self.bytes_per_token
        )
        if not self.questions or self.tokenizer is None:
            return found
        score = hellaswag(
            self.model,
            self.tokenizer,
            self.questions,
            context=self.plan.seq_len,
            autocast=self.settings.autocast,
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
        between = "" if self.template is None else " -> "
        text = f"{self.config.sample.prompt}{between}{self._generate(self.config.sample.tokens)}"
        self.write_sample(text)
        self.console.message(f"step {self.trainer.step:4d} | sample: {text}")
        self.metrics.pause()

    def write_sample(self, text: str) -> None:
        """Append text that the current state generated from the run's prompt to samples.txt."""
        about = f"=== step {self.trainer.step} | prompt {json.dumps(self.config.sample.prompt)} ==="
        with self.run_dir.samples_txt.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{about}\n{text}\n")

    def _generate(self, max_tokens: int) -> str:
        tokenizer, how = self.tokenizer, self.config.sample
        if tokenizer is None:
            raise ConfigError("this run's data was given as ids, so there is no tokenizer and no text to sample")
        ids = continued(
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
        return tokenizer.decode(list(ids))

    def save(self) -> None:
        """Save the current state, verified, unless it is saved already."""
        step = self.trainer.step
        if step == self._saved:
            return
        self.metrics.flush()
        kept = {name: part.state_dict() for name, part in self._kept.items()}
        state = {"trainer": self.trainer.state_dict(), "kept": kept}
        protected = {self._best[1]} if self._best is not None else set()
        self.store.save(step, state, {"data": self.facts, "tokens": self.plan.batch.tokens_before(step)}, protected)
        self._saved = step
        self.metrics.pause()

    def close(self) -> None:
        """Write what waits, end the data thread, give the folder back; may be called again."""
        self._closed = True
        self.metrics.flush(check=False)
        self.console.close()
        if isinstance(self.batches, Prefetch):
            self.batches.close()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
