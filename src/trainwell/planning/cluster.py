"""What a plan takes on many GPUs: memory of each, time of a step, bytes it sends. Closed formulas; nothing is built.

Knows a plan and figures of data sheets. docs/estimates.md has the formulas in words, and how far they are off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError
from trainwell.planning.hardware import MOST_GPUS, PER_NODE, Gpu, Network, bandwidth, between_nodes, logits_at_once
from trainwell.planning.memory import CHUNK, Kind, MemoryEstimate, Precision, memory, precision_of
from trainwell.planning.model_size import count_parameters, flops_per_token, num_classes
from trainwell.planning.resolve import Plan
from trainwell.planning.sharding import Layout, Parallel, Traffic, has_copies, layout, padded, traffic
from trainwell.planning.speed import SMALLEST, UTILISATION, Timed

NETWORKS: tuple[Network, ...] = ("link", "infiniband", "ethernet")
_FLOAT = 4
_UPDATE = 32
"""Bytes that clip and AdamW move for a weight: its gradient twice, it and two moments read and written, in float32."""
_MOST_SEQUENCES = 4096
"""Micro-batches up to which is looked."""
_LOOKS = 64
"""Steps of a climbing batch whose mean time is taken for all of them."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the fullest GPU, rank 0, by what holds them."""

    parameters: int
    gradients: int
    """Shards, and over a step of several micro-batches all of them as well, until they travel."""
    optimizer: int
    copies: int
    """The matrices in 16 bits, which autocast keeps; fsdp gathers in bf16 and has none."""
    gathered: int
    """Of fsdp: the root and two blocks whole, the gradients of one block, and the same in float32 to be reduced."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        kept = self.parameters + self.gradients + self.optimizer + self.copies
        return kept + self.gathered + self.activations + self.logits


@dataclass(frozen=True)
class Timing:
    """Seconds of a step with the full batch, and of the run."""

    step: float
    computing: float
    """Of the step, the arithmetic of its micro-batches."""
    waiting: float
    """Of the step, for bytes on their way that no arithmetic hides."""
    update: float
    """Of the step, clipping and AdamW."""
    run: float
    """All steps; evaluations, samples and checkpoints come on top."""
    tokens_per_second: float
    """Of all GPUs."""


@dataclass(frozen=True)
class Way:
    """The plan under one way to share the work."""

    parallel: Parallel
    offered: bool
    """Whether trainwell shares so here: on several nodes `--parallel fsdp` is either fsdp or hybrid."""
    micro_batch: int
    """Sequences at a time: as configured where they fit, else the most that do, else those nearest to fitting."""
    largest: int | None
    """The largest micro-batch that fits; None where none does."""
    rounds: int
    """Micro-batches of each GPU in a step."""
    busy: float
    """Share of those micro-batches that hold sequences; the others are fillers, which keep all GPUs in step."""
    memory: DeviceMemory
    sent: Traffic
    sent_bytes: int
    """Sent by a GPU in a step."""
    seconds: dict[Network, float]
    """Those bytes on each network, hidden or not."""
    timing: dict[Network, Timing] | None
    """By the network between nodes; None where nothing was timed and the model is too small to keep a GPU busy."""

    @property
    def fits(self) -> bool:
        """Whether `micro_batch` does."""
        return self.largest is not None


@dataclass(frozen=True)
class Cluster:
    """A plan with a known vocabulary on `count` GPUs of one kind."""

    plan: Plan
    gpu: Gpu
    count: int
    timed: Timed | None = None
    """What steps really took; without it `UTILISATION` is assumed."""

    @property
    def config(self) -> RunConfig:
        """That of the plan."""
        return self.plan.config

    @property
    def vocab_size(self) -> int:
        """Entries of the embedding."""
        if self.plan.vocab_size is None:
            raise ConfigError(
                "the vocabulary is not known before the text is read; give --data.path, or model.pad_vocab_to"
            )
        return self.plan.vocab_size

    @property
    def precision(self) -> Precision:
        """That of the configuration; for auto bf16, or fp16 where the GPU has no bf16."""
        wanted = precision_of(self.config)
        lacking = self.config.precision == "auto" and wanted == "bf16" and self.gpu.peak("bf16") is None
        return "fp16" if lacking else wanted

    @cached_property
    def layout(self) -> Layout:
        """The tensors of the model."""
        return layout(self.config.model, self.vocab_size, self.plan.seq_len, num_classes(self.config))

    @property
    def flops(self) -> int:
        """FLOPs to train on one token: 6 N + 12 L H D T."""
        return flops_per_token(
            self.config.model, self.vocab_size, self.plan.seq_len, num_labels=num_classes(self.config)
        )

    @property
    def peak(self) -> float:
        """Dense FLOP/s of a GPU in the precision of the run; ConfigError where it has none."""
        peak = self.gpu.peak(self.precision)
        if peak is None:
            raise ConfigError(
                f"--precision {self.precision}: {self.gpu.name} has no such arithmetic; give auto or fp16"
            )
        return peak

    @property
    def share(self) -> float:
        """Of that peak, what a micro-batch reaches: as it was timed, else `UTILISATION`."""
        if self.timed is None:
            return UTILISATION
        return self.flops * self.timed.micro_batch * self.plan.seq_len / (self.timed.passes * self.peak)

    @property
    def kind(self) -> Kind:
        """What computes a step; `compile: auto` is taken to compile, as it does for runs that are long enough."""
        if self.gpu.runs_on != "cuda":
            return "plain"
        return "compiled" if self.config.compile is not False and self.config.kernels == "auto" else "cuda"

    def estimate(self, micro_batch: int) -> MemoryEstimate:
        """What one GPU alone would need."""
        labels = num_classes(self.config)
        return memory(
            self.config,
            self.vocab_size,
            self.plan.seq_len,
            micro_batch,
            self.precision,
            num_labels=labels,
            kind=self.kind,
            chunk=logits_at_once(self.gpu.memory) if self.gpu.runs_on == "cuda" else CHUNK,
        )

    @property
    def ways(self) -> tuple[Parallel, ...]:
        """What is worth comparing: ddp, with several GPUs fsdp, with several whole nodes hybrid.

        Weights are sharded only where all of them learn, by AdamW: Muon turns whole matrices.
        """
        if self.count == 1 or self.config.optim.name == "muon" or self.config.optim.train != "all":
            return ("ddp",)
        many: tuple[Parallel, ...] = ("ddp", "fsdp", "hybrid")
        return many if self.count > PER_NODE and self.count % PER_NODE == 0 else many[:2]

    def offers(self, how: Parallel) -> bool:
        """Whether trainwell shares so here: copies on several nodes where a GPU has room for its part of one."""
        copies = "hybrid" in self.ways and has_copies(self.layout.total, PER_NODE, self.gpu.memory)
        return how == "ddp" or (how == "hybrid") == copies


def cluster(plan: Plan, gpu: Gpu, count: int) -> Cluster:
    """A plan on `count` GPUs; ConfigError where the number, the vocabulary or the arithmetic is not to be had."""
    if not 1 <= count <= MOST_GPUS:
        raise ConfigError(f"--gpus {count} is no number of GPUs; give 1 to {MOST_GPUS:,}")
    found = Cluster(plan, gpu, count)
    _ = found.vocab_size, found.peak
    return found


def compare(on: Cluster, only: Parallel | None = None) -> list[Way]:
    """Each way to share the work, or one of them; ConfigError for one that is not to be had."""
    if only is not None and only not in on.ways:
        raise ConfigError(
            f"--parallel {only} is not for this: fsdp needs several GPUs, hybrid several full nodes of {PER_NODE}, and "
            f"both AdamW and optim.train all; with --gpus {on.count} there is {', '.join(on.ways)}"
        )
    return [_way(on, how) for how in ((only,) if only else on.ways)]


def advised(ways: Sequence[Way]) -> Way | None:
    """The first that fits and is offered, ddp before the others: the simplest; None where none does."""
    return next((way for way in ways if way.fits and way.offered), None)


def with_recompute(on: Cluster) -> list[Way]:
    """The ways that fit where blocks are computed again; none where they are already."""
    config = on.config
    if config.recompute:
        return []
    again = replace(on.plan, config=config.model_copy(update={"recompute": True}))
    return [way for way in compare(replace(on, plan=again)) if way.fits and way.offered]


def hoffmann_flops(on: Cluster) -> int:
    """FLOPs of a token, forward and backward, as Hoffmann et al. (2022), appendix F, count: three times the forward's.

    Embedding 2VC; in each layer 2C(H + 2K)D for queries, keys and values, 2HDT for their products, 3HT for the softmax,
    2HDT for the mixture, 2HDC for the projection, 2CM for each matrix of the MLP; and 2VC for the logits. There are
    H heads of queries, K of keys, of size D; the paper's own models have K = H and two matrices of 4C.
    """
    model, length = on.config.model, on.plan.seq_len
    queries, keys = model.num_heads * model.size_of_head, model.kv_heads * model.size_of_head
    matrices = 2 if model.arch == "gpt2" else 3
    layer = 2 * model.width * (queries + 2 * keys) + 4 * queries * length + 3 * model.num_heads * length
    layer += 2 * queries * model.width + 2 * matrices * model.width * model.width_of_mlp
    outputs = num_classes(on.config) or on.vocab_size
    return 3 * (2 * (on.vocab_size + outputs) * model.width + model.num_layers * layer)


def rounds_of(batch_size: int, micro_batch: int, count: int) -> int:
    """Micro-batches of each GPU: a batch is cut into whole ones, which the GPUs take in turn."""
    micro_batches = -(-batch_size // micro_batch)
    return -(-micro_batches // count)


def device_memory(on: Cluster, how: Parallel, micro_batch: int) -> DeviceMemory:
    """Bytes on rank 0, which has the most rows, when the backward pass begins."""
    whole = on.estimate(micro_batch)
    if how == "ddp":
        return DeviceMemory(
            whole.parameters, whole.gradients, whole.optimizer, whole.copies, 0, whole.activations, whole.logits
        )
    shards, size = _shards(on, how), _weight_size(on)
    mine = _FLOAT * on.layout.padded(shards)
    several = rounds_of(on.plan.batch.batch_size, micro_batch, on.count) > 1
    block, root = padded(on.layout.block, shards) * shards, padded(on.layout.root, shards) * shards
    return DeviceMemory(
        parameters=mine,
        gradients=mine + (whole.gradients if several else 0),
        optimizer=2 * mine,
        copies=whole.copies if on.precision == "fp16" else 0,
        gathered=size * (root + 2 * block) + (size + _FLOAT) * block,
        activations=whole.activations,
        logits=whole.logits,
    )


def _way(on: Cluster, how: Parallel) -> Way:
    most = min(-(-on.plan.batch.batch_size // on.count), _MOST_SEQUENCES)
    totals = {size: device_memory(on, how, size).total for size in range(1, most + 1)}
    fitting = [size for size, total in totals.items() if total <= on.gpu.usable]
    size = _chosen(on, fitting) if fitting else min(totals, key=lambda size: totals[size])
    rounds = rounds_of(on.plan.batch.batch_size, size, on.count)
    trained = on.estimate(1).gradients // _FLOAT
    sent = traffic(on.layout, how, on.count, PER_NODE, _weight_size(on), trained)
    busy = -(-on.plan.batch.batch_size // size) / (rounds * on.count)
    networks = NETWORKS if on.count > PER_NODE else NETWORKS[:1]
    return Way(
        parallel=how,
        offered=on.offers(how),
        micro_batch=size,
        largest=max(fitting, default=None),
        rounds=rounds,
        busy=busy,
        memory=device_memory(on, how, size),
        sent=sent,
        sent_bytes=sent.total(rounds),
        seconds={network: _on_the_way(on, how, sent, network).total(rounds) for network in networks},
        timing={network: _timing(on, how, size, sent, network) for network in networks}
        if on.timed or on.layout.total >= SMALLEST
        else None,
    )


def _chosen(on: Cluster, fitting: Sequence[int]) -> int:
    """The configured micro-batch, the most below it that fit, or for auto the most that do."""
    wanted = on.config.micro_batch
    below = [size for size in fitting if wanted == "auto" or size <= wanted]
    return max(below or fitting)


@dataclass(frozen=True)
class _Seconds:
    """A `Traffic` in seconds."""

    forward: float
    backward: float
    once: float

    def total(self, micro_batches: int) -> float:
        return micro_batches * (self.forward + self.backward) + self.once


def _on_the_way(on: Cluster, how: Parallel, sent: Traffic, network: Network) -> _Seconds:
    """Hybrid gathers and scatters inside a node, then adds up across nodes; the others have one ring of all GPUs."""
    inside = bandwidth(on.gpu, PER_NODE if how == "hybrid" else on.count, network)
    across = between_nodes(network, on.gpu) if how == "hybrid" else inside
    once = sent.reduced / inside + sent.all_reduced / across
    return _Seconds(sent.gathered_forward / inside, sent.gathered_backward / inside, once)


def _timing(on: Cluster, how: Parallel, micro_batch: int, sent: Traffic, network: Network) -> Timing:
    wire = _on_the_way(on, how, sent, network)
    forward, backward = _arithmetic(on, micro_batch)
    mine = on.layout.total if how == "ddp" else on.layout.padded(_shards(on, how))
    update = on.timed.update * mine / on.layout.total if on.timed else _UPDATE * mine / on.gpu.memory_rate
    usual = max(forward, wire.forward) + max(backward, wire.backward)
    last = max(forward, wire.forward) + max(backward, wire.backward + wire.once)

    def step(batch_size: int) -> float:
        return (rounds_of(batch_size, micro_batch, on.count) - 1) * usual + last + update

    batch = on.plan.batch
    full, climb = step(batch.batch_size), min(batch.ramp_steps, on.plan.num_steps)
    looks = [climb * (2 * look + 1) // (2 * _LOOKS) for look in range(_LOOKS)] if climb else []
    climbing = climb * sum(step(batch.size(look)) for look in looks) / _LOOKS
    computing = rounds_of(batch.batch_size, micro_batch, on.count) * (forward + backward)
    return Timing(
        step=full,
        computing=computing,
        waiting=max(0.0, full - computing - update),
        update=update,
        run=(on.plan.num_steps - climb) * full + climbing,
        tokens_per_second=batch.batch_size * on.plan.seq_len / full,
    )


def _arithmetic(on: Cluster, micro_batch: int) -> tuple[float, float]:
    """Seconds of a micro-batch forward and backward: the longer of its arithmetic and of what it moves in memory.

    The backward pass has twice the arithmetic, and three times where blocks are computed again. Where both were timed
    together they are that, in proportion to the sequences.
    """
    if on.timed:
        both = on.timed.passes * micro_batch / on.timed.micro_batch
        forward = both / (4 if on.config.recompute else 3)
        return forward, both - forward
    count = micro_batch * on.plan.seq_len
    estimate = on.estimate(micro_batch)
    forward = on.flops * count / 3 / (UTILISATION * on.peak)
    moved = (_weight_size(on) * on.layout.total + estimate.of_micro_batch) / on.gpu.memory_rate
    forward = max(forward, moved)
    return forward, (3 if on.config.recompute else 2) * forward


def _shards(on: Cluster, how: Parallel) -> int:
    return PER_NODE if how == "hybrid" else on.count


def _weight_size(on: Cluster) -> int:
    """Bytes of a weight as fsdp gathers it: in bf16 where the run is, else in float32."""
    return 2 if on.precision == "bf16" else _FLOAT


def parts(on: Cluster) -> dict[str, int]:
    """Parameters by part."""
    model, labels = on.config.model, num_classes(on.config)
    count = count_parameters(model, on.vocab_size, on.plan.seq_len, num_labels=labels)
    return {
        "total": count.total,
        "token_embedding": on.vocab_size * model.width,
        "position_embedding": count.position,
        "blocks": model.num_layers * (count.block_matrices + count.block_vectors),
        "block_matrices": count.block_matrices,
        "block_vectors": count.block_vectors,
        "final_norm": count.final_norm,
        "head": count.head,
    }
