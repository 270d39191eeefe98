"""What `auto` comes to on this machine: decided once, printed, written to env.json and used again on resume.

Knows torch and the machine; decides and reports, trains nothing.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from trainwell import machine
from trainwell.compiling import ON_CUDA, worth_compiling
from trainwell.config.tree import RunConfig
from trainwell.distributed.parallel import How
from trainwell.distributed.world import ALONE, World
from trainwell.errors import ConfigError, StorageError
from trainwell.kernels import Kernels, choose
from trainwell.planning.hardware import logits_at_once
from trainwell.planning.memory import MemoryEstimate, Precision, memory
from trainwell.planning.model_size import flops_per_token, num_classes
from trainwell.planning.resolve import Plan
from trainwell.planning.speed import UTILISATION
from trainwell.runs.rundir import RunDir, is_run
from trainwell.runs.throughput import peak_flops
from trainwell.version import version_of

Compile = bool | Literal["blocks", "max-autotune"]

_COMPILED: dict[Compile, str] = {
    False: "eager",
    True: "compiled",
    "blocks": "compiled by blocks",
    "max-autotune": "compiled, tuned",
}
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_PLENTY = 2**32
"""Bytes, of which a CPU's micro-batch may take half."""
_SOME_GPU = 1e14
"""FLOP/s in 16 bits of a GPU that is not in the tables."""


@dataclass(frozen=True)
class Settings:
    """Every choice that `auto` leaves open, made."""

    device: str
    """cpu, cuda or mps."""
    device_name: str
    """The chip's own name."""
    precision: Precision
    """Arithmetic of the forward pass."""
    compile: Compile
    """Whether, or how, the model goes through torch.compile."""
    kernels: Literal["auto", "reference"]
    """Fused optimizer with folded clipping, and `fast`; or plain operations."""
    micro_batch: int
    """Sequences per forward pass."""
    threads: int
    """Threads of CPU operations; sums depend on it in the last bits."""
    matmul_precision: str
    """torch.get_float32_matmul_precision()."""
    deterministic: bool
    """Whether only deterministic algorithms are used; always on a CPU."""
    fast: Kernels = field(default_factory=Kernels)
    """What computes matrix products, attention and dropout."""
    dropout: bool = False
    """Whether the model has any."""
    world_size: int = 1
    """Ranks that share a step."""
    parallel: How = "none"
    """How they share it."""

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that the forward pass is cast to; None for float32."""
        return _DTYPES[self.precision]

    @property
    def fused(self) -> bool:
        """Whether AdamW's fused form is used: wherever the device has one."""
        return self.kernels == "auto" and self.device in {"cpu", "cuda", "mps"}

    def line(self) -> str:
        """The choices in one line."""
        optimizer = "fused optimizer" if self.fused else "plain optimizer"
        compiled = _COMPILED[self.compile]
        words = [
            *([f"{self.world_size} ranks, {self.parallel}"] if self.parallel != "none" else []),
            f"{self.device} ({self.device_name})",
            self.precision,
            compiled,
            optimizer,
            *self.fast.words(dropout=self.dropout),
            f"micro-batch {self.micro_batch}",
            *([self._threads()] if self.device == "cpu" else []),
        ]
        return ", ".join(words)

    def _threads(self) -> str:
        return f"{self.threads} threads" if self.world_size == 1 else f"{self.threads} threads each"


def decide_together(
    config: RunConfig, plan: Plan, run_dir: RunDir, world: World, *, own_model: bool, say: Callable[[str], None]
) -> Settings:
    """`decide` on rank 0, whose choices are then everybody's: races between kernels have one winner.

    Raises ConfigError, StorageError on all ranks alike.
    """
    made = list[Settings]()

    def first() -> dict[str, Any]:
        made.append(decide(config, plan, recorded_settings(run_dir), say, world, own_model=own_model))
        return asdict(made[0])

    chosen = world.from_main(first)
    return world.together(
        lambda: made[0] if made else decide(config, plan, chosen, lambda line: None, world, own_model=own_model)
    )


