"""From step results to metrics.jsonl and the screen: every step a line in the file, every `log.every`-th on the screen.

Results stay on the device until they are read: at once on a CPU, at the log cadence elsewhere.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from trainwell.data.batches import Prefetch
from trainwell.errors import ConfigError
from trainwell.evaluate import Evaluation
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.throughput import mfu, peak_flops, tokens_per_second
from trainwell.trainer import StepResult

if TYPE_CHECKING:
    from trainwell.run import Run

_OWN = ("step", "tokens", "epoch", "time")


class Recorder:
    """Takes each step's result and each evaluation; times the steps, with pauses for saving and evaluating left out."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._console = run.console
        self._plan = run.plan
        self._file = MetricsFile(run.run_dir.metrics_jsonl)
        self._at_once = run.settings.device == "cpu"
        self._peak_flops = peak_flops(run.settings.device_name, run.settings.precision)
        self._waiting: list[tuple[StepResult, dict[str, Any], float, float]] = []
        self._logged: dict[str, float | torch.Tensor] = {}
        self._elapsed_s = 0.0
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Continue the clock where the file's last line left it."""
        records = self._file.read()
        self._elapsed_s = max((row.get("time", 0.0) for row in (*records.train[-1:], *records.val[-1:])), default=0.0)
        self._mark = time.perf_counter()

    def log(self, values: Mapping[str, Any]) -> None:
        """Add values to the line of the step that is being taken; ConfigError for a name or value it cannot hold."""
        for name, value in values.items():
            if name in _OWN:
                raise ConfigError(f"log({name}=...): {name} is trainwell's own; {', '.join(_OWN)} are taken")
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise ConfigError(f"log({name}=...): a tensor of {value.numel()} elements; log single numbers")
        self._logged |= values

    def add(self, result: StepResult) -> None:
        """Take a step's result; it is read, written and printed when due."""
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
        self._file.append({key: value for key, value in row.items() if value is not None})

    def _place(self, state: int) -> dict[str, Any]:
        """Where a run stands at a state: what is known of it without looking at the device."""
        return {
            "step": state,
            "tokens": self._plan.batch.tokens_before(state),
            "epoch": self._plan.epoch(state),
            "time": round(self._elapsed_s, 4),
        }

    def flush(self, *, check: bool = True) -> None:
        """Read, write and print what waits; raise DivergedError when that shows that the run has diverged."""
        rows = [self._row(*waiting) for waiting in self._waiting]
        self._waiting = []
        if rows:
            self._file.append(*rows)
        for row in rows:
            self._console.step_line(
                row["step"],
                row["train/loss"],
                row["train/lr"],
                row["train/grad_norm"],
                row["train/step_ms"] / 1000,
                row["train/tokens_per_sec"],
            )
        if rows and check:
            self._run.trainer.guard.check(rows[-1]["step"])

    def _row(self, result: StepResult, logged: dict[str, Any], step_s: float, data_wait_s: float) -> dict[str, Any]:
        step, config = result.step, self._plan.config
        norm = float(result.grad_norm)
        clipping = config.optim.max_grad_norm is not None and step >= self._plan.clip_from
        planned = self._plan.batch.size(step) * self._plan.seq_len
        read = min(
            planned, result.positions or planned
        )  # rows of examples are shorter than planned, and filler is not read
        speed = tokens_per_second(read, max(step_s, 1e-9))
        row: dict[str, Any] = self._place(step + 1) | {
            "step": step,
            "train/loss": float(result.loss),
            "train/lr": result.lr,
            "train/grad_norm": norm,
            "train/clipped": clipping and norm > (config.optim.max_grad_norm or 0),
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
        return row | named | {name: _plain(value) for name, value in logged.items()}

    def _utilisation(self, speed: float) -> float | None:
        if self._run.flops_per_token is None or self._peak_flops is None:
            return None
        return round(mfu(speed, self._run.flops_per_token, self._peak_flops), 5)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
