"""What the book's functions are given, and what they remember: four lists. `folder` keeps them with a run."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainwell.trainer import StepResult, Trainer


class Settings(NamedTuple):
    """What both of the book's functions are given about the loop."""

    train_loader: Any
    val_loader: Any
    device: torch.device
    epochs: int
    eval_freq: int
    eval_iter: int | None
    start_context: str
    tokenizer: Any

    @property
    def num_steps(self) -> int:
        """Steps of the whole training: each batch is one."""
        return len(self.train_loader) * self.epochs


class Record:
    """The book's lists while they grow, and how far the training is: `epoch`, and `done` batches of it."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.train_losses: list[float] = []
        self.val_losses: list[float] = []
        self.track_tokens_seen: list[int] = []
        self.track_lrs: list[float] = []
        self.tokens_seen = 0
        self.epoch = 0
        self.done = 0

    def batches(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the epoch that are left; counts each after the body has used it."""
        for batch in self.begin(loader):
            yield batch
            self.done += 1
            self.after_batch(len(loader))

    def begin(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin the loader, which draws from the global generator."""
        return iter(loader)

    def stepped(self, result: StepResult, tokens: int) -> None:
        """Take a step over so many tokens."""
        self.tokens_seen += tokens
        self.track_lrs.append(result.lr)

    def evaluated(self, train_loss: float, val_loss: float) -> None:
        """Take an evaluation of the state after the last step."""
        self.train_losses.append(train_loss)
        self.val_losses.append(val_loss)
        self.track_tokens_seen.append(self.tokens_seen)

    def after_batch(self, per_epoch: int) -> None:
        """Do what is due after a batch, of so many in an epoch; nothing without a folder."""

    def epoch_ended(self, sample: str) -> None:
        """Take the end of an epoch, and the sample that was printed there."""
        self.epoch += 1
        self.done = 0
