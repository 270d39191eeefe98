"""`trainwell train`: start a recipe, continue a run, branch from a step.

Torch is imported once nothing else can be wrong.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from trainwell import faults
from trainwell.cli import parts, ranks
from trainwell.cli.each import Common, train_each
from trainwell.cli.failures import of_several
from trainwell.cli.flags import with_config_flags
from trainwell.cli.out_of_memory import advice, ran_out
from trainwell.cli.output import progress
from trainwell.cli.restarts import keep_running, written
from trainwell.cli.signals import Stopping, stopping_on_signals
from trainwell.config import checks
from trainwell.config.load import load_recorded
from trainwell.data.examples import ExampleStore
from trainwell.data.tasks import Store, open_data
from trainwell.distributed.launch import announce
from trainwell.errors import CheckError, ConfigError, DataError, OutOfMemoryError, StoppedError
from trainwell.planning.lints import findings
from trainwell.planning.model_size import count_parameters
from trainwell.planning.resolve import NeedsTimingError, Plan, resolve
from trainwell.planning.summary import summary
from trainwell.planning.target import Start, find_start, own_copies
from trainwell.runs.console import safe
from trainwell.runs.rundir import RunDir, is_run, parse_target

if TYPE_CHECKING:
    from trainwell.distributed.world import World
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
    restarts: Annotated[
        int,
        Parameter(
            help="Start the run again when it is stopped or crashes, so often at most, while it gets further.",
            validator=Number(gte=0),
        ),
    ] = 0,
    nproc: Annotated[
        str | None,
        Parameter(
            help="Train as so many processes on this machine, usually one for each GPU, which share every step; "
            "each gets its share of the cores. Other machines: torchrun."
        ),
    ] = None,
    profile: Annotated[
        bool,
        Parameter(
            help="Look where the time goes: steps 5, 6 and 7 of this start (earlier in a run that is shorter, later or "
            "fewer where an evaluation or a checkpoint comes between) are traced into RUN/profile, with a summary "
            "there and on the screen. The run trains on, and no number of it changes; --duration 8 ends it after them.",
            negative=(),
        ),
    ] = False,
    each: Annotated[
        list[str] | None,
        Parameter(
            help="KEY=VALUE,VALUE,...: a run for each value, in runs/NAME/KEY=VALUE; repeated, for every combination.",
            negative=(),
        ),
    ] = None,
    jobs: Annotated[
        int, Parameter(name=["-j", "--jobs"], help="Runs of --each at the same time.", validator=Number(gte=1))
    ] = 1,
    allow_change: Annotated[
        list[str] | None,
        Parameter(help="A key that may change although the run continues; may be repeated.", negative=()),
    ] = None,
    skip: Annotated[
        int | None,
        Parameter(
            help="Of a branch RUN@STEP: leave out the data of so many steps from STEP on.", validator=Number(gte=1)
        ),
    ] = None,
    steps: Annotated[
        int | None,
        Parameter(
            help="Of RUN@STEP without --run: take so many steps again, compare them with what is on record, and write "
            "nothing.",
            validator=Number(gte=1),
        ),
    ] = None,
    flags: Mapping[str, object],
) -> int | None:
    """Train TARGET: start a recipe or config file, continue a run, or branch from a step of one into --run NEW.

    Every key of the configuration is a flag.
    """
    faults.arm_from_environment()
    with stopping_on_signals() as stopping:
        announce()
        given, processes = parts.current(), ranks.number(nproc)
        if each:
            alone = [name for name, on in {"steps": steps, "profile": profile, "restarts": restarts}.items() if on]
            shared: dict[str, object] = {"allow-change": allow_change, "skip": skip, "nproc": nproc}
            switches = {"strict": strict, "download": download}
            common = Common(target, config, switches, shared, flags, allow_change or ())
            return train_each(
                common, each, jobs, run, dry_run=dry_run, alone=alone, prepare=partial(_prepare, given, download)
            )
        others: dict[str, object] = {"restarts": restarts, "profile": profile}
        ranks.refuse(target, run, processes, {**others, "dry-run": dry_run, "steps": steps})
        if steps is not None:
            others = {"config": config, "run": run, "dry-run": dry_run, "strict": strict, **others}
            others |= {"nproc": nproc, "allow-change": allow_change, "skip": skip}
            _replay(target, steps, {**given, **flags}, others)
            return None
        start = find_start(
            target, file=config, flags=flags, run=run, data=given.get("data"), allow=allow_change or (), skip=skip
        )
        if of_several():
            doing = partial(_as_rank, given=given, stopping=stopping, strict=strict, download=download)
            return ranks.take_part(start, doing, lambda: bool(stopping.name))
        store = None if given.get("data") is not None else _checked_data(start, download=download)
        if strict:
            _refuse_warnings(start, store)
        if dry_run:
            _print_summary(start, store)
            return None
        if restarts or processes > 1:
            values = {"allow-change": allow_change, "skip": skip, **flags}
            switches = {"strict": strict, "download": download, "profile": profile}
            again = written(target, config=config, switches=switches, values=values)
            if restarts:
                more = [f"--nproc={processes}"] if processes > 1 else []
                return keep_running([*again, *more], start.run_dir, restarts)
            return ranks.start_ranks(again, start.run_dir, processes)
        _train(start, given, store, stopping, profile=profile)
    return None


def _prepare(given: Mapping[str, Any], download: bool, start: Start) -> None:
    """Make the data of runs that are about to start, so that they find it and do not all make it at once."""
    if given.get("data") is None:
        _checked_data(start, download=download)


def _as_rank(
    start: Start, world: "World", *, given: Mapping[str, Any], stopping: Stopping, strict: bool, download: bool
) -> None:
    """Train as one of several; the first rank prepares the data, so that the others find it."""
    store = None
    if given.get("data") is None:
        made = list[Store]()
        world.from_main(lambda: made.append(_checked_data(start, download=download)))
        store = world.together(lambda: made[0] if made else _checked_data(start, download=download))
    if strict:
        _refuse_warnings(start, store)
    _train(start, given, store, stopping, profile=False)


def _replay(target: str, steps: int, parts_and_keys: Mapping[str, Any], others: Mapping[str, object]) -> None:
    """Take steps of a run again; ConfigError, before torch is imported, for what does not go with that."""
    named = [f"--{name}" for name, value in others.items() if value]
    if named:
        raise ConfigError(
            f"--steps {steps} takes steps of RUN@STEP again and writes nothing; {' and '.join(named)} would have no "
            "effect. To go on from there leave --steps out; --duration says how far"
        )
    path, step = parse_target(target)
    if step is None or not is_run(Path(path)):
        raise ConfigError(
            f"--steps {steps} takes steps of a run again, and {target} names no step of one; write "
            "trainwell train runs/NAME@STEP --steps 1. How long a run is, is its --duration"
        )
    from trainwell.replay import replay

    try:
        replay(target, steps, **parts_and_keys)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemoryError(advice(load_recorded(RunDir(Path(path)).config_yaml), None, error)) from error


def _checked_data(start: Start, *, download: bool) -> Store:
    """The data, prepared and counted; every mistake that needs counting is found here, before torch is imported."""
    if "data" in start.config.custom:
        raise ConfigError(
            f"{start.run_dir.shown} was trained on data given in Python ({start.config.custom['data']}); continue it "
            "with the script that has it: trainwell.cli.main(...), build(...), or the same train_model(..., run=...)"
        )
    problems = checks.training_problems(start.config)
    if problems:
        raise checks.error(problems)
    asked = start.config.eval.hellaswag
    if asked is not None and not Path(asked).expanduser().is_file():
        raise DataError(f"eval.hellaswag: there is no file {asked} (looked in {Path.cwd()})")
    store = open_data(start.config.task, own_copies(start), download=download, on_progress=progress())
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
    lines = [*summary(plan, parameters.total), *notes, f"folder: {start.run_dir.shown} (nothing was written)"]
    sys.stdout.write(safe("\n".join(lines)) + "\n")


def _train(start: Start, given: Mapping[str, Any], store: Store | None, stopping: Stopping, *, profile: bool) -> None:
    from trainwell.build import assemble
    from trainwell.distributed.world import current
    from trainwell.fit import fit
    from trainwell.given import Given, prepared
    from trainwell.profiling import fit_profiled

    run = None
    try:
        made = Given(**given)
        data = None if store is None else prepared(start.config, store, made.val)
        run = assemble(start, made, data, world=current())
        stopping.spare(run)
        (fit_profiled if profile else fit)(run)
        run.world.barrier()  # a rank that ends early would have the others asked to end too
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemoryError(advice(start.config, _plan_of(start, store, run), error)) from error
    if run.stopped and not run.finished:
        path = run.run_dir.shown
        raise StoppedError(
            f"stopped at step {run.trainer.step:,} of {run.num_steps:,} and saved; continue: trainwell train {path}"
        )
    if run.world.main:
        sys.stdout.write(_what_next(run))


def _plan_of(start: Start, store: Store | None, run: "Run | None") -> Plan | None:
    """The plan with everything that is decided by now; None for given data that was not counted yet."""
    if run is not None:
        decided = {"micro_batch": run.settings.micro_batch, "precision": run.settings.precision}
        return replace(run.plan, config=run.plan.config.model_copy(update=decided))
    if store is None:
        return None
    return resolve(start.config, store.info, seconds_per_step=1.0)  # memory does not depend on how long it takes


def _what_next(run: "Run") -> str:
    path = run.run_dir.shown
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
