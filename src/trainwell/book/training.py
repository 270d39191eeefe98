"""Appendix D's `train_model` and chapter 5's `train_model_simple`, on trainwell's schedule, clipping and step.

The trainer gets no seed, so dropout draws from torch's global generator, as the book's does.
"""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainwell.book.folder import open_folder
from trainwell.book.losses import evaluate_model
from trainwell.book.record import Record, Settings
from trainwell.book.text import print_sample, sample_text
from trainwell.data.batches import Batch, BatchSource, MicroBatch
from trainwell.errors import ConfigError
from trainwell.fit import deterministic
from trainwell.optim.dialects import book as book_schedule
from trainwell.runs.rundir import local_folder
from trainwell.trainer import Trainer

MAX_GRAD_NORM = 1.0
"""What appendix D clips to."""


def train_model(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    optimizer: Any,
    device: torch.device | str,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int | None,
    start_context: str,
    tokenizer: Any,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
    orig_book_version: bool = False,
    *,
    run: str | Path | None = None,
    peak_lr: float | None = None,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """Train as appendix D does: linear warmup, cosine decay, and clipping to norm 1 from the end of the warmup.

    Args:
        model: maps ids (B, T) to logits (B, T, V); it and the optimizer end trained.
        train_loader: batches (inputs, targets), both (B, T) ids; each is a step. `val_loader` is the same.
        val_loader: as `train_loader`.
        optimizer: its rate is the peak of the schedule.
        device: where the model is.
        n_epochs: passes over `train_loader`.
        eval_freq: steps between evaluations, which happen after the step; step 0 is one.
        eval_iter: batches of each loader that an evaluation takes; None takes all.
        start_context: what the sample after each epoch continues.
        tokenizer: with tiktoken's `encode(text, allowed_special=...)` and `decode(ids)`.
        warmup_steps: steps from `initial_lr` to the peak; at least 1, fewer than there are steps.
        initial_lr: rate of step 0.
        min_lr: where the cosine would end one step after the last.
        orig_book_version: clip from the step after `warmup_steps`, as the first edition printed it: the step at the
            peak, the largest of all, is then not clipped. The default clips it.
        run: a folder that also records the training as a trainwell run: every step, checkpoints, plots. Called again
            with the same folder, the training continues from the newest checkpoint, as if it had never stopped.
        peak_lr: the peak you mean; a warning says when the optimizer has another.

    Returns:
        Training and validation losses and tokens seen at each evaluation, and the rate of every step.

    Raises:
        ConfigError: for lengths that cannot be, an empty loader, or a `run` made with other settings.
        DivergedError: after five steps in a row whose loss or gradient norm is not finite; none of them updates.
    """
    settings = Settings(
        train_loader, val_loader, _device(device), n_epochs, eval_freq, eval_iter, start_context, tokenizer
    )
    _refuse(settings, model, "n_epochs")
    _refuse_warmup(warmup_steps, settings.num_steps)
    peak = float(optimizer.param_groups[0]["lr"])
    _warn_of_rates(peak_lr, peak, initial_lr)
    trainer = Trainer(
        model,
        optimizer,
        _nothing_yet,
        schedules={"lr": book_schedule(peak, initial_lr, min_lr, warmup_steps, settings.num_steps)},
        max_grad_norm=MAX_GRAD_NORM,
        clip_from=warmup_steps + orig_book_version,
    )
    keys = {
        "schedule": {"warmup": warmup_steps, "initial_lr": initial_lr, "min_lr": min_lr},
        "optim": {"lr": peak, "max_grad_norm": MAX_GRAD_NORM, "clip_from": trainer.clip_from},
    }
    recording = nullcontext(Record(trainer)) if run is None else open_folder(local_folder(run), trainer, settings, keys)
    with deterministic(settings.device.type == "cpu"), recording as record:
        _train(record, settings, "Iter")
    return record.train_losses, record.val_losses, record.track_tokens_seen, record.track_lrs


def train_model_simple(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    optimizer: Any,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int | None,
    start_context: str,
    tokenizer: Any,
) -> tuple[list[float], list[float], list[int]]:
    """Train as chapter 5 does: the optimizer's own constant rate, nothing clipped; arguments as in `train_model`.

    Returns training and validation losses and tokens seen at each evaluation.
    """
    settings = Settings(
        train_loader, val_loader, _device(device), num_epochs, eval_freq, eval_iter, start_context, tokenizer
    )
    _refuse(settings, model, "num_epochs")
    record = Record(Trainer(model, optimizer, _nothing_yet, schedules={}, max_grad_norm=None))
    with deterministic(settings.device.type == "cpu"):
        _train(record, settings, "Step")
    return record.train_losses, record.val_losses, record.track_tokens_seen


def _train(record: Record, settings: Settings, word: str) -> None:
    """Drive the trainer around the loaders, epoch by epoch.

    trainwell's own loop (`fit.steps`) asks for the batch of a step, and nothing it does draws from the global
    generator. The book's numbers need it the other way round: iterating either loader draws, dropout draws, and an
    evaluation begins both loaders inside the pass over one of them. So this loop is the book's, and only the step in
    it is ours.
    """
    trainer, (train_loader, val_loader, device, *_) = record.trainer, settings
    for epoch in range(record.epoch, settings.epochs):
        trainer.model.train()
        for inputs, targets in record.batches(train_loader):
            trainer.batches = _whole(inputs, targets, device)
            result = trainer.take_step()
            record.stepped(result, inputs.numel())
            if device.type == "cpu" or result.step % settings.eval_freq == 0:  # reading the device waits for it
                trainer.guard.check(result.step)
            if result.step % settings.eval_freq == 0:
                losses = evaluate_model(trainer.model, train_loader, val_loader, device, settings.eval_iter)
                record.evaluated(*losses)
                print(
                    f"Ep {epoch + 1} ({word} {result.step:06d}): Train loss {losses[0]:.3f}, Val loss {losses[1]:.3f}"
                )
        trainer.guard.check(trainer.step - 1)
        text = sample_text(trainer.model, settings.tokenizer, device, settings.start_context)
        print_sample(text)
        record.epoch_ended(text)


def _device(named: torch.device | str) -> torch.device:
    """The device; ConfigError for one that torch does not know or this machine does not have."""
    try:
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device: {str(named)!r} cannot be used here; give cpu, or cuda or mps where the machine has one. "
            f"torch says: {str(error).splitlines()[0]}"
        ) from None
    return torch.device(named)


