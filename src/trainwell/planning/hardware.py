"""GPUs by name and the links between them: memory, bandwidth and peaks as the makers' data sheets have them.

Knows figures only: no machine is looked at, and no model. Arithmetic peaks are those of `runs.throughput`.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from trainwell.errors import ConfigError
from trainwell.runs.throughput import peak_flops

Network = Literal["link", "infiniband", "ethernet"]

PER_NODE = 8
"""GPUs of a node, each with an InfiniBand port of its own; fewer GPUs are one node."""
INFINIBAND = 50e9
"""Bytes a second of a GPU's port: NDR, 400 Gb/s."""
ETHERNET = 12.5e9
"""Bytes a second of a node, whose GPUs share it: 100 Gb/s."""
LINE_SHARE = 0.8
"""Share of the rate on a data sheet that large transfers get, of memory and of links alike."""
MEMORY_SHARE = 0.9
"""Share of a GPU's memory that training may take; the rest is the driver's, NCCL's, and holes between blocks."""
_MEMORY_OFF = 0.15
"""By so much a driver's figure may be off the data sheet's: the nearest kinds of one name differ by two."""
THIS = "this"
"""The name that asks for machines like the one that the command runs on."""
MOST_GPUS = 2**20
"""GPUs up to which there is an estimate."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """As it is asked for, h100-80gb."""
    device: str
    """As `peak_flops` knows it."""
    memory: int
    """Bytes; GB of the data sheet times 10^9, of which a driver shows a little more or less."""
    bandwidth: float
    """Bytes a second between memory and chip."""
    link: float
    """Bytes a second that it can send to the others of its node, in one direction."""
    link_name: str
    """NVLink, PCIe or Infinity Fabric."""
    measured_peak: float | None = None
    """FLOP/s of a product of matrices on this very machine, where no data sheet is gone by."""
    runs_on: str = "cuda"
    """What torch calls such devices."""

    @property
    def memory_rate(self) -> float:
        """Bytes a second that large transfers between memory and chip get."""
        return LINE_SHARE * self.bandwidth

    @property
    def usable(self) -> int:
        """Bytes that training may take."""
        return int(MEMORY_SHARE * self.memory)

    def peak(self, precision: str) -> float | None:
        """Dense FLOP/s in fp32, bf16 or fp16; None where it has no such arithmetic."""
        return self.measured_peak or peak_flops(self.device, precision)

    def is_named(self, name: str, memory: int, precision: str) -> bool:
        """Whether a device is of this kind, by the name and the bytes that its driver gives."""
        known = peak_flops(name, precision)
        alike = known is not None and known == peak_flops(self.device, precision)
        return alike and self.device.split()[-1] in name and abs(memory / self.memory - 1) < _MEMORY_OFF


def _gpu(name: str, device: str, memory: int, bandwidth: int, link: int, link_name: str = "NVLink") -> Gpu:
    """Memory in GB, the rest in GB/s."""
    return Gpu(name, device, memory * 10**9, bandwidth * 1e9, link * 1e9, link_name)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200", "B200", 180, 8000, 900),
        _gpu("h200", "H200", 141, 4800, 450),
        _gpu("h100-80gb", "H100", 80, 3350, 450),
        _gpu("h100-pcie", "H100 PCIe", 80, 2000, 64, "PCIe"),
        _gpu("a100-80gb", "A100", 80, 2039, 300),
        _gpu("a100-40gb", "A100", 40, 1555, 300),
        _gpu("l40s", "L40S", 48, 864, 32, "PCIe"),
        _gpu("a10g", "A10G", 24, 600, 32, "PCIe"),
        _gpu("l4", "L4", 24, 300, 32, "PCIe"),
        _gpu("rtx4090", "RTX 4090", 24, 1008, 32, "PCIe"),
        _gpu("rtx3090", "RTX 3090", 24, 936, 32, "PCIe"),
        _gpu("v100", "V100", 16, 900, 150),
        _gpu("v100-32gb", "V100", 32, 900, 150),
        _gpu("t4", "T4", 16, 320, 16, "PCIe"),
        _gpu("mi300x", "MI300X", 192, 5300, 448, "Infinity Fabric"),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name; ConfigError with the names that are known, and the nearest of them."""
    found = GPUS.get(name.lower())
    if found is not None:
        return found
    longer = [known for known in GPUS if name and known.startswith(name.lower())]
    near = longer or get_close_matches(name.lower(), GPUS, n=1)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(
        f"--gpu {name} is not known; known are {', '.join(GPUS)}{meant}; this very machine is --gpu {THIS} --calibrate"
    )


def bandwidth(gpu: Gpu, count: int, network: Network) -> float:
    """Bytes a second at which a ring over all `count` GPUs moves what each of them sends.

    As many rings run at once as a node has ports, so that what one GPU sends leaves its node through all of them.
    """
    if count <= PER_NODE or network == "link":
        return LINE_SHARE * gpu.link
    return LINE_SHARE * min(gpu.link, _out_of_a_node(network))


def between_nodes(network: Network, gpu: Gpu) -> float:
    """Bytes a second that each GPU of a full node can send out of it while all of them do."""
    return LINE_SHARE * (gpu.link if network == "link" else min(gpu.link, _out_of_a_node(network) / PER_NODE))


def _out_of_a_node(network: Network) -> float:
    return ETHERNET if network == "ethernet" else PER_NODE * INFINIBAND


def logits_at_once(memory: int) -> int:
    """Logits that go through the loss together on a GPU of so many bytes: in 16 bits a sixteenth of them.

    A GPU is fastest with many at a time, and a CPU with what its caches hold.
    """
    return memory // 32