def decide(
    config: RunConfig,
    plan: Plan,
    recorded: dict[str, Any] | None,
    say: Callable[[str], None],
    world: World = ALONE,
    *,
    own_model: bool = True,
) -> Settings:
    """Make every open choice, as the run made it before where it is `recorded`; `say` hears what cannot be kept."""
    before = recorded or {}
    device = _device(config, before, say)
    precision = _precision(config, device, before, say)
    parallel = _parallel(config, plan, device, precision, world, own_model, before, say)
    threads = threads_of_rank(world)
    if before.get("world_size", 1) == world.size:
        threads = before.get("threads", threads)
    if threads > (os.cpu_count() or threads):
        say(
            f"this machine has fewer than the {threads} threads the run used: "
            "the next steps are no longer bitwise the same"
        )
        threads = threads_of_rank(world)
    torch.set_num_threads(threads)
    if config.deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS adds up in one order only with this
    name = _device_name(device)
    if recorded and before["device_name"] != name:
        say(
            f"the run was on {before['device_name']} and continues on {name}: "
            "the next steps are no longer bitwise the same"
        )
    compiled = _compile(config, plan, device, parallel, own_model, before)
    same = before and tuple(map(before.get, ("device", "precision", "compile", "kernels"))) == (
        device,
        precision,
        compiled,
        config.kernels,
    )
    recorded_kernels = before.get("fast", asdict(Kernels())) if same else {}
    kernels = choose(config, plan, device, precision, bool(compiled), recorded_kernels, say)
    kernels.use_in_process()
    micro_batch = _micro_batch(config, plan, device, precision, world, own_model, before.get("micro_batch"))
    working = -(-plan.batch.batch_size // micro_batch)
    if working < world.size:
        say(
            f"only {working} of the {world.size} ranks have work in a step, a batch of {plan.batch.batch_size} cut at "
            f"micro-batches of {micro_batch}: a smaller micro_batch gives all of them some"
        )
    return Settings(
        device=device,
        device_name=name,
        precision=precision,
        compile=compiled,
        kernels=config.kernels,
        micro_batch=micro_batch,
        threads=threads,
        matmul_precision=torch.get_float32_matmul_precision(),
        deterministic=device == "cpu" or config.deterministic,
        fast=kernels,
        dropout=config.model.dropout > 0,
        world_size=world.size,
        parallel=parallel,
    )


def recorded_settings(run_dir: RunDir) -> dict[str, Any] | None:
    """The choices an existing run was made with; None for a run that does not exist yet, or was killed being made."""
    if not is_run(run_dir.path):
        return None
    try:
        return json.loads(run_dir.env_json.read_text(encoding="utf-8"))["settings"]  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{run_dir.env_json} cannot be read ({error}); restore it, or start anew with --run OTHER"
        ) from error


