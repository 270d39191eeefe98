"""Makes twin runs of one configuration, each as a fresh process would have it, in a folder that is thrown away.

Knows how a run is made and kept quiet, and no promise.
"""

import copy
import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainwell.build import assemble
from trainwell.config import checks
from trainwell.config.tree import RunConfig
from trainwell.config.values import Duration
from trainwell.data.batches import Stream
from trainwell.data.prepare import StoreInfo
from trainwell.data.tasks import Store, open_data
from trainwell.errors import ConfigError
from trainwell.given import Data, Given, data_from, prepared, refuse_missing_parts
from trainwell.planning.resolve import NeedsTimingError, Plan, resolve
from trainwell.planning.target import Start, own_copies
from trainwell.prove.small import changed, in_words, scaled_down
from trainwell.run import Run
from trainwell.runs.rundir import RunDir
from trainwell.settings import Settings, decide, recorded_settings

Make = Callable[[Start, Given, Data], Run]
"""How a run is put together; `trainwell.build.assemble` is one. A broken loop is another."""

LONGEST = 24
"""Twins take fewer steps than this; a schedule is laid out over at least as many."""
_UNTIMED_STEPS = 1000
_ALONE: dict[str, Any] = {
    "eval.every": None,
    "eval.batches": 1,
    "eval.hellaswag": None,
    "sample.every": None,
    "checkpoint.every": None,
    "checkpoint.best": False,
    "checkpoint.keep_every": None,
    "log.every": 10**6,
}
"""A run that only trains: nothing is evaluated, sampled, saved or printed in between."""


@dataclass(frozen=True)
class Twins:
    """One configuration, settled as its run would have it, and a folder for twins of it.

    Without its `store` it can be sent to another process, if the parts given can.
    """

    config: RunConfig
    """With everything that `auto` leaves open decided, and scaled down where that was asked for."""
    given: Given
    settings: Settings
    make: Make
    folder: Path
    notes: tuple[str, ...]
    """What is not as the run itself has it, and what had to be decided anew."""
    info: StoreInfo
    """The counts of the data."""
    store: Store | None
    """The data of the configuration; None where data was given, or where it is to be opened again."""

    @property
    def plan(self) -> Plan:
        """Steps, schedules and batches of the configuration."""
        return resolve(self.config, self.info)

    def data(self, config: RunConfig, given: Given) -> Data:
        """The data of a twin."""
        return data_from(config, given) if self.store is None else prepared(config, self.store, given.val)

    @contextmanager
    def run(
        self,
        name: str,
        changes: Mapping[str, Any] | None = None,
        *,
        cut_down: Callable[[Data], Data] = lambda data: data,
    ) -> Iterator[Run]:
        """A twin with keys changed, in a folder of that name: fresh, or continued where it has been before.

        It is made as a new process would make it: parts given in Python are copies of what was given, and the global
        generators start where they always do. It prints nothing, and the generators are put back afterwards.
        `cut_down` may take some of its data away.
        """
        config = changed(self.config, {**_ALONE, "duration": LONGEST, **(changes or {})})
        given = fresh_copy(self.given)
        with _generators_put_back(), redirect_stdout(io.StringIO()):
            data = cut_down(self.data(config, given))
            run = self.make(Start(config, RunDir(self.folder / name)), given, data)
            with run:
                yield run

    def without_dropout(self, run: Run) -> None:
        """Switch off the dropout of layers that a given model has; keys do it for our own."""
        for module in run.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0

    def within(self, folder: Path) -> "Twins":
        """The same, with twins in another folder."""
        return replace(self, folder=folder)

    @property
    def streams(self) -> bool:
        """Whether its data only runs forward."""
        return isinstance(self.given.data, Stream)


def settle(start: Start, given: Given, *, small: bool, make: Make | None, folder: Path) -> Twins:
    """Decide everything once, as the run itself would, so that all twins are of one kind.

    Raises ConfigError and DataError for what keeps the run itself from starting.
    """
    notes: list[str] = []
    config, store, plan = _planned(start, given, notes)
    scaled = _scaled(config, plan, given, notes) if small else {}
    if scaled:
        config = changed(config, scaled)
    if "data.seq_len" in scaled:
        store = open_data(config.task, config.data)
    horizon = config.schedule.horizon or config.duration
    if plan.horizon < LONGEST:
        notes.append(f"the schedule is laid out over {LONGEST} steps here, not over {plan.horizon}")
        horizon = Duration.parse(LONGEST)
    config = changed(config, {"schedule.horizon": horizon, "duration": LONGEST})
    info = plan.info if store is None else store.info
    assert info is not None, "a plan that was made with counts has them"
    settings = decide(config, resolve(config, info), recorded_settings(start.run_dir), notes.append)
    settings = replace(settings, micro_batch=min(settings.micro_batch, checks.sequences(config)))
    decided = {key: getattr(settings, key) for key in ("device", "precision", "compile", "micro_batch")}
    twins = Twins(
        changed(config, decided),
        given,
        settings,
        make or assemble,
        folder,
        tuple(notes),
        info,
        store,
    )
    with twins.run("trial") as run:  # what keeps a run from being made is an error of the configuration, not a proof
        return replace(twins, settings=replace(settings, deterministic=run.settings.deterministic))


def _planned(start: Start, given: Given, notes: list[str]) -> tuple[RunConfig, Store | None, Plan]:
    """The configuration, its data where it is configured, and the plan of the run itself."""
    config = start.config.model_copy(update={"data": own_copies(start)})
    refuse_missing_parts(config, given)
    store = None
    if given.data is None:
        problems = checks.training_problems(config)
        if problems:
            raise checks.error(problems)
        store = open_data(config.task, config.data)
    data = data_from(config, fresh_copy(given)) if store is None else prepared(config, store, given.val)
    try:
        return data.config, store, resolve(data.config, data.info)
    except NeedsTimingError:
        notes.append(f"a duration of {data.config.duration} is taken as {_UNTIMED_STEPS:,} steps")
        config = changed(data.config, {"duration": _UNTIMED_STEPS})
        return config, store, resolve(config, data.info)


def _scaled(config: RunConfig, plan: Plan, given: Given, notes: list[str]) -> dict[str, Any]:
    """What --small changes, with a line that says so."""
    scaled = scaled_down(config, plan, own_model=given.model is None, own_data=given.data is None)
    said = in_words(config, scaled)
    kept = [name for name in ("model", "data") if getattr(given, name) is not None]
    notes.append(f"scaled down: {said}" if said else "scaled down: nothing, it is small as it is")
    notes += [f"not scaled, because it was given in Python: {', '.join(kept)}"] if kept else []
    return scaled


def fresh_copy(given: Given) -> Given:
    """Copies of the parts given, which belong together as they did: an optimizer holds the copied model's weights."""
    try:
        return copy.deepcopy(given)
    except (TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the parts given in Python cannot be copied ({error}), and each twin needs its own; give functions that "
            "make them (model=lambda config: ..., optimizer=lambda model: ...), and data with len(d) and d[i]"
        ) from error


@contextmanager
def _generators_put_back() -> Iterator[None]:
    """The global generators from a fixed start inside, and as they were outside."""
    plain, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  it is the one that users' code may draw from
    torch.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002
        torch.set_rng_state(tensors)
