"""The parts of a run, each as it was given, else as the configuration has it; what does not go together is refused.

Knows no data and no folder; how the parts work together is the business of `build`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError
from trainwell.given import Data, Given
from trainwell.hellaswag import Question, read_hellaswag
from trainwell.model.loss import Loss, head_loss, label_loss, token_loss, z_loss
from trainwell.models import freeze, make_model
from trainwell.optimizers import make_optimizer
from trainwell.planning.resolve import Plan
from trainwell.settings import Settings
from trainwell.trainer import Schedule


def model_of(config: RunConfig, given: Given, plan: Plan, num_labels: int | None, device: torch.device) -> nn.Module:
    """The model on the device, with its initial weights; ConfigError for a given one that is none."""
    if given.model is not None:
        _refuse_own_parts(config)
        made = given.model if isinstance(given.model, nn.Module) else given.model(config)
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f"model: {type(made).__name__} was given; allowed are an nn.Module, or a function that makes one"
            )
        return made.to(device)
    if plan.vocab_size is None:
        raise ConfigError(
            "model.pad_vocab_to: the vocabulary of data given as ids is not known; say how many ids there are"
        )
    model = make_model(config, plan.vocab_size, num_labels, device)
    if config.optim.train == "last-block":
        freeze(model)
    return model


def questions_of(config: RunConfig, data: Data) -> tuple[Question, ...]:
    """HellaSwag's questions where they are asked for; ConfigError where nothing could read them."""
    if config.eval.hellaswag is None:
        return ()
    if data.tokenizer is None:
        raise ConfigError(
            f"eval.hellaswag: {config.eval.hellaswag} is text, and data given as ids has no tokenizer; leave it out"
        )
    return tuple(read_hellaswag(config.eval.hellaswag))


def _refuse_own_parts(config: RunConfig) -> None:
    """Raise ConfigError for what only trainwell's own models do."""
    for key, value in (("attention", "products"), ("dropout", "bits"), ("residual", "bf16")):
        if getattr(config.fast, key) == value:
            raise ConfigError(f"fast.{key}: {value} is for trainwell's own models; leave it at auto for a given one")
    if config.recompute:
        raise ConfigError("recompute: true is for trainwell's own models; a given one recomputes by itself, or not")
    if config.optim.train != "all":
        raise ConfigError(
            f"optim.train: {config.optim.train} is for trainwell's own models; set requires_grad of a given one"
        )
    if config.task == "instruct" and config.data.rows == "packed":
        raise ConfigError(
            "data.rows: packed is for trainwell's own models, which keep the examples of a row apart; give buckets"
        )


def loss_of(config: RunConfig, given: Given, data: Data, chunk: int | None) -> Loss:
    """The given loss; that of the task; and with a `chunk` the form that never holds all logits."""
    weight = config.optim.z_loss
    if given.loss is not None:
        if weight:
            raise ConfigError(f"optim.z_loss: {weight:g} has no effect on a loss of your own; add it there, or give 0")
        return given.loss  # type: ignore[no-any-return]
    if data.labels:
        return label_loss(data.labels)
    if weight:
        return z_loss(weight, chunk=chunk)
    return token_loss if chunk is None else partial(head_loss, chunk=chunk)


def check_schedules(schedules: Mapping[str, Schedule], optimizer: Any) -> None:
    """Raise ConfigError for a schedule that cannot be called, or of a setting that no parameter group has."""
    settings = {key for group in optimizer.param_groups for key in group} - {"params"}
    settings |= {"momentum"} if "betas" in settings else set()
    for name, schedule in schedules.items():
        if not callable(schedule):
            raise ConfigError(
                f"schedules: {name} is {schedule!r}; give a function of the step, as lambda step: {schedule!r}"
            )
        if name not in settings:
            raise ConfigError(
                f"schedules: no parameter group has {name!r}; allowed are {', '.join(sorted(settings))}"
                f"{checks.did_you_mean(name, settings)}"
            )


def optimizer_of(config: RunConfig, given: Given, model: nn.Module, outputs: int, settings: Settings) -> Any:
    """The optimizer of a model's weights; ConfigError for a given one that the schedule would overrule."""
    if given.optimizer is None:
        if settings.parallel == "fsdp" and config.optim.name == "muon":
            raise ConfigError(
                "optim.name: muon turns whole matrices, of which parallel fsdp leaves each rank a part; give "
                "parallel ddp, or adamw"
            )
        return make_optimizer(config.optim, model, outputs, fused=settings.fused)
    optimizer = given.optimizer if hasattr(given.optimizer, "param_groups") else given.optimizer(model)
    rates = {group["lr"] for group in optimizer.param_groups}
    if "lr" not in given.schedules and rates != {config.optim.lr}:
        shown = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise ConfigError(
            f"optim.lr: the schedule's peak is {config.optim.lr:g}, but the given optimizer was made with {shown}; the "
            f"schedule would overrule it. Give both the same rate: build(..., optim={{'lr': {min(rates):g}}})"
        )
    return optimizer
