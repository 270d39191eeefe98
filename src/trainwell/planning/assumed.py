"""What an estimate for a cluster assumes, in sentences: every number in it that is neither the plan's nor a formula's.

Knows the estimate's own constants and says them; docs/estimates.md has where they are from.
"""

from trainwell.planning.cluster import Cluster
from trainwell.planning.hardware import ETHERNET, INFINIBAND, LINE_SHARE, MEMORY_SHARE, PER_NODE, THIS
from trainwell.planning.memory import in_bytes
from trainwell.planning.speed import Timed
from trainwell.runs.console import short_count

_KINDS = {"plain": "nothing is compiled", "cuda": "nothing is compiled", "compiled": "the model is compiled"}
_LINE = f"{100 * LINE_SHARE:.0f} %"


def assumptions(on: Cluster) -> dict[str, str]:
    """What is assumed, by what it is about."""
    return _of_a_gpu(on) | (_of_many(on) if on.count > 1 else {})


def _of_a_gpu(on: Cluster) -> dict[str, str]:
    gpu = on.gpu
    peak = f"{100 * on.share:.0f} % of {short_count(on.peak / 1e12)} TFLOP/s, "
    peak += f"what a product of matrices reaches in {on.precision}" if gpu.measured_peak else _sheet(on)
    rate = "" if on.timed else f", at {_LINE} of {in_bytes(int(gpu.bandwidth))} a second"
    return {
        **({"timed here": _timed(on, on.timed)} if on.timed else {}),
        "arithmetic": f"{peak}; other micro-batches in proportion"
        if on.timed
        else f"{peak}, for every model and GPU alike; never less time than its memory needs",
        "memory": f"{100 * MEMORY_SHARE:.0f} % of {in_bytes(gpu.memory)} may be used{rate}; weights, gradients and "
        f"moments are float32, attention is fused, {_KINDS[on.kind]}; counted when the backward pass begins",
    }


def _sheet(on: Cluster) -> str:
    return f"the dense peak in {on.precision}"


def _timed(on: Cluster, timed: Timed) -> str:
    return (
        f"steps of {timed.micro_batch} x {on.plan.seq_len:,} random tokens on {timed.device}, median of {timed.steps}: "
        f"{_seconds(timed.passes)} forward and backward, {_seconds(timed.update)} to clip and update"
    )


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _of_many(on: Cluster) -> dict[str, str]:
    gpu = on.gpu
    unknown = ", since what links machines like this one is not known" if gpu.name == THIS else ""
    links = f"{gpu.link_name} {in_bytes(int(gpu.link))} a second from each GPU{unknown}, {_LINE} of it"
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
        "ddp": "each GPU has all weights, gradients and moments",
    }
    if "fsdp" in on.ways:
        kind = "bf16" if on.precision == "bf16" else "float32"
        found["fsdp"] = (
            f"each GPU keeps a part of them; weights are gathered in {kind} block by block, and dropped after each pass"
        )
    if "hybrid" in on.ways:
        here = "here" if on.offers("hybrid") else "where a part takes up to half a GPU's memory, and fsdp here"
        found["hybrid"] = f"parts within a node of {PER_NODE}, copies across: what --parallel fsdp does {here}"
    return found
