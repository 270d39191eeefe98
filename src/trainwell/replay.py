"""A step of a run, taken again: the same weights, the same batch, compared with what is on record, and measured.

Reads the run's folder and writes nothing into it. Knows how a run is put together and what it recorded.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from trainwell import incidents
from trainwell.build import assemble
from trainwell.checkpoint.layout import candidates
from trainwell.checkpoint.store import CheckpointStore
from trainwell.config.load import load_recorded
from trainwell.data.batches import Stream
from trainwell.errors import CheckError, ConfigError, DataError, StorageError
from trainwell.fit import deterministic
from trainwell.given import PARTS, Data, Given, data_from, refuse_missing_parts, template_in
from trainwell.models import load_weights
from trainwell.planning.changes import data_difference
from trainwell.planning.target import Start, environment_of, find_step, own_copies, parent_of
from trainwell.report.incident import commands, show_incident
from trainwell.run import Run
from trainwell.runs.console import safe
from trainwell.runs.incidents import Incident, read_incident
from trainwell.runs.metrics import MetricsFile, Row
from trainwell.runs.rundir import RunDir, Step, is_run, parse_target
from trainwell.saver import load_trainer
from trainwell.settings import environment
from trainwell.trainer import StepResult

Show = Callable[[Any], None]

_COMPARED = {"loss": "train/loss", "norm": "train/grad_norm"}


def _on_the_screen(what: Any) -> None:
    """Print text, as long as it is, or what rich can draw; a character that the terminal lacks becomes an escape."""
    console, encoding = Console(highlight=False), sys.stdout.encoding or "utf-8"
    with console.capture() as drawn:
        if isinstance(what, str):
            console.print(safe(what), markup=False, soft_wrap=True)
        else:
            console.print(what)
    sys.stdout.write(drawn.get().encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def replay(target: str | Start, steps: int = 1, *, show: Show = _on_the_screen, **parts: Any) -> None:
    """Take `steps` steps of a run again from RUN@STEP on, and say for each whether it equals the record to the bit.

    Of a single step all is measured: the loss of each example, the norms of each tensor's gradient and update.

    Args:
        target: `runs/demo@1200`, `@best` or `@last`, or a Start whose parent is the run and the step.
        steps: how many.
        show: is given text, and what rich can draw.
        parts: those of `build` that the run was made with, and `device` for another one.

    Raises:
        ConfigError: for a step that the run has not, or data that cannot be read a second time.
        DataError: for data that is not what the run read.
        CheckError: when a step differs from the record where equal bits are promised.
    """
    run_dir, asked = _place(target)
    flags = {name: value for name, value in parts.items() if name not in PARTS}
    if flags.keys() - {"device"}:
        raise ConfigError(
            f"{', '.join(sorted(flags.keys() - {'device'}))}: a step is taken again as it was; of the config keys only "
            "--device goes with --steps. To go on otherwise, branch: add --run NEW"
        )
    run = _open(run_dir, Given(**{name: parts[name] for name in PARTS if name in parts}), flags)
    try:
        step = asked if isinstance(asked, int) else find_step(run_dir, asked)
        _refuse_steps_past_the_end(run, step, steps)
        _Replay(run, step, show).take(steps)
    finally:
        run.close()


def _place(target: str | Start) -> tuple[RunDir, Step]:
    """The run and the step of it that are meant."""
    if isinstance(target, Start):
        return target.parent or (target.run_dir, "last")
    path, step = parse_target(target)
    if not is_run(Path(path)):
        raise ConfigError(f"{path} is not a run: there is no config.yaml in it; --steps takes a step of a run again")
    if step is None:
        raise ConfigError(f"--steps takes a step of a run again; name it, as in {path}@1200")
    return RunDir(Path(path)), step


def _open(run_dir: RunDir, given: Given, flags: Mapping[str, Any]) -> Run:
    """The run, its data read again, its weights not yet those of any step."""
    config = load_recorded(run_dir.config_yaml, flags={"eval.hellaswag": None, **flags})
    refuse_missing_parts(config, given)
    start = Start(config, run_dir)
    data = data_from(config.model_copy(update={"data": own_copies(start)}), given)
    if isinstance(data.train, Stream):
        raise ConfigError(
            f"{run_dir.path} was trained on a loader that only runs forward: what a step read cannot be read again. "
            "Give examples with len(d) and d[i]"
        )
    _refuse_other_data(run_dir, data)
    return assemble(start, given, replace(data, template=template_in(run_dir) or data.template))


def _refuse_other_data(run_dir: RunDir, data: Data) -> None:
    then = environment_of(run_dir).get("data")
    difference = "" if then is None else data_difference(then, data.facts)
    if difference:
        raise DataError(f"the data is not what {run_dir.shown} was trained on: {difference}. Bring that text back")


def _refuse_steps_past_the_end(run: Run, step: int, steps: int) -> None:
    if step + steps > run.num_steps:
        left = max(run.num_steps - step, 0)
        raise ConfigError(
            f"--steps {steps}: {run.run_dir.path} has {run.num_steps:,} steps, the last is @{run.num_steps - 1}, "
            f"so from @{step} there are {left}"
        )


@dataclass
class _Replay:
    """A run on its way to `step`, and what of it differed from the record."""

    run: Run
    step: int
    show: Show
    differing: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.run.run_dir.path
        self.env = environment_of(self.run.run_dir)
        self.rows: dict[int, Row] = {
            row["step"]: row for row in MetricsFile(self.run.run_dir.metrics_jsonl).read().train
        }

    def take(self, steps: int) -> None:
        """Go to the step, take it and those after it, and say how they compare."""
        self.show(self.run.settings.line())
        with deterministic(self.run.settings.deterministic), self.run.settings.fast.preferred():
            self._begin()
            self._go_on()
            if steps == 1:
                self._measure()
            else:
                for result in self.run.trainer.steps(until=self.step + steps):
                    self.show(self._line(result))
        self._conclude()

    def _begin(self) -> None:
        """Load the newest whole checkpoint at or before the step, else what the run began with."""
        folder = self.run.run_dir.checkpoints
        for state in reversed([state for state in candidates(folder) if state <= self.step]):
            try:
                content, _ = self.run.store.load(state)
            except StorageError as error:
                self.show(f"passed over {error}")
                continue
            load_trainer(self.run.trainer, content["trainer"], f"{self.path}@{state}")
            if content.get("kept"):
                self.show(f"state of {', '.join(sorted(content['kept']))} is not restored: only its script knows it")
            self.show(f"from the checkpoint of step {state:,}")
            return
        self._begin_anew()

    def _begin_anew(self) -> None:
        parent = parent_of(self.run.run_dir)
        if parent is not None:
            self._begin_at_parent(*parent)
            return
        if self.run.config.init_from is not None:
            load_weights(self.run.model, self.run.config.init_from, labels=self.run.labels)
            self.show(f"no checkpoint at or before step {self.step:,}: from {self.run.config.init_from}, as it began")
            return
        self.show(
            f"no checkpoint at or before step {self.step:,}: from the initial weights, which are a function of the seed"
        )

    def _begin_at_parent(self, parent: RunDir, state: int) -> None:
        name = f"{parent.shown}@{state}"
        if self.step < state:
            raise ConfigError(
                f"{self.path}@{self.step}: the run branches from {name}, and the steps before it are that run's: "
                f"trainwell train {parent.shown}@{self.step} --steps 1"
            )
        content, _ = CheckpointStore(parent.checkpoints).load(state)
        load_trainer(self.run.trainer, content["trainer"], name, own_settings=True)
        self.show(f"from {name}, which it branches from")

    def _go_on(self) -> None:
        """Take the steps before the one that is asked for, without a line for each."""
        first = self.run.trainer.step
        if first == self.step:
            return
        self.show(f"taking steps {first:,} to {self.step - 1:,} again to get there ({self.step - first:,})")
        compared = [self._compare(result) for result in self.run.trainer.steps(until=self.step)]
        known = [said for said in compared if said is not None]
        if self.differing:
            self.show(
                f"of them {len(self.differing):,} differ from the record, the first is step {self.differing[0]:,}"
            )
        elif known:
            self.show(f"{_all_of(len(known), len(compared))} equal to the record, bit for bit")

    def _compare(self, result: StepResult) -> str | None:
        """How a step compares with its row: equal, or the values that are not; None where there is no row."""
        row = self.rows.get(result.step)
        if row is None:
            return None
        values = {"loss": float(result.loss), "norm": float(result.grad_norm)}
        differing = [
            f"{name} {row[key]!r} on record, {values[name]!r} now"
            for name, key in _COMPARED.items()
            if isinstance(row.get(key), float) and not _same(row[key], values[name])
        ]
        if differing:
            self.differing.append(result.step)
        return "; ".join(differing) or "equal to the record, bit for bit"

    def _line(self, result: StepResult) -> str:
        compared = self._compare(result) or "not on record"
        skipped = " | skipped" if bool(result.skipped) else ""
        return (
            f"step {result.step:4d} | loss: {float(result.loss):.6f} | lr {result.lr:.4e} | "
            f"norm: {float(result.grad_norm):.4f}{skipped} | {compared}"
        )

    def _measure(self) -> None:
        """Take one step and look at all of it."""
        run = self.run
        run.trainer.model.train()
        how: dict[str, Any] = {
            "autocast": run.settings.autocast,
            "decode": None if run.tokenizer is None else run.tokenizer.decode,
        }
        before = incidents.look_before(run.trainer, **how)
        result = run.trainer.take_step()
        self.show(self._line(result))
        on_file = read_incident(run.run_dir, result.step)
        reason = self._reason(result, on_file)
        incident = incidents.measure(run.trainer, result, reason=reason, before=before, **how)
        saved = candidates(run.run_dir.checkpoints)
        next_commands = commands(str(self.path), result.step, saved)[1:] if on_file or incident.skipped else ()
        self.show(Group(Text(), *show_incident(incident, next_commands)))

    def _reason(self, result: StepResult, on_file: Incident | None) -> str:
        seen = self.run.trainer.why_skipped(result)
        on_record = "no incident is on record for this step" if on_file is None else on_file.reason
        return seen or f"nothing leapt out; {on_record}"

    def _conclude(self) -> None:
        """Raise CheckError where a step differs and should not; say why it may where it may."""
        if not self.differing:
            return
        first = f"{self.path}: step {self.differing[0]:,} differs from the record"
        if not self.run.settings.deterministic:
            self.show(f"{first}; on {self.run.settings.device} equal bits are promised with deterministic: true only")
            return
        changed = self._changed()
        if changed:
            self.show(f"{first}; equal bits are promised for the same machine and software only: {'; '.join(changed)}")
            return
        raise CheckError(
            f"{first}, and on this machine it should be equal to the bit. Either its files have changed since, which "
            f"trainwell check {self.path} would show, or a key of its config.yaml, or trainwell's code"
        )

    def _changed(self) -> list[str]:
        """What of the machine, the software and the choices is not as the run recorded it."""
        now, found = environment(self.run.settings), list[str]()
        for section in ("versions", "settings"):
            then = self.env.get(section, {})
            found += [
                f"{key} {then[key]} then, {value} now"
                for key, value in now[section].items()
                if key in then and then[key] != value
            ]
        return found


def _same(then: float, now: float) -> bool:
    return then == now or (math.isnan(then) and math.isnan(now))


def _all_of(known: int, count: int) -> str:
    return "all" if known == count else f"{known:,} of them, which are on record, are"