def environment(settings: Settings) -> dict[str, Any]:
    """What env.json says of the software, the machine and the choices."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "command": sys.argv,
        "settings": asdict(settings),
    }


def versions() -> dict[str, str]:
    """The versions of everything that decides bits."""
    packages = ("trainwell", "torch", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: version_of(name) for name in packages}


def _device(config: RunConfig, before: dict[str, Any], say: Callable[[str], None]) -> str:
    usable = [
        name
        for name, ready in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        if ready
    ]
    usable.append("cpu")
    if config.device != "auto":
        if config.device not in usable:
            raise ConfigError(
                f"device: {config.device} is not to be had on this machine; allowed here are auto, {', '.join(usable)}"
            )
        return config.device
    wanted = before.get("device", usable[0])
    if wanted not in usable:
        say(
            f"the run was on {wanted}, which this machine does not have: it continues on {usable[0]}, "
            "no longer bitwise the same"
        )
        return usable[0]
    return str(wanted)


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return (
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}" if device == "cpu" else platform.processor()
    )


def _precision(config: RunConfig, device: str, before: dict[str, Any], say: Callable[[str], None]) -> Precision:
    if config.precision == "fp16" and device == "cpu":
        raise ConfigError("precision: fp16 is not for training on a CPU, which device auto comes to; give fp32 or bf16")
    if config.precision == "bf16" and device == "cpu" and not machine.native_bf16():
        raise ConfigError(
            "precision: bf16 would be emulated on this CPU, which has none of its own, and be slower than fp32; give "
            "fp32, or auto"
        )
    if config.precision != "auto":
        return config.precision
    if before.get("precision") == "fp16" and device == "cpu":
        say("the run computed in fp16, which is not for training on a CPU: it continues in fp32, not bitwise the same")
        return "fp32"
    if "precision" in before:
        return before["precision"]  # type: ignore[no-any-return]
    if config.kernels == "reference":
        return "fp32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device == "cpu" and machine.native_bf16() else "fp32"


def threads_of_rank(world: World) -> int:
    """Threads of this process: torch's choice; among several the cores of the machine shared out, if that is fewer.

    OMP_NUM_THREADS, where it is set, says how many a process has.
    """
    if world.size == 1 or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    return min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // here))


def _parallel(
    config: RunConfig,
    plan: Plan,
    device: str,
    precision: Precision,
    world: World,
    own_model: bool,
    before: dict[str, Any],
    say: Callable[[str], None],
) -> How:
    """How the ranks share a step: as configured, as `before` on as many; else ddp, and fsdp where a GPU has no room."""
    if world.size == 1:
        if config.parallel in {"ddp", "fsdp"}:
            say(f"parallel: {config.parallel} is for several processes, and this is one: it trains as with none")
        return "none"
    if config.parallel == "none":
        raise ConfigError(
            f"parallel: none, and {world.size} processes were started, each of which would train the same run; give "
            "ddp, fsdp or auto, or start one"
        )
    if config.parallel != "auto":
        return config.parallel
    if before.get("world_size") == world.size and before.get("parallel") in {"ddp", "fsdp"}:
        return before["parallel"]  # type: ignore[no-any-return]
    if device != "cuda" or not own_model:
        return "ddp"
    needed = _memory(config, plan, device, precision, 1).total
    return "ddp" if needed <= torch.cuda.mem_get_info()[0] else "fsdp"


def _memory(config: RunConfig, plan: Plan, device: str, precision: Precision, size: int) -> MemoryEstimate:
    """What micro-batches of `size` take here, compiled or not: eager ones take more."""
    shape = config, plan.vocab_size or 50304, plan.seq_len, size, precision
    if device != "cuda":
        return memory(*shape)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return memory(*shape, kind="cuda", chunk=logits_at_once(total))


def _compile(
    config: RunConfig, plan: Plan, device: str, parallel: How, own_model: bool, before: dict[str, Any]
) -> Compile:
    if config.kernels == "reference":
        return False
    if config.compile == "max-autotune" and device != "cuda":
        raise ConfigError(
            f"compile: max-autotune races kernels of cuda, and this run is on {device}; give true, blocks or auto"
        )
    sharded = parallel == "fsdp"  # weights are gathered between blocks, which is no part of a graph
    if sharded and (config.compile in {True, "max-autotune"} or (config.compile == "blocks" and not own_model)):
        allowed = "blocks, false or auto" if own_model else "false or auto"
        raise ConfigError(
            f"compile: {config.compile} does not go with parallel fsdp; give compile {allowed}, or parallel ddp"
        )
    if config.compile != "auto":
        return config.compile
    if sharded and not own_model:
        return False
    if "compile" in before and sharded == (before.get("parallel") == "fsdp"):
        return before["compile"]  # type: ignore[no-any-return]
    return _pays(config, plan, device) and ("blocks" if sharded else True)


def _pays(config: RunConfig, plan: Plan, device: str) -> bool:
    """Whether a run is long enough to compile for; on a CPU compiling gains nothing over our own kernels."""
    if device != "cuda" or plan.vocab_size is None:
        return False
    peak = peak_flops(torch.cuda.get_device_name(), "bf16") or _SOME_GPU
    tokens = plan.batch.tokens_before(plan.num_steps) / max(plan.num_steps, 1)
    flops = flops_per_token(config.model, plan.vocab_size, plan.seq_len, num_labels=num_classes(config))
    return worth_compiling(plan.num_steps, tokens * flops / (UTILISATION * peak), ON_CUDA.gain, ON_CUDA.seconds)


def _micro_batch(
    config: RunConfig,
    plan: Plan,
    device: str,
    precision: Precision,
    world: World,
    own_model: bool,
    before: int | None,
) -> int:
    """The configured one; the one of `before`; or an estimate; of several ranks no more than leaves work for each.

    The estimate is the whole share of a rank, or the largest power of two that fits half of the memory. With dropout,
    which a given model may have too, what is configured stays as it is: the masks depend on it.
    """
    whole = max(plan.batch.batch_size, 1)
    largest = -(-whole // world.size)
    asked = before if config.micro_batch == "auto" else config.micro_batch
    if asked is not None:
        return min(asked, whole if config.model.dropout or not own_model else largest)

    def estimate(size: int) -> MemoryEstimate:
        return _memory(config, plan, device, precision, size)

    one = estimate(1)
    # on a CPU a few gigabytes are plenty: a larger micro-batch gains nothing there
    free = torch.cuda.mem_get_info()[0] - one.total + one.of_micro_batch if device == "cuda" else _PLENTY
    size = 1
    while size < largest and estimate(min(2 * size, largest)).of_micro_batch <= free // 2:
        size *= 2
    return min(size, largest)
