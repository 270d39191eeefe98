"""trainwell: the training loop for GPT-style language models in which every step has an address.

Names are imported when they are first used, so that importing the package never imports torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainwell import cli
    from trainwell.build import build, open_run
    from trainwell.data.batches import Batch, MicroBatch, from_loader
    from trainwell.evaluate import evaluate
    from trainwell.fit import fit, steps
    from trainwell.generate import generate
    from trainwell.gradients import gradient_report, largest_gradient
    from trainwell.model.loss import token_loss
    from trainwell.optim import schedule as schedules
    from trainwell.trainer import StepResult, Trainer

_HOMES = {
    "build": "build",
    "open_run": "build",
    "steps": "fit",
    "fit": "fit",
    "Trainer": "trainer",
    "StepResult": "trainer",
    "Batch": "data.batches",
    "MicroBatch": "data.batches",
    "from_loader": "data.batches",
    "token_loss": "model.loss",
    "evaluate": "evaluate",
    "generate": "generate",
    "largest_gradient": "gradients",
    "gradient_report": "gradients",
}
_MODULES = {"schedules": "optim.schedule", "cli": "cli"}

__all__ = [
    "Batch",
    "MicroBatch",
    "StepResult",
    "Trainer",
    "build",
    "cli",
    "evaluate",
    "fit",
    "from_loader",
    "generate",
    "gradient_report",
    "largest_gradient",
    "open_run",
    "schedules",
    "steps",
    "token_loss",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = import_module(f"trainwell.{_MODULES[name]}")
    elif name in _HOMES:
        found = getattr(import_module(f"trainwell.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'trainwell' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `trainwell.fit` the function: importing the module of that name would otherwise put itself in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as pickle and Ray's cloudpickle keep any module that is none of their own."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
