"""THE LOOP. A generator that does the bookkeeping after the body: no callbacks, no hooks; a new behaviour is a line."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainwell import faults
from trainwell.report.load import load_run
from trainwell.report.plots import write_plots
from trainwell.report.verdict import verdict
from trainwell.run import Run
from trainwell.trainer import StepResult


def steps(run: Run) -> Iterator[StepResult]:
    """Yield each finished step, then record, save and evaluate it; continues from the newest verified checkpoint.

    The body of the `for` sees the step before it is recorded or saved, with its gradients still there.
    """
    faults.arm_from_environment()
    run.restore()
    with deterministic(run.settings.deterministic), run.settings.fast.preferred(), frozen():
        run.rehearse()
        for result in run.trainer.steps(until=run.trainer.step if run.stopped else run.num_steps):
            run.metrics.expect(result)
            yield result
            run.metrics.add(result)
            due = run.due(result.step)
            if due.save:
                run.save()  # before evaluating: an evaluation that fails must not lose the run
            run.observe(due)
            if run.stopped:
                break
        if run.stopped:
            run.save()
    conclude(run)


def fit(run: Run) -> Run:
    """Take all steps that are left, and give the folder back."""
    with run:
        for _ in steps(run):
            pass
    return run


def conclude(run: Run) -> None:
    """Wait until the last state is on disk, say how it went and where everything is; draw what is finished."""
    run.finish()
    data = load_run(run.run_dir.path)
    run.console.message(verdict(data))
    run.console.message(f"checkpoint: {run.run_dir.shown}/checkpoints/step-{run.trainer.step}")
    if not run.config.log.plots or (run.stopped and not run.finished):
        return  # whoever stops a run waits for it
    try:
        plots = write_plots(data)
    except OSError as error:
        run.console.message(f"no plots: {error}")
        return
    if plots:
        run.console.message(f"plots: {', '.join(f'{run.run_dir.shown}/plots/{plot.name}' for plot in plots)}")


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
