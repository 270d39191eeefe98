"""From step results to metrics.jsonl and the screen: every step a line in the file, every `log.every`-th on the screen.

Results stay on the device until they are read: at once on a CPU, at the log cadence elsewhere.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from trainwell import incidents
from trainwell.checkpoint.layout import saved_steps
from trainwell.data.batches import Prefetch
from trainwell.errors import ConfigError, DivergedError, StorageError
from trainwell.evaluate import Evaluation
from trainwell.runs.bystander import NoMetrics
from trainwell.runs.incidents import write_incident
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.sinks import Sinks
from trainwell.runs.throughput import mfu, peak_flops, tokens_per_second
from trainwell.trainer import StepResult

if TYPE_CHECKING:
    from trainwell.run import Run

_Waiting = tuple[StepResult, dict[str, Any], float, float]
"""A step's result, what was logged beside it, its seconds, and those that it waited for data."""

_SCALARS = ("loss", "grad_norm", "targets", "skipped")
_OWN = ("step", "tokens", "epoch", "time")
_MOST_INCIDENTS = 20
"""So many are measured between two starts: a run that does nothing but leap must not spend its time on that."""


class Recorder:
    """Takes each step's result and each evaluation; times the steps, with pauses for saving and evaluating left out.

    Every rank has one, which reads the same numbers and judges them alike; that of the first writes them down.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._console = run.console
        self._plan = run.plan
        self._file = (MetricsFile if run.world.main else NoMetrics)(run.run_dir.metrics_jsonl)
        self._sinks = Sinks(
            run.config.log.sink_names if run.world.main else (),
            run.run_dir.path,
            run.config.model_dump(mode="json"),
            run.console.message,
        )
        self._at_once = run.settings.device == "cpu"
        self._peak_flops = peak_flops(run.settings.device_name, run.settings.precision)
        self._waiting: list[_Waiting] = []
        self._logged: dict[str, float | torch.Tensor] = {}
        self._unwritten: list[dict[str, Any]] = []
        self.unwritten: StorageError | None = None
        """Why lines are waiting that should be in the file; None when none are."""
        self._clipped: list[bool] = []
        self._expected: StepResult | None = None
        self._added: StepResult | None = None
        self._incidents = 0
        self._elapsed_s = 0.0
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Continue the clock where the file's last line left it."""
        records = self._file.read()
        self._elapsed_s = max((row.get("time", 0.0) for row in (*records.train[-1:], *records.val[-1:])), default=0.0)
        self._clipped = []
        for row in reversed(records.train):
            if "train/clipped_share" in row:
                break
            self._clipped.append(bool(row.get("train/clipped")))
        self._mark = time.perf_counter()

    def log(self, values: Mapping[str, Any]) -> None:
        """Add values to the line of the step that is being taken; ConfigError for a name or value it cannot hold."""
        for name, value in values.items():
            if name in _OWN:
                raise ConfigError(f"log({name}=...): {name} is trainwell's own; {', '.join(_OWN)} are taken")
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise ConfigError(f"log({name}=...): a tensor of {value.numel()} elements; log single numbers")
        self._logged |= values

    def expect(self, result: StepResult) -> None:
        """Know a step's result before the body of the loop sees it, so that a save in the body can record it first."""
        self._expected = result

    def add_expected(self) -> None:
        """Take the result of the step whose body is running; outside of one do nothing."""
        if self._expected is not None:
            self.add(self._expected)

    def add(self, result: StepResult) -> None:
        """Take a step's result, once; it is read, written and printed when due."""
        if result is self._added:
            return
        self._added, self._expected = result, None
        now = time.perf_counter()
        step_s, self._mark = now - self._mark, now
        self._elapsed_s += step_s
        data_wait_s = self._run.batches.wait_s if isinstance(self._run.batches, Prefetch) else 0.0
        self._waiting.append((result, self._logged, step_s, data_wait_s))
        self._logged = {}
        if self._at_once or result.step % self._console.log_every == 0:
            self.flush()

    def pause(self) -> None:
        """Leave out of the next step's time what was done since the last one."""
        now = time.perf_counter()
        self._elapsed_s += now - self._mark
        self._mark = now

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Record the evaluation of state `step`."""
        row = self._place(step) | {
            "val/loss": evaluation.loss,
            "val/ppl": evaluation.perplexity,
            "val/bpb": evaluation.bits_per_byte,
            **{f"val/{name}": value for name, value in evaluation.parts.items()},
        }
        self._write([{key: value for key, value in row.items() if value is not None}])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the file; where that fails they wait, training goes on, and the next ones take them along."""
        self._sinks.write(rows)
        self._unwritten += rows
        if not self._unwritten:
            return
        try:
            self._file.append(*self._unwritten)
        except StorageError as error:
            if self.unwritten is None:
                self._console.message(f"{error}; training goes on, and the lines wait until they can be written")
            self.unwritten = error
        else:
            self._unwritten, self.unwritten = [], None

    def close(self) -> None:
        """End the sinks; what is in the file stays."""
        self._sinks.close()

    def sync(self) -> None:
        """Force what is written to the disk, so that no checkpoint is ahead of its metrics after a power cut."""
        try:
            self._file.sync()
        except StorageError as error:
            self._console.message(f"{error}; training goes on")

    def _place(self, state: int) -> dict[str, Any]:
        """Where a run stands at a state: what is known of it without looking at the device."""
        return {
            "step": state,
            "tokens": self._plan.batch.tokens_before(state),
            "epoch": self._plan.epoch(state),
            "time": round(self._elapsed_s, 4),
        }

    def flush(self, *, check: bool = True, measure: bool = True) -> None:
        """Read, write and print what waits; raise DivergedError when that shows that the run has diverged.

        What leapt out is measured, which takes all ranks, unless `measure` is false.
        """
        waiting, self._waiting = self._read(self._waiting), []
        rows = [self._row(*each) for each in waiting]
        self._write(rows)
        for row in rows:
            self._console.step_line(
                row["step"],
                row["train/loss"],
                row["train/lr"],
                row["train/grad_norm"],
                row["train/step_ms"] / 1000,
                row["train/tokens_per_sec"],
            )
        for (result, *_), row in zip(waiting, rows, strict=True):
            if measure:
                self._look_into(result, row)
        if rows and check:
            self._run.trainer.guard.check(rows[-1]["step"])
            self._stop_on_spike(rows)

    def _read(self, waiting: list[_Waiting]) -> list[_Waiting]:
        """Those steps with their numbers on the host, read together.

        A device is behind the loop, which hears only here how long its steps took: each gets the mean of their times.
        """
        if self._at_once or not waiting:
            return waiting
        results = [result for result, *_ in waiting]
        columns: dict[str, Any] = {
            name: torch.stack([getattr(result, name) for result in results]).cpu() for name in _SCALARS
        }
        late = time.perf_counter() - self._mark
        self._mark += late
        self._elapsed_s += late
        mean_s = (sum(step_s for _, _, step_s, _ in waiting) + late) / len(waiting)
        return [
            (replace(result, **{name: values[place] for name, values in columns.items()}), logged, mean_s, wait_s)
            for place, (result, logged, _, wait_s) in enumerate(waiting)
        ]

    def _look_into(self, result: StepResult, row: dict[str, Any]) -> None:
        """Say what is the matter with a step that leapt out or was skipped, and leave evidence of it in incidents/."""
        if not (row.get("train/spike") or row["train/skipped"]):
            return
        run, step = self._run, result.step
        reason = row["train/why"]
        policy = self._plan.config.guard.policy
        done = {"skip": "the update was made, for so many in a row are a new level", "stop": "the run ends here"}.get(
            policy, "the update was made"
        )
        done = "no update was made" if row["train/skipped"] else done
        self._console.message(
            f"step {step:4d} | {reason}; {done}. To look into it: trainwell show {run.run_dir.shown}@{step}"
        )
        self._incidents += 1
        if self._incidents > _MOST_INCIDENTS:
            return
        incident = incidents.measure(
            run.trainer,
            result,
            reason=reason,
            autocast=run.settings.autocast,
            decode=None if run.tokenizer is None else run.tokenizer.decode,
        )
        try:
            if run.world.main:
                write_incident(run.run_dir, incident)
        except StorageError as error:
            self._console.message(str(error))
        self.pause()

    def _stop_on_spike(self, rows: list[dict[str, Any]]) -> None:
        spikes = [row["step"] for row in rows if row.get("train/spike")]
        if self._plan.config.guard.policy != "stop" or not spikes:
            return
        self._run.saver.join()
        path, on_disk = (
            self._run.run_dir.shown,
            self._run.world.from_main(lambda: saved_steps(self._run.run_dir.checkpoints)),
        )
        saved = [step for step in on_disk if step <= spikes[0]]
        skip = min(200, max(1, self._plan.num_steps // 10))
        goes_on = (
            f"to go on without that text: trainwell train {path}@{saved[-1]} --run NEW --skip {skip}"
            if saved
            else "nothing was saved before it, so start anew: with a lower --optim.lr or a longer --schedule.warmup"
        )
        raise DivergedError(
            f"step {spikes[0]} leapt out, and guard.policy is stop. Look at it with trainwell show {path}@{spikes[0]}; "
            + goes_on
        )

    def _row(self, result: StepResult, logged: dict[str, Any], step_s: float, data_wait_s: float) -> dict[str, Any]:
        step, config = result.step, self._plan.config
        norm = float(result.grad_norm)
        clipping = config.optim.max_grad_norm is not None and step >= self._plan.clip_from
        planned = self._plan.batch.size(step) * self._plan.seq_len
        read = min(
            planned, result.positions * self._run.world.size or planned
        )  # rows of examples are shorter than planned, and filler is not read
        speed = tokens_per_second(read, max(step_s, 1e-9))
        clipped = clipping and norm > (config.optim.max_grad_norm or 0)
        row: dict[str, Any] = self._place(step + 1) | {
            "step": step,
            "train/loss": float(result.loss),
            "train/lr": result.lr,
            "train/grad_norm": norm,
            "train/clipped": clipped,
            "train/skipped": bool(result.skipped),
            "train/targets": int(result.targets),
            "train/tokens_per_sec": round(speed, 2),
            "train/step_ms": round(step_s * 1000, 3),
            "train/data_ms": round(data_wait_s * 1000, 3),
            "train/mfu": self._utilisation(speed),
        }
        if self._run.settings.device == "cuda":
            row["mem/peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        named = {f"train/{name}": float(value) for name, value in result.parts.items()}
        return (
            row
            | named
            | self._norms(result, clipped)
            | self._alarm(result)
            | {name: _plain(value) for name, value in logged.items()}
        )

    def _norms(self, result: StepResult, clipped: bool) -> dict[str, float]:
        """What leads the loss, at the log cadence: norms of update and weights, clipped share since the last ones."""
        self._clipped.append(clipped)
        if result.update_norm is None or result.weight_norm is None:
            return {}
        share, self._clipped = sum(self._clipped) / len(self._clipped), []
        return {
            "train/update_norm": float(result.update_norm),
            "train/weight_norm": float(result.weight_norm),
            "train/clipped_share": round(share, 4),
        }

    def _alarm(self, result: StepResult) -> dict[str, Any]:
        """Of a step that leapt out or was skipped: which it was, why, and what it read."""
        spike, skipped = result.spike is not None and bool(result.spike), bool(result.skipped)
        if not (spike or skipped):
            return {}
        found: dict[str, Any] = {"train/spike": True} if spike else {}
        latest = result.step == self._run.trainer.step - 1  # whose gradients are still there
        seen = "loss or gradient norm leapt out" if spike else "loss or gradient norm was not finite"
        found["train/why"] = self._run.trainer.why_skipped(result) if latest else seen
        source = incidents.numbered(self._run.batches)
        return found if source is None else found | {"train/windows": source.indices(result.step).tolist()}

    def _utilisation(self, speed: float) -> float | None:
        if self._run.flops_per_token is None or self._peak_flops is None:
            return None
        return round(mfu(speed, self._run.flops_per_token, self._peak_flops * self._run.world.size), 5)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
