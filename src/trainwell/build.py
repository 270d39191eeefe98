"""The composition root: from a configuration, and whatever parts are given, to a run. A new part is a line here."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwell.checkpoint.layout import saved_steps
from trainwell.compiling import CompiledLoss, keep_on_disk
from trainwell.config import checks, load
from trainwell.config.tree import RunConfig
from trainwell.config.values import Duration
from trainwell.data.batches import Batches, MicroBatch, Prefetch, Stream, evaluation_batches
from trainwell.errors import ConfigError, DataError
from trainwell.fitting import largest_micro_batch, logits_at_once, trial
from trainwell.given import PARTS, Data, Given, data_from, describe_custom, recorded, refuse_missing_parts, template_in
from trainwell.hellaswag import Question, read_hellaswag
from trainwell.model.loss import Loss, head_loss, label_loss, token_loss, z_loss
from trainwell.models import freeze, load_weights, make_model
from trainwell.optim.groups import describe_groups
from trainwell.optim.guard import Guard, loss_bound
from trainwell.optimizers import make_optimizer
from trainwell.planning.bands import bands_for
from trainwell.planning.memory import in_chunks
from trainwell.planning.model_size import flops_per_token
from trainwell.planning.resolve import NeedsTimingError, Plan, resolve
from trainwell.planning.summary import summary
from trainwell.planning.target import Start, find_start, find_step
from trainwell.run import Run
from trainwell.runs.rundir import RunDir, is_run, parse_target
from trainwell.saver import load_trainer
from trainwell.settings import Settings, decide, recorded_settings
from trainwell.trainer import Schedule, Trainer

_TIMED_STEPS = 5


def build(
    target: str = "demo",
    *,
    run_dir: str | Path | None = None,
    model: Any = None,
    data: Any = None,
    val: Any = None,
    optimizer: Any = None,
    schedules: Mapping[str, Schedule] | None = None,
    loss: Loss | None = None,
    extra: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Make a run of a recipe, a config file or an existing run; its folder is touched when its first step is asked for.

    Args:
        target: `demo`, `my.yaml`, `runs/demo` (continue it), or `runs/demo@1200` (branch from it, into `run_dir`).
        run_dir: the run's folder; default the next free `runs/NAME`. A folder that holds this run is continued.
        model: an nn.Module from ids (B, T) int64 to logits (B, T, V) or an object with `.logits`; a function of the
            configuration that makes one; or a dict of keys of the section `model`.
        data: examples to train on, with len(d) and d[i] -> (inputs, targets); a `from_loader(...)`; or a dict of keys.
        val: examples to evaluate on.
        optimizer: anything with param_groups, step, zero_grad, state_dict, load_state_dict; or a function of the model.
        schedules: values of param-group keys as functions of the step, in place of the configured ones.
        loss: `loss(model, micro_batch)`, a SUM over its targets; alone or with named parts.
        extra: your own free keys.
        overrides: any other key, `duration=40`, or a section as a dict, `optim={"lr": 3e-4}`.

    Raises:
        ConfigError: with every mistake there is, before any work.
        DataError: for data that cannot be used.
    """
    given = Given(model=model, data=data, val=val, optimizer=optimizer, schedules=schedules or {}, loss=loss)
    given, flags = _parts_and_keys(given, overrides if extra is None else {**overrides, "extra": extra})
    folder = None if run_dir is None else Path(run_dir)
    start = find_start(target, flags=flags, run=folder, source="build(...)", data=given.data)
    return assemble(start, given)


def open_run(path: str | Path, *, weights_alone: bool = False, **parts: Any) -> Run:
    """Open an existing run, `runs/demo` or `runs/demo@1200`, with its weights restored; read only, nothing is written.

    `parts` are those of `build` that the run was made with, and keys to be different, `device="cpu"`.
    Where its text is no longer to be had, or is not read because the `weights_alone` are wanted, the run still
    generates, but has nothing to train or evaluate on.
    """
    name, step = parse_target(str(path))
    if not is_run(Path(name)):
        raise ConfigError(f"{name} is not a run: there is no config.yaml in it")
    run_dir = RunDir(Path(name))
    names = [field.name for field in fields(Given)]
    given = Given(**{part: value for part, value in parts.items() if part in names})
    given, flags = _parts_and_keys(given, {key: value for key, value in parts.items() if key not in names})
    config = load.load_recorded(run_dir.config_yaml, flags={"eval.hellaswag": None, **flags}, source="open_run(...)")
    start = Start(config, run_dir)
    refuse_missing_parts(config, given)
    unread = weights_alone and given.data is None
    run = assemble(start, given, recorded(config, run_dir) if unread else _data_of_run(start, given))
    number = find_step(run.run_dir, "last" if step is None else step)
    load_trainer(run.trainer, run.store.load(number)[0]["trainer"], f"{name}@{number}")
    return run


