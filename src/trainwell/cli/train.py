"""`trainwell train`: start a recipe, continue a run, branch from a step.

Torch is imported once nothing else can be wrong.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from trainwell.cli import parts
from trainwell.cli.flags import with_config_flags
from trainwell.config import checks
from trainwell.data.examples import ExampleStore
from trainwell.data.tasks import Store, open_data
from trainwell.errors import CheckError, ConfigError, DataError, OutOfMemoryError, StoppedError
from trainwell.planning.lints import findings
from trainwell.planning.model_size import count_parameters
from trainwell.planning.resolve import NeedsTimingError, resolve
from trainwell.planning.summary import summary
from trainwell.planning.target import Start, find_start, own_copies

if TYPE_CHECKING:
    from trainwell.run import Run


@with_config_flags
def train(
    target: str = "demo",
    /,
    *,
    config: Annotated[
        Path | None, Parameter(help="A .yaml, .toml or .json file; it overrides the recipe, flags override it.")
    ] = None,
    run: Annotated[
        Path | None,
        Parameter(help="The run's folder; one that holds this run is continued. Default: the next free runs/NAME."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(help="Check everything, print what the run comes to, and exit.", negative=())
    ] = False,
    strict: Annotated[
        bool, Parameter(help="Refuse to start while the plan has a warning; see trainwell check.", negative=())
    ] = False,
    download: Annotated[
        bool, Parameter(help="Fetch a corpus by name that is not on this machine.", negative=())
    ] = False,
    flags: Mapping[str, object],
) -> None:
    """Train TARGET: start a recipe or config file, continue a run, or branch from a step of one into --run NEW.

    Every key of the configuration is a flag.
    """
    given = parts.current()
    start = find_start(target, file=config, flags=flags, run=run, data=given.get("data"))
    store = None if given.get("data") is not None else _checked_data(start, download=download)
    if strict:
        _refuse_warnings(start, store)
    if dry_run:
        _print_summary(start, store)
        return
    _train(start, given, store)


def _checked_data(start: Start, *, download: bool) -> Store:
    """The data, prepared and counted; every mistake that needs counting is found here, before torch is imported."""
    if "data" in start.config.custom:
        raise ConfigError(
            f"{start.run_dir.path} was trained on data given in Python ({start.config.custom['data']}); continue it "
            "with the script that has it: trainwell.cli.main(...), build(...), or the same train_model(..., run=...)"
        )
    problems = checks.training_problems(start.config)
    if problems:
        raise checks.error(problems)
    asked = start.config.eval.hellaswag
    if asked is not None and not Path(asked).expanduser().is_file():
        raise DataError(f"eval.hellaswag: there is no file {asked} (looked in {Path.cwd()})")
    store = open_data(start.config.task, own_copies(start), download=download)
    with suppress(NeedsTimingError):  # a number of steps that is measured once the model stands
        resolve(start.config, store.info)
    return store


def _refuse_warnings(start: Start, store: Store | None) -> None:
    """Raise ConfigError with every warning and the line to change, where there is one."""
    if store is None:
        raise ConfigError("--strict checks a plan of configured data; this script gives its own")
    try:
        found = findings(resolve(start.config, store.info))
    except NeedsTimingError:
        raise ConfigError(
            f"--strict checks before anything is timed, and the duration of {start.config.duration} becomes steps only "
            "then; give --duration in steps, tokens or epochs"
        ) from None
    warnings = [finding.line().removeprefix("warning: ") for finding in found if finding.level == "warning"]
    if warnings:
        what = "one warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        raise CheckError(
            "\n  ".join([f"--strict: the plan has {what}, so nothing was started:", *warnings])
            + "\nChange them, or start without --strict"
        )


def _print_summary(start: Start, store: Store | None) -> None:
    if store is None:
        raise ConfigError("--dry-run counts configured data; this script gives its own")
    try:
        plan = resolve(start.config, store.info)
    except NeedsTimingError as error:
        sys.stdout.write(f"{error}\n")
        return
    assert plan.vocab_size is not None, "prepared data has a vocabulary"
    examples = store if isinstance(store, ExampleStore) else None
    labels = None if examples is None else len(examples.labels) or None
    parameters = count_parameters(start.config.model, plan.vocab_size, plan.seq_len, num_labels=labels)
    notes = () if examples is None else examples.notes
    lines = [*summary(plan, parameters.total), *notes, f"folder: {start.run_dir.path} (nothing was written)"]
    sys.stdout.write("\n".join(lines) + "\n")


def _train(start: Start, given: Mapping[str, Any], store: Store | None) -> None:
    import torch

    from trainwell.build import assemble
    from trainwell.fit import fit
    from trainwell.given import Given, prepared

    made = Given(**given)
    try:
        run = assemble(start, made, None if store is None else prepared(start.config, store, made.val))
        with run, _stopping_on_signals(run):
            fit(run)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(_memory_advice(start, error)) from error
    if run.stopped and run.trainer.step < run.num_steps:
        path = run.run_dir.path
        raise StoppedError(
            f"stopped at step {run.trainer.step:,} of {run.num_steps:,} and saved; continue: trainwell train {path}"
        )
    sys.stdout.write(_what_next(run))


def _memory_advice(start: Start, error: Exception) -> str:
    config = start.config
    return (
        f"out of memory with micro_batch {config.micro_batch} x data.seq_len {config.data.seq_len}: "
        "lower --micro-batch, which changes no result, then --data.seq-len or --model.width. "
        f"The device said: {str(error).splitlines()[0]}"
    )


@contextmanager
def _stopping_on_signals(run: "Run") -> Iterator[None]:
    """A first SIGINT or SIGTERM lets the step finish and saves; a second one ends at once.

    The handler sets a flag and writes past Python's buffers: a print could meet the print that it interrupted.
    """

    def stop(number: int, _frame: object) -> None:
        if run.stopped:
            raise KeyboardInterrupt
        run.stop()
        said = f"{signal.Signals(number).name}: finishing this step and saving; once more to end at once\n"
        os.write(sys.stderr.fileno(), said.encode())

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _what_next(run: "Run") -> str:
    path = run.run_dir.path
    prompt = run.config.sample.prompt.strip() or "The"
    first = {
        "pretrain": f"--prompt {prompt!r}    more text from it",
        "instruct": "--chat    ask it something",
        "classify": "--label 'some text'    which class it takes it for",
    }
    return (
        "\nWhat to try next:\n"
        f"  trainwell sample {path} {first[run.config.task]}\n"
        f"  trainwell show {path}    its curves, samples and verdict\n"
        f"  trainwell train {path}@last --run {path}-longer --duration {2 * run.num_steps}    branch from its end\n"
    )
