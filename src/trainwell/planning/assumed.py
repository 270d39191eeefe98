"""What an estimate for a cluster assumes, in sentences: every number in it that is neither the plan's nor a formula's.

Knows the estimate's own constants and says them; docs/estimates.md has where they are from.
"""

from trainwell.planning.cluster import Cluster
from trainwell.planning.hardware import ETHERNET, INFINIBAND, LINE_SHARE, MEMORY_SHARE, PER_NODE
from trainwell.planning.memory import in_bytes
from trainwell.planning.speed import UTILISATION
from trainwell.runs.console import short_count

_LINE = f"{100 * LINE_SHARE:.0f} %"


def assumptions(on: Cluster) -> dict[str, str]:
    """What is assumed, by what it is about."""
    return _of_a_gpu(on) | (_of_many(on) if on.count > 1 else {})


def _of_a_gpu(on: Cluster) -> dict[str, str]:
    gpu = on.gpu
    return {
        "arithmetic": f"{100 * UTILISATION:.0f} % of {short_count(on.peak / 1e12)} TFLOP/s, the dense peak in "
        f"{on.precision}, for every model and GPU alike; never less time than its memory needs",
        "memory": f"{100 * MEMORY_SHARE:.0f} % of {in_bytes(gpu.memory)} may be used, at {_LINE} of "
        f"{in_bytes(int(gpu.bandwidth))} a second; weights, gradients and moments are float32, attention is fused; "
        "counted when the backward pass begins",
    }


def _of_many(on: Cluster) -> dict[str, str]:
    gpu = on.gpu
    links = f"{gpu.link_name} {in_bytes(int(gpu.link))} a second from each GPU, {_LINE} of it"
    if on.count > PER_NODE:
        links += (
            f"; out of a node of {PER_NODE}, InfiniBand {in_bytes(int(INFINIBAND))} from each GPU or Ethernet "
            f"{in_bytes(int(ETHERNET))} from all, {_LINE} too; times are with InfiniBand"
        )
    found = {
        "links": links,
        "bytes": "those of rings, gradients in float32 once a step; no numbers for losses and norms, no latency",
        "overlap": "weights travel while their half of a micro-batch is computed, gradients during the last backward "
        "pass; what takes longer is waited for",
    }
    if "fsdp" in on.ways:
        kind = "bf16" if on.precision == "bf16" else "float32"
        found["fsdp"] = f"blocks and root, gathered in {kind}; blocks dropped after each pass, the root kept in between"
    if "hybrid" in on.ways:
        found["hybrid"] = f"shards within a node of {PER_NODE}, copies across; this version does not train so yet"
    return found
