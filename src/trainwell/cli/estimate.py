"""`trainwell show TARGET --gpus N --gpu NAME`: what a plan would take on many GPUs. Only --calibrate imports torch."""

from dataclasses import asdict
from typing import Any, NamedTuple, get_args

from trainwell.cli.output import print_json, print_rich
from trainwell.errors import ConfigError
from trainwell.planning.assumed import assumptions
from trainwell.planning.cluster import Cluster, advised, cluster, compare, hoffmann_flops, parts
from trainwell.planning.hardware import GPUS, THIS, gpu_named
from trainwell.planning.resolve import Plan
from trainwell.planning.sharding import Parallel


class Asked(NamedTuple):
    """What was asked for on the command line."""

    gpus: int | None
    gpu: str | None
    parallel: object = None
    """As it was typed, which may be no way at all."""
    calibrate: bool = False
    """Whether steps are timed here first."""

    @property
    def anything(self) -> bool:
        """Whether an estimate is wanted at all."""
        return self.gpus is not None or self.gpu is not None or self.calibrate


def refuse_unless_known(asked: Asked) -> None:
    """Raise ConfigError for what no plan could be estimated with, before one is made."""
    if asked.gpu is None:
        typed = "--calibrate for" if asked.gpus is None else f"--gpus {asked.gpus} of"
        raise ConfigError(f"{typed} which kind? give --gpu NAME; known are {', '.join(GPUS)}")
    if asked.gpu != THIS:
        gpu_named(asked.gpu)
    elif not asked.calibrate:
        raise ConfigError(f"--gpu {THIS} is this machine, of which only timing tells anything; add --calibrate")
    _way_named(asked.parallel)


def show_estimate(plan: Plan, name: str, asked: Asked, json: bool) -> None:
    """Print what `plan` would take; one GPU where their number was not given."""
    refuse_unless_known(asked)
    count = 1 if asked.gpus is None else asked.gpus
    if asked.calibrate:
        from trainwell.calibration import calibrated  # here, because it brings torch

        on = calibrated(plan, asked.gpu or "", count)
    else:
        on = cluster(plan, gpu_named(asked.gpu or ""), count)
    only = _way_named(asked.parallel)
    if json:
        print_json(_facts(on, only))
        return
    from trainwell.report.cluster import show_cluster

    print_rich(show_cluster(on, compare(on, only), name))


def _way_named(typed: object) -> Parallel | None:
    if typed in {None, "auto"}:
        return None
    for way in get_args(Parallel):
        if typed == way:
            return way  # type: ignore[no-any-return]
    raise ConfigError(f"--parallel {typed} is no way to share a step; give {', '.join(get_args(Parallel))} or auto")


def _facts(on: Cluster, only: Parallel | None) -> dict[str, Any]:
    plan, ways = on.plan, compare(on, only)
    tokens, best = plan.batch.tokens_before(plan.num_steps), advised(ways)
    step = plan.batch.batch_size * plan.seq_len
    return {
        "name": plan.config.name,
        "gpus": on.count,
        "gpu": asdict(on.gpu) | {"usable": on.gpu.usable, "peak_flops": on.peak},
        "precision": on.precision,
        "parameters": parts(on),
        "tokens_per_step": step,
        "num_steps": plan.num_steps,
        "tokens": tokens,
        "flops": {
            "step": on.flops * step,
            "run": on.flops * tokens,
            "step_hoffmann": hoffmann_flops(on) * step,
            "run_hoffmann": hoffmann_flops(on) * tokens,
        },
        "checkpoint_bytes": on.estimate(1).checkpoint,
        "ways": [
            asdict(way) | {"fits": way.fits, "memory": asdict(way.memory) | {"total": way.memory.total}} for way in ways
        ],
        "timed": None if on.timed is None else asdict(on.timed) | {"share_of_peak": on.share},
        "advised": None if best is None else best.parallel,
        "assumed": assumptions(on),
    }