def _data_of_run(start: Start, given: Given) -> Data:
    """The data of an existing run; where its text is gone or elsewhere, what is recorded, which generating needs."""
    try:
        data = data_from(start.config, given)
    except (ConfigError, DataError):
        if given.data is not None:
            raise
        return recorded(start.config, start.run_dir)
    return replace(data, template=template_in(start.run_dir) or data.template)


def _parts_and_keys(given: Given, keys: Mapping[str, Any]) -> tuple[Given, dict[str, Any]]:
    """Tell parts from keys: a model or data given as a dict is a section of the configuration."""
    sections = {name: getattr(given, name) for name in ("model", "data") if isinstance(getattr(given, name), Mapping)}
    nothing: dict[str, Any] = dict.fromkeys(sections)
    return replace(given, **nothing), {**keys, **sections}


def assemble(start: Start, given: Given, data: Data | None = None) -> Run:
    """Put a run together: everything that can be wrong with it is found before the model is made."""
    refuse_missing_parts(start.config, given)
    data = data or data_from(start.config, given)
    config, asked = data.config, str(data.config.duration)
    problems = [] if given.data is not None else checks.training_problems(config)
    if isinstance(data.train, Stream) and config.batch_ramp.from_tokens is not None:
        problems.append(
            f"batch_ramp.from_tokens: {config.batch_ramp.from_tokens}, but from_loader's batches are as they come; "
            "give examples with len(d) and d[i], or batch_ramp.from_tokens null"
        )
    if problems:
        raise checks.error(problems)
    try:
        plan = resolve(config, data.info)
    except NeedsTimingError:
        config = _timed(start, given, data)
        plan = resolve(config, data.info)
    return _assemble(replace(start, config=config), given, data, plan, asked)


def _timed(start: Start, given: Given, data: Data) -> RunConfig:
    """The configuration with its duration in minutes turned into steps, by taking a few and undoing them."""
    config = data.config
    provisional = config.model_copy(update={"duration": Duration.parse(10**6)})
    plan = resolve(provisional, data.info)
    run = _assemble(replace(start, config=provisional), given, data, plan, "")
    before = copy.deepcopy(run.trainer.state_dict())
    if isinstance(data.train, Stream):
        first = data.train.first()
        run.trainer.batches = lambda _step: first  # what only runs forward is not to be used up
    run.trainer.model.train()
    run.trainer.take_step()
    begin = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        result = run.trainer.take_step()
    result.loss.item()
    examples = plan.batch.examples_before(1 + _TIMED_STEPS) - plan.batch.examples_before(1)
    seconds_per_step = (time.perf_counter() - begin) / examples * plan.batch.batch_size
    run.trainer.load_state_dict(before)
    run.close()
    steps = resolve(config, data.info, seconds_per_step=seconds_per_step).num_steps
    return config.model_copy(update={"duration": Duration.parse(steps)})


