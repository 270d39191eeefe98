"""THE LOOP. A generator that does the bookkeeping after the body: no callbacks, no hooks; a new behaviour is a line."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainwell import faults
from trainwell.distributed.watchdog import Watchdog
from trainwell.planning.due import Due
from trainwell.run import Run
from trainwell.telling import drawn_when_diverged, tell
from trainwell.trainer import StepResult


def steps(run: Run) -> Iterator[StepResult]:
    """Yield each finished step, then record, save and evaluate it; continues from the newest verified checkpoint.

    The body of the `for` sees the step before it is recorded or saved, with its gradients still there.
    """
    faults.arm_from_environment()
    run.restore()
    watch = Watchdog(run.run_dir.path, run.world.rank, run.world.size)
    with (
        drawn_when_diverged(run),
        deterministic(run.settings.deterministic),
        run.settings.fast.preferred(),
        frozen(),
        watch,
    ):
        with watch.busy("rehearsing"):
            run.rehearse()
        for result in run.trainer.steps(until=run.trainer.step if run.ends.now() else run.num_steps):
            run.metrics.expect(result)
            with watch.busy("the body of the loop", every_step=True):
                yield result
            run.metrics.add(result)
            watch.beat(result.step)
            _do(run, run.due(result.step), watch)
            if run.ends.after(result):
                break
        _do(run, Due(save=run.ends.agreed, evaluate=False, sample=False), watch)
    conclude(run)


def _do(run: Run, due: Due, watch: Watchdog) -> None:
    """What is due at a state; the watchdog knows that it is no step, and may take longer."""
    if due.save:
        with watch.busy("saving"):
            run.save()  # before evaluating: an evaluation that fails must not lose the run
    if due.evaluate or due.sample:
        with watch.busy("evaluating"):
            run.observe(due)


def fit(run: Run) -> Run:
    """Take all steps that are left, and give the folder back."""
    with run:
        for _ in steps(run):
            pass
    return run


def conclude(run: Run) -> None:
    """Wait until the last state is on disk, say how it went and where everything is; draw what is finished."""
    run.finish()
    run.world.from_main(lambda: tell(run))


@contextmanager
def frozen() -> Iterator[None]:
    """What is there already is not searched for garbage inside: a search of all of it takes as long as some steps."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Only deterministic algorithms inside, and as before outside; uninitialised memory is not filled, for speed.

    Without it even a CPU adds up the gradient of an embedding in an order that changes from run to run.
    """
    filling: Any = torch.utils.deterministic  # its one setting is made at import, where type checkers do not see it
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted or before[0])
    filling.fill_uninitialized_memory = before[1] and not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]
