"""What chapter 5 and appendix D of the book measure: losses of batches and loaders, and the highest gradient."""

from typing import Any

import torch
from torch import Tensor, nn

from trainwell.data.batches import MicroBatch
from trainwell.data.examples import IGNORED
from trainwell.model.loss import token_loss

Device = torch.device | str


def calc_loss_batch(input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: Device) -> Tensor:
    """Mean cross-entropy in nats per target of one batch, both (B, T) ids: trainwell's sum over its targets."""
    micro = MicroBatch(input_batch.to(device), target_batch.to(device), 0)
    return token_loss(model, micro) / (micro.targets != IGNORED).sum()


def calc_loss_loader(data_loader: Any, model: nn.Module, device: Device, num_batches: int | None = None) -> float:
    """Mean of the means of the first `num_batches` batches (None: all), each batch weighing the same; NaN without any.

    A last batch that is smaller weighs too much: `trainwell.evaluate` weighs tokens. Iterating the loader draws from
    the global generator, even where nothing is shuffled.
    """
    wanted = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    if len(data_loader) == 0:
        return float("nan")
    total = 0.0
    for index, (input_batch, target_batch) in enumerate(data_loader):
        if index == wanted:  # after one batch too many was fetched, since a data set may draw for it
            break
        total += calc_loss_batch(input_batch, target_batch, model, device).item()
    return total / wanted


def evaluate_model(
    model: nn.Module, train_loader: Any, val_loader: Any, device: Device, eval_iter: int | None
) -> tuple[float, float]:
    """Losses of the first `eval_iter` batches of both loaders, dropout off; leaves the model in training mode."""
    model.eval()
    with torch.no_grad():
        losses = tuple(calc_loss_loader(loader, model, device, eval_iter) for loader in (train_loader, val_loader))
    model.train()
    return losses[0], losses[1]


def find_highest_gradient(model: nn.Module) -> Tensor | None:
    """The largest signed value in any gradient; None without one.

    A large negative gradient is invisible to it: `gradient_report(model)` sees both signs and says where they are.
    """
    highest = [tensor.grad.max() for tensor in model.parameters() if tensor.grad is not None]
    return torch.stack(highest).max() if highest else None