def _assemble(start: Start, given: Given, data: Data, plan: Plan, asked: str) -> Run:
    config, notes = plan.config, list[str]()
    settings = decide(config, plan, recorded_settings(start.run_dir), notes.append)
    device = torch.device(settings.device)
    model = _model(config, given, plan, len(data.labels) or None, device)
    if given.model is None:
        settings.fast.use_in(model)
    else:
        settings = replace(settings, fast=settings.fast.of_given_model(), dropout=False)
    fresh = start.parent is None and not saved_steps(start.run_dir.checkpoints)
    if config.init_from is not None and fresh:
        load_weights(model, config.init_from, labels=data.labels)
    chunk = logits_at_once(device) if given.model is None and in_chunks(config, plan.vocab_size or 0) else None
    loss = _loss(config, given, data, chunk)
    outputs = len(data.labels) or plan.vocab_size or 0
    custom = describe_custom(given, model)
    optimizer, schedules = _optimizer(config, given, model, outputs, settings), plan.schedules | dict(given.schedules)
    _check_schedules(schedules, optimizer)
    trainer = Trainer(
        model,
        optimizer,
        _batches(config, data, plan, settings),
        schedules=schedules,
        loss=loss,
        max_grad_norm=config.optim.max_grad_norm,
        clip_from=plan.clip_from,
        seed=config.seed if config.model.dropout or custom.keys() & {"model", "loss", "optimizer"} else None,
        autocast=settings.autocast,
        guard=Guard(
            device,
            **config.guard.model_dump(),
            loss_bound=loss_bound(None if given.loss or data.labels else plan.vocab_size),
        ),
    )
    if config.micro_batch == "auto" and fresh:
        with settings.fast.preferred():
            settings = _fitted(trainer, data, plan, settings)
        trainer.batches = _batches(config, data, plan, settings)
    config = config.model_copy(update={"micro_batch": settings.micro_batch})
    if settings.compile:
        keep_on_disk()
        trainer.loss = loss = CompiledLoss(
            loss,
            model,
            settings.compile,
            one_graph=given.loss is None and (bool(data.labels) or chunk is None or settings.device == "cuda"),
            shapes_vary=_buckets(config) or isinstance(data.train, Stream),
            say=(lambda line: run.console.message(line)) if config.compile == "auto" else None,
        )
    parameters = sum(tensor.numel() for tensor in model.parameters())
    learning = sum(tensor.numel() for tensor in trainer.parameters)
    own_model = given.model is None
    run = Run(
        config=config.model_copy(update={"custom": custom}),
        plan=plan,
        settings=settings,
        run_dir=start.run_dir,
        trainer=trainer,
        model=model,
        loss=loss,
        batches=trainer.batches,
        val=_validation(config, data, settings, plan),
        tokenizer=data.tokenizer,
        summary=[
            *summary(plan, parameters),
            *([] if learning >= parameters else [f"{learning:,} of the {parameters:,} parameters learn"]),
            *describe_groups(trainer.optimizer),
            settings.line(),
            *(f"given in Python: {name}, {custom[name]}" for name in custom if name in PARTS),
            *data.switched_off,
            *data.notes,
            *start.notes,
            *notes,
        ],
        flops_per_token=flops_per_token(
            config.model, plan.vocab_size, plan.seq_len, num_labels=len(data.labels) or None
        )
        if own_model and plan.vocab_size
        else None,
        bytes_per_token=data.bytes_per_token,
        template=data.template,
        labels=data.labels,
        questions=_questions(config, data),
        facts=data.facts,
        bands=bands_for(config, data.info.corpus_sha256) if not custom else (),
        parent=start.parent,
        asked_duration=asked,
    )
    return run


def _fitted(trainer: Trainer, data: Data, plan: Plan, settings: Settings) -> Settings:
    """The settings, on a GPU with the largest micro-batch that it has memory for, as the first batch shows."""
    if settings.device != "cuda":
        return settings
    whole = max(plan.batch.batch_size, 1)
    wide = plan.config.data.model_copy(update={"rows": "padded"})  # as wide as a batch can be
    source = _batches(plan.config.model_copy(update={"data": wide}), data, plan, replace(settings, micro_batch=whole))
    first = source.first() if isinstance(source, Stream) else source.source(0)
    later = 8 * sum(tensor.numel() for tensor in trainer.parameters)  # two moments in float32
    size = largest_micro_batch(trial(trainer, first.micro_batches[0]), whole, later=later)
    return replace(settings, micro_batch=size)


def _model(config: RunConfig, given: Given, plan: Plan, num_labels: int | None, device: torch.device) -> nn.Module:
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


def _questions(config: RunConfig, data: Data) -> tuple[Question, ...]:
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


def _loss(config: RunConfig, given: Given, data: Data, chunk: int | None) -> Loss:
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


def _check_schedules(schedules: Mapping[str, Schedule], optimizer: Any) -> None:
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


def _optimizer(config: RunConfig, given: Given, model: nn.Module, outputs: int, settings: Settings) -> Any:
    if given.optimizer is None:
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


def _batches(config: RunConfig, data: Data, plan: Plan, settings: Settings) -> Stream | Prefetch:
    device = torch.device(settings.device)
    if isinstance(data.train, Stream):
        return data.train.place(settings.micro_batch, device)
    return Prefetch(
        Batches(
            data.train,
            plan.batch,
            micro_batch=settings.micro_batch,
            seed=config.seed,
            order=config.data.order,
            buckets=_buckets(config),
            device=device,
        )
    )


def _buckets(config: RunConfig) -> bool:
    return config.task != "pretrain" and config.data.rows != "padded"


def _validation(
    config: RunConfig, data: Data, settings: Settings, plan: Plan
) -> Callable[[], Iterable[MicroBatch]] | None:
    examples = data.val
    if examples is None:
        return None
    return lambda: evaluation_batches(
        examples,
        batch_size=plan.batch.batch_size,
        micro_batch=settings.micro_batch,
        batches=config.eval.batches,
        device=torch.device(settings.device),
        buckets=_buckets(config),
    )
