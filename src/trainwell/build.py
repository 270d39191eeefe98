"""The composition root: from a configuration, and whatever parts are given, to a run. A new part is a line here."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
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
from trainwell.distributed.parallel import Shared
from trainwell.distributed.world import ALONE, World, current
from trainwell.errors import ConfigError, DataError
from trainwell.fitting import chunk_on, largest_micro_batch, trial
from trainwell.given import PARTS, Data, Given, data_from, describe_custom, recorded, refuse_missing_parts, template_in
from trainwell.model.loss import Loss
from trainwell.models import load_weights
from trainwell.optim.groups import describe_groups
from trainwell.optim.guard import Guard, loss_bound
from trainwell.parts import check_schedules, loss_of, model_of, optimizer_of, questions_of
from trainwell.planning.bands import bands_for
from trainwell.planning.memory import in_chunks
from trainwell.planning.model_size import flops_per_token
from trainwell.planning.resolve import NeedsTimingError, Plan, resolve
from trainwell.planning.summary import summary
from trainwell.planning.target import Start, find_start, find_step
from trainwell.run import Run
from trainwell.runs.rundir import RunDir, is_run, parse_target
from trainwell.saver import load_trainer
from trainwell.settings import Settings, decide_together
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

    Where `torch.distributed` is initialised, every rank calls this with the same arguments, and they train together.

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
    world = current()
    start = world.from_main(lambda: find_start(target, flags=flags, run=folder, source="build(...)", data=given.data))
    return assemble(start, given, world=world)


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


def assemble(start: Start, given: Given, data: Data | None = None, *, world: World = ALONE) -> Run:
    """Put a run together: everything that can be wrong with it is found before the model is made.

    In a `world` of several ranks all of them call this, and all raise where one does.
    """
    refuse_missing_parts(start.config, given)
    data = data or world.together(lambda: data_from(start.config, given))
    config, asked = data.config, str(data.config.duration)
    problems = [] if given.data is not None else checks.training_problems(config)
    if isinstance(data.train, Stream):
        problems += _stream_problems(config, world)
    if problems:
        raise checks.error(problems)
    try:
        plan = resolve(config, data.info)
    except NeedsTimingError:
        config = _timed(start, given, data, world)
        plan = resolve(config, data.info)
    return _assemble(replace(start, config=config), given, data, plan, asked, world)


def _stream_problems(config: RunConfig, world: World) -> list[str]:
    """A line for everything that takes data whose examples have numbers."""
    found, instead = [], "give examples with len(d) and d[i]"
    if config.batch_ramp.from_tokens is not None:
        found.append(
            f"batch_ramp.from_tokens: {config.batch_ramp.from_tokens}, but from_loader's batches are as they come; "
            f"{instead}, or batch_ramp.from_tokens null"
        )
    if world.size > 1:
        found.append(
            f"data: from_loader's batches are as they come, and {world.size} ranks would each train on all of them; "
            f"{instead}, or start one process"
        )
    return found


def _timed(start: Start, given: Given, data: Data, world: World) -> RunConfig:
    """The configuration with its duration in minutes turned into steps, by taking a few and undoing them."""
    config = data.config
    provisional = config.model_copy(update={"duration": Duration.parse(10**6)})
    plan = resolve(provisional, data.info)
    run = _assemble(replace(start, config=provisional), given, data, plan, "", world)
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
    took = time.perf_counter() - begin
    seconds_per_step = world.from_main(lambda: took) / examples * plan.batch.batch_size
    run.trainer.load_state_dict(before)
    run.close()
    steps = resolve(config, data.info, seconds_per_step=seconds_per_step).num_steps
    return config.model_copy(update={"duration": Duration.parse(steps)})


@dataclass(frozen=True)
class _Made:
    """What steps are taken with, as one process has it."""

    settings: Settings
    model: nn.Module
    loss: Loss
    one_graph: bool
    """Whether the loss can be compiled in one piece with the model."""
    custom: dict[str, Any]
    fresh: bool
    """Whether the run begins here: not on disk yet, and no branch."""


def _make(config: RunConfig, given: Given, data: Data, plan: Plan, settings: Settings, fresh: bool) -> _Made:
    device, own_model = torch.device(settings.device), given.model is None
    model = model_of(config, given, plan, len(data.labels) or None, device)
    if own_model:
        settings.fast.use_in(model)
    else:
        settings = replace(settings, fast=settings.fast.of_given_model(), dropout=False)
    if config.init_from is not None and fresh:
        load_weights(model, config.init_from, labels=data.labels)
    chunk = chunk_on(device) if own_model and in_chunks(config, plan.vocab_size or 0) else None
    loss = loss_of(config, given, data, chunk)
    one_graph = given.loss is None and (bool(data.labels) or chunk is None or settings.device == "cuda")
    return _Made(settings, model, loss, one_graph, describe_custom(given, model), fresh)


def _trainer(
    config: RunConfig, given: Given, data: Data, plan: Plan, made: _Made, optimizer: Any, loss: Loss, world: World
) -> Trainer:
    schedules = plan.schedules | dict(given.schedules)
    check_schedules(schedules, optimizer)
    return Trainer(
        made.model,
        optimizer,
        _batches(config, data, plan, made.settings, world),
        schedules=schedules,
        loss=loss,
        max_grad_norm=config.optim.max_grad_norm,
        clip_from=plan.clip_from,
        seed=config.seed if config.model.dropout or made.custom.keys() & {"model", "loss", "optimizer"} else None,
        autocast=made.settings.autocast,
        guard=Guard(
            torch.device(made.settings.device),
            **config.guard.model_dump(),
            loss_bound=loss_bound(None if given.loss or data.labels else plan.vocab_size),
        ),
        world=world,
    )


def _assemble(start: Start, given: Given, data: Data, plan: Plan, asked: str, world: World) -> Run:
    config, notes, own_model = plan.config, list[str](), given.model is None
    settings = decide_together(config, plan, start.run_dir, world, own_model=own_model, say=notes.append)
    fresh = world.from_main(lambda: start.parent is None and not saved_steps(start.run_dir.checkpoints))
    made = world.together(lambda: _make(config, given, data, plan, settings, fresh))
    model, custom = made.model, made.custom
    parameters = sum(tensor.numel() for tensor in model.parameters())

    def shared(loss: Loss) -> Loss:
        how = made.settings.parallel
        return loss if how == "none" else Shared(model, loss, how, world, made.settings.autocast)

    def compiled() -> Loss:
        if not settings.compile:
            return made.loss
        return _compiled(config, made, data, say=lambda line: run.console.message(line))

    # what fsdp leaves to a rank is what the optimizer is made of; all else wraps the loss as it is in the end
    sharded = shared(compiled()) if settings.parallel == "fsdp" else None
    if isinstance(sharded, Shared) and sharded.copies > 1:
        notes.append(f"fsdp: each of {sharded.copies} nodes has all weights, in parts on its ranks")
    optimizer = optimizer_of(config, given, model, len(data.labels) or plan.vocab_size or 0, made.settings)
    if config.micro_batch == "auto" and fresh and settings.device == "cuda" and sharded is None:
        made = replace(made, settings=_fitted(config, given, data, plan, made, optimizer, world))
    loss = sharded.eager if isinstance(sharded, Shared) else compiled()
    trainer = _trainer(config, given, data, plan, made, optimizer, sharded or shared(loss), world)
    learning = sum(tensor.numel() for tensor in trainer.parameters)
    run = Run(
        config=config.model_copy(update={"custom": custom, "micro_batch": _at_most(config, plan, made.settings)}),
        plan=plan,
        settings=made.settings,
        run_dir=start.run_dir,
        trainer=trainer,
        model=model,
        loss=loss,
        batches=trainer.batches,
        val=_validation(config, data, made.settings, plan, world),
        tokenizer=data.tokenizer,
        summary=[
            *summary(plan, parameters),
            *([] if learning >= parameters else [f"{learning:,} of the {parameters:,} parameters learn"]),
            *describe_groups(trainer.optimizer),
            made.settings.line(),
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
        questions=questions_of(config, data),
        facts=data.facts,
        bands=bands_for(config, data.info.corpus_sha256) if not custom else (),
        parent=start.parent,
        asked_duration=asked,
        picture=_picture,
        world=world,
    )
    return run


def _picture(path: Path) -> str:
    from trainwell.report.inline import inline  # here: few runs are looked at in a notebook

    return inline(path)


def _at_most(config: RunConfig, plan: Plan, settings: Settings) -> int:
    """The micro-batch that is written down: what was asked for, which more ranks make smaller than fewer do."""
    asked = config.micro_batch
    return settings.micro_batch if asked == "auto" else min(asked, max(plan.batch.batch_size, 1))


def _compiled(config: RunConfig, made: _Made, data: Data, say: Callable[[str], None]) -> CompiledLoss:
    how = made.settings.compile
    assert how, "asked for"
    keep_on_disk()
    return CompiledLoss(
        made.loss,
        made.model,
        how,
        one_graph=made.one_graph,
        shapes_vary=_buckets(config) or isinstance(data.train, Stream),
        say=say if config.compile == "auto" else None,
    )


def _fitted(
    config: RunConfig, given: Given, data: Data, plan: Plan, made: _Made, optimizer: Any, world: World
) -> Settings:
    """The settings with the largest micro-batch that a GPU has memory for, as the first batch shows; each tries alone.

    Of several ranks the one with the least memory decides.
    """
    settings = made.settings
    whole = -(-max(plan.batch.batch_size, 1) // world.size)
    wide = plan.config.data.model_copy(update={"rows": "padded"})  # as wide as a batch can be
    at_once = replace(settings, micro_batch=whole)
    source = _batches(plan.config.model_copy(update={"data": wide}), data, plan, at_once, world)
    first = source.first() if isinstance(source, Stream) else source.source(0)
    trainer = _trainer(config, given, data, plan, made, optimizer, made.loss, ALONE)
    later = 8 * sum(tensor.numel() for tensor in trainer.parameters)  # two moments in float32
    with settings.fast.preferred():
        size = largest_micro_batch(trial(trainer, first.micro_batches[0]), whole, later=later)
    return replace(settings, micro_batch=min(world.collect(size)))


def _batches(config: RunConfig, data: Data, plan: Plan, settings: Settings, world: World) -> Stream | Prefetch:
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
            rank=world.rank,
            world_size=world.size,
        )
    )


def _buckets(config: RunConfig) -> bool:
    return config.task != "pretrain" and config.data.rows != "padded"


def _validation(
    config: RunConfig, data: Data, settings: Settings, plan: Plan, world: World
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
        rank=world.rank,
        world_size=world.size,
    )