def _whole(inputs: Tensor, targets: Tensor, device: torch.device) -> BatchSource:
    """A loader's batch as the trainer asks for it: one micro-batch, whatever the step."""
    batch = Batch([MicroBatch(inputs.to(device), targets.to(device), 0)], inputs.numel(), 0.0)
    return lambda _step: batch


def _nothing_yet(step: int) -> Batch:
    raise AssertionError(f"step {step} has no batch")


def _refuse(settings: Settings, model: nn.Module, epochs: str) -> None:
    """Raise ConfigError for what the book divides by, or asks for after an epoch, without looking; all together."""
    problems = [
        f"{name}: the loader is empty; give a longer text, a smaller batch_size or max_length, or drop_last=False"
        for name in ("train_loader", "val_loader")
        if len(getattr(settings, name)) == 0
    ]
    problems += [
        f"{epochs if name == 'epochs' else name}: {value}, but it must be a whole number of at least 1"
        for name in ("epochs", "eval_freq", "eval_iter")
        if (value := getattr(settings, name)) is not None and (not isinstance(value, int) or value < 1)
    ]
    if not hasattr(settings.tokenizer, "encode") or not hasattr(settings.tokenizer, "decode"):
        kind = type(settings.tokenizer).__name__
        problems.append(f'tokenizer: {kind} has no encode and decode; give get_encoding("gpt2"), or one like it')
    elif not settings.start_context:
        problems.append("start_context: '' gives the model nothing to continue; give some text")
    if not hasattr(model, "pos_emb") and not hasattr(model, "seq_len"):
        problems.append(
            f"model: {type(model).__name__} does not say how many tokens it can see, which a sample needs to know; "
            "give it a pos_emb (an nn.Embedding), or a number seq_len"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _refuse_warmup(warmup_steps: int, num_steps: int) -> None:
    if warmup_steps < 1:
        raise ConfigError(f"warmup_steps: {warmup_steps}, but the rise to the peak is divided by it; give at least 1")
    if warmup_steps >= num_steps:
        raise ConfigError(
            f"warmup_steps: {warmup_steps}, but the training has {num_steps} steps, so the peak is never reached; "
            f"give at most {num_steps - 1}, or more epochs"
        )


def _warn_of_rates(named: float | None, used: float, initial: float) -> None:
    if initial > used:
        warnings.warn(
            f"initial_lr is {initial:g}, above the peak of {used:g} that the optimizer was made with: the warmup falls",
            UserWarning,
            stacklevel=3,
        )
    if named is not None and named != used:
        warnings.warn(
            f"peak_lr is {named:g}, but the optimizer was made with lr={used:g}, and the schedule takes its peak from "
            f"the optimizer: {used:g} is used. Make the optimizer with lr={named:g}, or leave peak_lr out",
            UserWarning,
            stacklevel=3,
        )
