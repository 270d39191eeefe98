"""The door from the book into trainwell: the same training recorded as a run, with resume, plots and report.

Everything that is written is written by `trainwell.run`; this says what a loader and an optimizer come to as a
configuration, and keeps the random generators, which the book's loop carries from step to step and a run's does not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from trainwell.book.model import GPTModel
from trainwell.book.record import Record, Settings
from trainwell.book.text import SAMPLE_TOKENS
from trainwell.checkpoint.layout import saved_steps
from trainwell.config.load import load_recorded
from trainwell.data.batches import Examples
from trainwell.errors import ConfigError
from trainwell.evaluate import Evaluation
from trainwell.fit import conclude
from trainwell.given import Data, Given, data_from, describe_custom
from trainwell.model.loss import token_loss
from trainwell.optim.batch_plan import BatchPlan
from trainwell.optim.clip import folds
from trainwell.planning.resolve import Plan, resolve
from trainwell.planning.target import find_start
from trainwell.recorder import Recorder
from trainwell.rehearsal import rehearse
from trainwell.run import Run
from trainwell.runs.console import Console
from trainwell.runs.rundir import RunDir, is_run
from trainwell.settings import decide, recorded_settings
from trainwell.trainer import StepResult, Trainer

SAVE_EVERY = 500
"""Steps between checkpoints inside an epoch; there is one at the end of every epoch too."""
KEEP = 2


@contextmanager
def open_folder(path: Path, trainer: Trainer, settings: Settings, keys: Mapping[str, Any]) -> Iterator["RunRecord"]:
    """Give a record that writes into the run folder `path`, restored from its newest checkpoint where it has one.

    `keys` are sections of the configuration that the caller knows. Afterwards the optimizer has its peak rate again,
    so that the same call can be made once more. Raises ConfigError when `path` holds a run with other settings.
    """
    peak = trainer.optimizer.param_groups[0]["lr"]
    run = _run(path, trainer, settings, keys)
    record = RunRecord(run, _generators(settings), run.plan)
    run.keep("book", record)
    try:
        with run:
            run.restore()
            rehearse(run)
            if not saved_steps(run.run_dir.checkpoints):
                run.save()  # a training that is interrupted in its first epoch begins again from here, not from there
            yield record
            conclude(run)
    finally:
        for group in trainer.optimizer.param_groups:
            group["lr"] = peak


class RunRecord(Record):
    """The book's lists, kept with a run: saved, verified and restored together with weights and generators."""

    def __init__(self, run: Run, generators: list[Any], plan: Plan) -> None:
        super().__init__(run.trainer)
        self._run = run
        self._generators = generators
        self._targets = plan.num_val_windows * plan.seq_len
        self._began: list[Tensor] = []

    def begin(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin an epoch; one that was left in its middle is begun as it was then, and skipped up to there."""
        if not self.done:
            self._began = self._states()
            return super().begin(loader)
        now = self._states()
        self._set(self._began)
        batches: Iterator[tuple[Tensor, Tensor]] = iter(loader)
        for _ in range(self.done):
            next(batches)
        self._set(now)
        return batches

    def stepped(self, result: StepResult, tokens: int) -> None:
        """Write the step's line."""
        super().stepped(result, tokens)
        self._run.metrics.add(result)

    def evaluated(self, train_loss: float, val_loss: float) -> None:
        """Write the evaluation's line."""
        super().evaluated(train_loss, val_loss)
        self._run.metrics.evaluated(self.trainer.step, Evaluation(val_loss, self._targets))
        self._run.metrics.pause()

    def after_batch(self, per_epoch: int) -> None:
        """Save inside an epoch that is long; its last batch is saved after the sample."""
        if self.done % SAVE_EVERY == 0 and self.done < per_epoch:
            self._run.save()

    def epoch_ended(self, sample: str) -> None:
        """Write the sample, and save."""
        super().epoch_ended(sample)
        self._run.write_sample(sample)
        self._run.save()

    def state_dict(self) -> dict[str, Any]:
        """The lists, the place in the epoch, and the generators: now, and as the epoch began."""
        return {
            "train_losses": self.train_losses,
            "val_losses": self.val_losses,
            "track_tokens_seen": self.track_tokens_seen,
            "track_lrs": self.track_lrs,
            "tokens_seen": self.tokens_seen,
            "epoch": self.epoch,
            "done": self.done,
            "began": self._began,
            "now": self._states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, the generators included."""
        self.train_losses, self.val_losses = state["train_losses"], state["val_losses"]
        self.track_tokens_seen, self.track_lrs = state["track_tokens_seen"], state["track_lrs"]
        self.tokens_seen, self.epoch, self.done = state["tokens_seen"], state["epoch"], state["done"]
        self._began = state["began"]
        self._set(state["now"])

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _generators(settings: Settings) -> list[Any]:
    """Every generator that the loop may draw from: torch's own, the device's, and those that the loaders bring."""
    loaders = (settings.train_loader, settings.val_loader)
    sources = [source for loader in loaders for source in (loader, loader.sampler)]
    own = [source.generator for source in sources if getattr(source, "generator", None) is not None]
    found = [torch.default_generator, *own]
    if settings.device.type == "cuda":
        index: Any = settings.device.index  # None, whatever its type says, for a device without a number
        found.append(torch.cuda.default_generators[torch.cuda.current_device() if index is None else index])
    elif settings.device.type == "mps":
        found.append(SimpleNamespace(get_state=torch.mps.get_rng_state, set_state=torch.mps.set_rng_state))
    return found


@dataclass(frozen=True)
class EpochBatches(BatchPlan):
    """The batches of a loader: `per_epoch` over `examples` examples, so the last of an epoch may be smaller."""

    examples: int = 0
    per_epoch: int = 1

    def size(self, step: int) -> int:
        """Sequences in the batch of `step`."""
        return self.examples_before(step + 1) - self.examples_before(step)

    def examples_before(self, step: int) -> int:
        """Sequences consumed before `step`."""
        epochs, inside = divmod(step, self.per_epoch)
        return epochs * self.examples + inside * self.batch_size


class _Quiet(Console):
    """Leaves the lines of steps to the book; what a run has to say beyond them it says."""

    def step_line(self, step: int, loss: float, lr: float, norm: float, dt_s: float, tok_per_s: float) -> None:
        """Print nothing."""


def _run(path: Path, trainer: Trainer, settings: Settings, keys: Mapping[str, Any]) -> Run:
    """The run that a training by the book is; nothing is read or written yet, and nothing is drawn."""
    train, batch_size = _examples(settings, "train_loader")
    val, _ = _examples(settings, "val_loader")
    given = Given(model=trainer.model, data=train, val=val, optimizer=trainer.optimizer)
    flags = _flags(path, trainer, settings, keys, batch_size)
    start = find_start("book", flags=flags, run=path, source="train_model(...)", data=train)
    data = data_from(start.config, given)
    data, plan = _plan(data, settings, batch_size)
    config = plan.config.model_copy(update={"custom": describe_custom(given, trainer.model)})
    notes: list[str] = []
    run = Run(
        config=config,
        plan=plan,
        settings=decide(config, plan, recorded_settings(start.run_dir), notes.append),
        run_dir=start.run_dir,
        trainer=trainer,
        model=trainer.model,
        loss=token_loss,
        batches=trainer.batches,
        val=None,
        tokenizer=None,
        summary=notes,
        flops_per_token=None,
        bytes_per_token=None,
        facts=data.facts,
        asked_duration=f"{settings.epochs} epochs",
    )
    run.console = _Quiet(plan.num_steps, config.log.every)
    run.metrics = Recorder(run)
    return run


def _examples(settings: Settings, name: str) -> tuple[Examples, int]:
    loader = getattr(settings, name)
    examples, batch_size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
    if not isinstance(examples, Examples) or not isinstance(batch_size, int):
        raise ConfigError(
            f"run: {name} is a {type(loader).__name__}; a run is recorded for a DataLoader over a data set with a "
            "length and a batch_size. Give one, or leave run out"
        )
    return examples, batch_size


def _flags(
    path: Path, trainer: Trainer, settings: Settings, keys: Mapping[str, Any], batch_size: int
) -> dict[str, Any]:
    """The keys that differ from the recipe `book`. The seed is the one that torch was last seeded with."""
    seed = load_recorded(RunDir(path).config_yaml).seed if is_run(path) else torch.initial_seed() % 2**63
    optim = keys["optim"]
    if isinstance(trainer.optimizer, torch.optim.AdamW):
        group = trainer.optimizer.param_groups[0]
        optim = {**optim, **{key: group[key] for key in ("betas", "eps", "weight_decay")}}
    return {
        **keys,
        "optim": optim,
        "model": _shape(trainer.model),
        "extra": {"book": _what_changes_numbers(trainer, settings)},
        "name": RunDir(path).name,
        "seed": seed,
        "duration": settings.num_steps,
        "batch_size": batch_size,
        "micro_batch": batch_size,
        "device": settings.device.type,
        "kernels": "auto" if folds(trainer.optimizer) else "reference",
        "eval": {"every": settings.eval_freq, "batches": settings.eval_iter or 0},
        "sample": {"prompt": settings.start_context, "tokens": SAMPLE_TOKENS, "temperature": 0.0, "top_k": None},
        "checkpoint": {"every": min(len(settings.train_loader), SAVE_EVERY), "keep": KEEP, "best": False},
    }


def _shape(model: Any) -> dict[str, Any]:
    """The keys of the section `model`, where the model is the book's."""
    if not isinstance(model, GPTModel):
        return {}
    attention: Any = model.trf_blocks[0].att
    return {
        "num_layers": len(model.trf_blocks),
        "num_heads": attention.num_heads,
        "width": model.tok_emb.embedding_dim,
        "dropout": model.drop_emb.p,
        "qkv_bias": attention.W_query.bias is not None,
        "pad_vocab_to": model.tok_emb.num_embeddings,
    }


def _what_changes_numbers(trainer: Trainer, settings: Settings) -> dict[str, Any]:
    """What no other key says and a training cannot continue with another of; evaluating too draws random numbers."""
    windows = sha256()
    for loader in (settings.train_loader, settings.val_loader):
        for index in (0, len(loader.dataset) - 1):
            windows.update(torch.as_tensor(loader.dataset[index][0]).numpy().tobytes())
    dropout = {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}
    return {
        "optimizer": type(trainer.optimizer).__name__,
        "dropout": sorted(dropout),
        "eval_freq": settings.eval_freq,
        "eval_iter": settings.eval_iter,
        "order": type(getattr(settings.train_loader, "sampler", None)).__name__,
        "windows": windows.hexdigest()[:16],
    }


def _plan(data: Data, settings: Settings, batch_size: int) -> tuple[Data, Plan]:
    """The plan of the loader's own batches; examples that it drops are not counted, so that its epochs are whole."""
    loader, seq_len = settings.train_loader, data.config.data.seq_len
    examples = min(len(loader.dataset), len(loader) * batch_size)
    data = replace(data, info=replace(data.info, train_tokens=examples * seq_len + 1))
    plan = resolve(data.config, data.info)
    return data, replace(plan, batch=EpochBatches(batch_size, seq_len, examples=examples, per_epoch=len(loader)))
