"""How a run takes up where its folder stands: the folder made its own, the newest state, and what is past it set aside.

Of several ranks the first works in the folder; all read the state.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from trainwell import faults
from trainwell.checkpoint.store import CheckpointStore
from trainwell.runs.incidents import rewind_incidents
from trainwell.runs.metrics import MetricsFile

if TYPE_CHECKING:
    from trainwell.run import Run


def own_folder(run: "Run", resources: ExitStack) -> None:
    """Own the folder until the resources are given back, with what lies behind its URL brought here.

    Raises RunBusyError where another process owns it, StorageError where it cannot be made.
    """

    def own() -> None:
        run.saver.ownership = resources.enter_context(run.run_dir.lock(say=run.console.message))
        if run.saver.remote is not None:
            run.saver.remote.pull()

    run.world.from_main(own)


def load_newest(run: "Run") -> None:
    """Take the newest checkpoint that verifies, else the state it branches from, else start afresh; say which."""
    step = run.world.from_main(lambda: run.store.newest(run.console.message))
    if step is not None:
        run.saver.load(run.store, step)
        done = f"{run.run_dir.shown} is finished: {step:,} of {run.num_steps:,} steps"
        goes_on = f"continuing {run.run_dir.shown} from step {step:,} of {run.num_steps:,}"
        run.console.message(goes_on if step < run.num_steps else done)
    elif run.parent is not None:
        run.saver.load(CheckpointStore(run.parent[0].checkpoints), run.parent[1], own_run=False)
        run.console.message(f"branching from {run.parent[0].shown} at step {run.parent[1]:,} into {run.run_dir.shown}")


def set_aside(run: "Run") -> None:
    """Move what is on record past the state to where it is kept as evidence."""
    step, attempts = run.trainer.step, run.run_dir.attempts
    faults.reach("resume.before_rewind", step)
    moved = MetricsFile(run.run_dir.metrics_jsonl).rewind(step, attempts)
    if moved:
        lines = "one line" if moved == 1 else f"{moved:,} lines"
        run.console.message(f"{lines} of metrics past step {step:,}, kept in {attempts}")
    run.samples_file.rewind(step, attempts)
    rewind_incidents(run.run_dir, step)


def on_file(run: "Run") -> tuple[bool, bool]:
    """Whether an evaluation of the run's state is on record, and a sample from it."""
    state = run.trainer.step
    evaluated = any(row["step"] == state for row in MetricsFile(run.run_dir.metrics_jsonl).read().val)
    return evaluated, any(sample.step == state for sample in run.samples_file.read())
