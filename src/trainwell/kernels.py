"""Which kernels a run computes with: chosen by what this machine and this model gain from, and every choice a key.

`kernels: reference` turns all of it off. Measurements are in docs/performance.md.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from trainwell import machine
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError
from trainwell.model.attention import chosen_backend, preferring
from trainwell.model.decoder import Decoder
from trainwell.model.fast import use_attention, use_cpu_dropout
from trainwell.planning.memory import Precision
from trainwell.planning.resolve import Plan

_ATTENTION = {
    "cpu": ("sdpa", "flash", "math", "products"),
    "cuda": ("sdpa", "flash", "efficient", "cudnn", "math"),
    "mps": ("sdpa", "math"),
}
_SHORT = 512
"""Tokens up to which flash attention, going back in bf16, is slower on a CPU than products."""
_WORTH_A_RACE = 10**12
"""FLOPs of a run from which on it pays to spend half a second on finding the faster product of matrices."""


@dataclass(frozen=True)
class Kernels:
    """What was chosen; the defaults are those of `kernels: reference`."""

    matmul: Literal["default", "onednn"] = "default"
    """What multiplies fp32 matrices on a CPU."""
    attention: str = "sdpa"
    """What computes attention: torch's choice, one of its backends, or products."""
    backend: str = "math"
    """Which of its backends torch chose; where `attention` is products, it is not asked in training."""
    dropout: Literal["default", "bits"] = "default"
    """How masks are drawn."""
    residual: Literal["fp32", "bf16"] = "fp32"
    """The type of the residual path, where the run is in bf16."""
    keep_memory: Literal["huge"] | bool = False
    """Whether freed memory is kept for the next step, and whether in huge pages."""

    def words(self, *, dropout: bool) -> list[str]:
        """The choices that are not torch's own, in words; of `dropout` only where there is any."""
        return [
            *(["oneDNN matmul"] if self.matmul == "onednn" else []),
            *([f"attention by {self._attention}"] if self._attention else []),
            *(["dropout by bits"] if dropout and self.dropout == "bits" else []),
            *(["residual path in bf16"] if self.residual == "bf16" else []),
            *(["freed memory kept" + " in huge pages" * (self.keep_memory == "huge")] if self.keep_memory else []),
        ]

    @property
    def _attention(self) -> str:
        return "products" if self.attention == "products" else self.backend

    def of_given_model(self) -> "Kernels":
        """What of it a model has that is not trainwell's own."""
        return replace(self, attention="sdpa", backend="", dropout="default", residual="fp32")

    def use_in_process(self) -> None:
        """Make the choices that hold for the whole process; those of a run before it in the same one are taken back."""
        machine.use_matmul(self.matmul)
        if self.keep_memory:
            machine.keep_freed_memory()
        if self.keep_memory == "huge":
            machine.use_huge_pages()

    def preferred(self) -> AbstractContextManager[object]:
        """Inside, torch's attention takes the backend that was asked for, where it can."""
        return preferring(self.attention)

    def use_in(self, model: nn.Module) -> None:
        """Give a model of trainwell its kernels."""
        use_attention(model, "products" if self.attention == "products" else "sdpa")
        if self.dropout == "bits":
            use_cpu_dropout(model)
        if isinstance(model, Decoder):
            model.narrow = self.residual == "bf16"


def choose(
    config: RunConfig,
    plan: Plan,
    device: str,
    precision: Precision,
    compiled: bool,
    recorded: dict[str, Any],
    say: Callable[[str], None],
) -> Kernels:
    """Make every choice: as asked for, as `recorded` of the same run, or what is faster; `say` hears what a race gave.

    Raises ConfigError for a kernel that the device does not have.
    """
    _refuse_foreign(config, device, precision, compiled)
    if config.kernels == "reference":
        return Kernels(backend=_backend(config, plan, device, precision))
    eager_cpu = device == "cpu" and not compiled
    short = plan.seq_len <= _SHORT
    products = eager_cpu and (config.model.dropout > 0 or (precision == "bf16" and short))
    auto: dict[str, Callable[[], object]] = {
        "matmul": lambda: _matmul(plan, say) if device == "cpu" and precision == "fp32" else "default",
        "attention": lambda: "products" if products else "sdpa",
        "dropout": lambda: "bits" if eager_cpu else "default",
        "residual": lambda: "bf16" if (device, precision) == ("cuda", "bf16") else "fp32",
        "keep_memory": lambda: _keep_memory() if device == "cpu" else False,
    }
    made: dict[str, Any] = {}
    for key, choice in auto.items():
        asked = getattr(config.fast, key)
        made[key] = asked if asked != "auto" else recorded[key] if key in recorded else choice()
    with preferring(made["attention"]):
        return Kernels(**made, backend=_backend(config, plan, device, precision))


def _backend(config: RunConfig, plan: Plan, device: str, precision: Precision) -> str:
    model = config.model
    return chosen_backend(
        torch.device(device),
        {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
        num_heads=model.num_heads,
        num_kv_heads=model.kv_heads,
        head_dim=model.size_of_head,
        seq_len=plan.seq_len,
        dropout=model.dropout,
    )


def _refuse_foreign(config: RunConfig, device: str, precision: Precision, compiled: bool) -> None:
    for key, values in (("matmul", ("onednn",)), ("dropout", ("bits",)), ("keep_memory", (True, "huge"))):
        value = getattr(config.fast, key)
        if device != "cpu" and value in values:
            raise ConfigError(f"fast.{key}: {str(value).lower()} is for a CPU, and this run is on {device}; give auto")
    for key, value in (("attention", "products"), ("dropout", "bits")):
        if compiled and getattr(config.fast, key) == value:
            raise ConfigError(f"fast.{key}: {value} is for eager models, and this one is compiled; give auto")
    if config.fast.residual == "bf16" and precision != "bf16":
        raise ConfigError(f"fast.residual: bf16 is for runs in bf16, and this one is in {precision}; give auto")
    if config.fast.matmul == "onednn" and machine.onednn_rounds():
        raise ConfigError("fast.matmul: onednn would round fp32 to bf16 on this CPU, which has AMX; give auto")
    _refuse_memory(config.fast.keep_memory)
    attention = config.fast.attention
    if attention != "auto" and attention not in _ATTENTION[device]:
        raise ConfigError(
            f"fast.attention: {attention} is not to be had on {device}; allowed there are auto, "
            f"{', '.join(_ATTENTION[device])}"
        )


def _refuse_memory(asked: str | bool) -> None:
    if asked in (True, "huge") and not machine.can_keep_memory():
        raise ConfigError(f"fast.keep_memory: {str(asked).lower()} needs glibc, which this system lacks; give auto")
    if asked == "huge" and not machine.can_use_huge_pages():
        raise ConfigError("fast.keep_memory: huge needs transparent huge pages, which this system lacks; give auto")


def _keep_memory() -> Literal["huge"] | bool:
    return "huge" if machine.can_use_huge_pages() else machine.can_keep_memory()


def _matmul(plan: Plan, say: Callable[[str], None]) -> Literal["default", "onednn"]:
    tokens = plan.batch.tokens_before(plan.num_steps)
    if tokens * plan.config.model.width**2 * plan.config.model.num_layers * 72 < _WORTH_A_RACE:
        return "default"
    wins, why = machine.onednn_wins(512, plan.config.model.width)
    if wins:
        say(f"fp32 matmul by oneDNN: {why} (fast.matmul default turns it off)")
    return "onednn" if wins else "default"
