"""Out of memory, told from other errors and put into words: what was being trained, what that takes, what to lower."""

from trainwell.config.tree import RunConfig
from trainwell.planning.memory import memory_line, planned_memory
from trainwell.planning.resolve import Plan

_SIGNS = ("out of memory", "DefaultCPUAllocator", "bad allocation", "not enough memory")
"""What the messages of CUDA, MPS, torch's CPU allocator on each system, and C++ have in common."""


def ran_out(error: Exception) -> bool:
    """Whether a device or this machine had no memory left; torch says so in several ways."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def advice(config: RunConfig, plan: Plan | None, error: Exception) -> str:
    """The message: batch and context, the estimate where there is a plan, and which keys to lower.

    Lowering micro_batch changes no result, so it comes first unless weights and optimizer alone are most of it.
    """
    config = config if plan is None else plan.config
    estimate = None if plan is None else planned_memory(plan)
    line = None if plan is None else memory_line(plan)
    lower = "lower --micro-batch, which changes no result, then --data.seq-len or --model.width"
    if estimate is not None and estimate.of_micro_batch < estimate.total // 2:
        lower = "most of it does not depend on the batch, so lower --model.width or --model.num-layers"
    elif config.micro_batch == 1:
        lower = "micro_batch is 1 already, so lower --data.seq-len or --model.width"
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"out of memory with micro_batch {config.micro_batch} x data.seq_len {config.data.seq_len}: {lower}."
        + (f"\nA step is estimated to take {line}." if line is not None else "")
        + f"\nWhat was said: {told}"
    )
