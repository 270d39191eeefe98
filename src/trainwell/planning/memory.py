"""What a training step takes in memory, by part, as formulas: nothing is built or measured to know it.

Knows the configuration and a plan, and no device: what a machine has free is the business of `settings`.
"""

from dataclasses import dataclass, fields
from typing import Literal

from trainwell.config.tree import ModelConfig, RunConfig
from trainwell.planning.hardware import logits_at_once
from trainwell.planning.model_size import count_parameters, num_classes
from trainwell.planning.resolve import Plan

Precision = Literal["fp32", "bf16", "fp16"]
Kind = Literal["plain", "cuda", "compiled"]
"""What computes a step: torch's operations on a CPU; on a GPU, whose norms are fused; or there compiled as well."""

_FLOAT = 4
_LOGIT = 12
"""Bytes a logit takes at its worst: the log-probability, its gradient, and that of the logit, all in float32."""
_LOGIT_WITH_Z = 20
"""The same where the z-loss keeps the logits and their exponentials too."""
CHUNK = 2**25
"""Logits that `model.loss.head_loss` holds at a time on a CPU."""
_SOME_GPU = 80 * 10**9
"""Bytes of a GPU whose kind is not known."""
LARGE_VOCABULARY = 4096
"""Entries from which on the loss of all logits at once costs more than it is worth."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in use when the backward pass begins, which is when they are most, by what holds them."""

    parameters: int
    """The weights, float32 whatever the precision."""
    gradients: int
    """Those of the weights that are trained, float32."""
    optimizer: int
    """AdamW's two moments of each trained weight, float32; Muon has one of each hidden matrix."""
    copies: int
    """The matrices once more in 16 bits, which autocast keeps until the micro-batch is done; 0 in fp32."""
    activations: int
    """What the forward pass of one micro-batch leaves for the backward pass, up to the head.

    Where blocks are computed again, one of them is in it beside what the head holds, which is by then partly free: a
    little too much.
    """
    logits: int
    """What head and loss add to that, their own gradients included."""

    @property
    def total(self) -> int:
        """All of it; what the framework, the driver and holes between blocks add, often a gigabyte, is not in it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint on disk, and of the buffers on the host that it is written from in the background."""
        return self.parameters + self.optimizer

    @property
    def of_micro_batch(self) -> int:
        """What grows with the micro-batch; the rest does not."""
        return self.activations + self.logits


def memory(
    config: RunConfig,
    vocab_size: int,
    seq_len: int,
    micro_batch: int,
    precision: Precision,
    *,
    num_labels: int | None = None,
    kind: Kind = "plain",
    chunk: int = CHUNK,
) -> MemoryEstimate:
    """Estimate what a step takes; `vocab_size` is the padded one, `num_labels` the classes of a classifier.

    `chunk` are the logits that go through the loss at a time: of a GPU `logits_at_once`.

    Weights, gradients and moments are float32; bf16 and fp16 are autocast. Attention is assumed never to hold its T x T
    weights, as the fused kernels of GPUs (flash, memory-efficient) and of CPUs do not; a CPU does hold them where
    there is dropout. `activation_bytes` has the formula of a token.
    """
    model = config.model
    num_labels = num_labels or num_classes(config)
    count = count_parameters(model, vocab_size, seq_len, num_labels=num_labels)
    outputs = vocab_size if num_labels is None else num_labels
    head, layers, trained = outputs * model.width, model.num_layers, count.total
    if config.optim.train == "last-block":
        tied = model.tie_head and num_labels is None  # the head is the embedding, so all blocks pass gradients on
        layers = model.num_layers if tied else 1
        trained = count.block_matrices + count.block_vectors + count.final_norm + head
    hidden = (1 if config.optim.train == "last-block" else layers) * count.block_matrices
    tokens = micro_batch * seq_len
    return MemoryEstimate(
        parameters=_FLOAT * count.total,
        gradients=_FLOAT * trained,
        optimizer=_FLOAT * (2 * trained - (hidden if config.optim.name == "muon" else 0)),
        copies=0 if precision == "fp32" else 2 * (hidden + head),
        activations=tokens
        * activation_bytes(
            model,
            layers,
            precision != "fp32",
            recompute=config.recompute,
            kind=kind,
            narrow=kind != "plain" and precision == "bf16" and config.fast.residual != "fp32",
        ),
        logits=_logits(config, tokens, outputs, num_labels is not None, precision != "fp32", chunk),
    )


def in_chunks(config: RunConfig, vocab_size: int) -> bool:
    """Say whether the loss of a language model never holds all logits: where they are many and kernels are auto."""
    return config.kernels == "auto" and (vocab_size >= LARGE_VOCABULARY or config.task == "instruct")


def _logits(config: RunConfig, tokens: int, outputs: int, classifier: bool, autocast: bool, chunk: int) -> int:
    """All logits and their gradients; or what `head_loss` holds: chunks, the gradients of the head and its input.

    Logits become their gradient in place, a few rows at a time.
    """
    logits, weights, size = tokens * outputs, outputs * config.model.width, 2 if autocast else _FLOAT
    if classifier or not in_chunks(config, outputs):
        return (_LOGIT_WITH_Z if config.optim.z_loss else _LOGIT) * logits
    chunk = min(chunk, logits)
    # a chunk's logits while those before are still there as their gradient, and the head as a product lays it out
    held = size * (chunk + min(chunk, logits - chunk) + weights)
    return held + _FLOAT * (weights + tokens * config.model.width)


def activation_bytes(
    model: ModelConfig,
    num_layers: int,
    autocast: bool,
    *,
    recompute: bool = False,
    kind: Kind = "plain",
    narrow: bool = False,
) -> int:
    """Bytes of a token that the backward pass through `num_layers` blocks and the final norm needs, fused attention.

    Each operation keeps its inputs (Korthikanti et al., 2022, section 4.1). With C the width, HD and KD all heads of
    queries and of keys, M the width of the MLP, a block of gpt2 keeps what its norms, attention and MLP hand on, in the
    type of its matrix products: 2C, 4HD (queries, keys, values, their mixture) and 2M; and what enters the norms, 2C
    in float32. In 16 bits that is the paper's 34 bytes of a width, with a byte for each of its two dropout masks, and
    4 more, because the residual stream is float32 here.

    llama has 2C, or 5C under autocast, which casts a norm's output once for each matrix that reads it; 2(H + K)D, and
    HD because rotated queries give a mixture that must be laid out anew; and 4M (gate, its SiLU, up, their product).
    Its norms keep what they have divided, too, in float32, as those of queries and keys do. On CUDA they are fused and
    do not, and with the residual path in 16 bits (`narrow`) a norm's output is in 16 bits at once: 2C again. A
    `compiled` model has that one copy of a norm's output in any case, keeps what enters norms in the type of the
    residual path, and multiplies gate and up once more on the way back: 3M.

    With `recompute` a block keeps its input alone, C numbers, and all else is there of one block at a time.
    """
    width, hidden, size = model.width, model.width_of_mlp, (2 if autocast else _FLOAT)
    queries, heads = model.num_heads * model.size_of_head, (model.num_heads + model.kv_heads) * model.size_of_head
    entering = (2 if narrow else _FLOAT) * width
    norm = entering if kind == "compiled" else _FLOAT * width
    if model.arch == "gpt2":
        inner = 2 * width + 2 * heads + 2 * hidden
        inner += heads if model.qk_norm and autocast else 0  # cast copies, beside what queries and keys are cut from
    else:
        norm *= 2 if kind == "plain" else 1
        casts = 5 if autocast and not narrow and kind != "compiled" else 2
        inner = casts * width + 2 * heads + queries + (3 if kind == "compiled" else 4) * hidden
    per_block = size * inner + 2 * norm + (2 * _FLOAT * heads if model.qk_norm else 0)
    per_block += 2 * width if model.dropout else 0  # its masks
    kept = num_layers * entering + (per_block - entering) if recompute else num_layers * per_block
    return kept + norm + size * width


def planned_memory(plan: Plan, further: int = 0) -> MemoryEstimate | None:
    """The estimate for a plan and `further` sequences in its micro-batch; None when the vocabulary is not known.

    Where the configuration leaves them open, the micro-batch is one sequence, and the precision that of a GPU. In 16
    bits it is a GPU that is reckoned with.
    """
    if plan.vocab_size is None:
        return None
    size, precision = micro_batch_of(plan) + further, precision_of(plan.config)
    shape = plan.config, plan.vocab_size, plan.seq_len, size, precision
    return memory(*shape) if precision == "fp32" else memory(*shape, kind="cuda", chunk=logits_at_once(_SOME_GPU))


def saves_in_between(config: RunConfig) -> bool:
    """Whether a run saves before its end without being stopped."""
    best = config.checkpoint.best and config.eval.every is not None
    return config.checkpoint.every is not None or best


def memory_line(plan: Plan) -> str | None:
    """Write the estimate for a plan: the sum, what it assumes, its parts, largest first; None without a vocabulary."""
    estimate, larger = planned_memory(plan), planned_memory(plan, further=1)
    if estimate is None or larger is None:
        return None
    config, precision = plan.config, precision_of(plan.config)
    names = {
        "parameters": "weights",
        "optimizer": "AdamW",
        "copies": f"weights in {precision}",
        "logits": "head and loss",
    }
    if config.optim.name == "muon":
        names["optimizer"] = "Muon and AdamW"
    parts = sorted(((getattr(estimate, part.name), part.name) for part in fields(estimate)), reverse=True)
    listed = ", ".join(f"{in_bytes(size)} {names.get(name, name)}" for size, name in parts if size)
    more = (
        f", {in_bytes(larger.total - estimate.total)} for each further sequence" if config.micro_batch == "auto" else ""
    )
    buffers = (
        f"; {in_bytes(estimate.checkpoint)} on the host to save from in the background"
        if config.checkpoint.asynchronous and saves_in_between(config)
        else ""
    )
    size = micro_batch_of(plan)
    return f"{in_bytes(estimate.total)} in {precision} with micro-batches of {size}{more}: {listed}{buffers}"


def precision_of(config: RunConfig) -> Precision:
    """The precision to reckon with before a machine is known: bf16 for auto, unless plain kernels make that fp32."""
    if config.precision != "auto":
        return config.precision
    return "fp32" if config.kernels == "reference" else "bf16"


def micro_batch_of(plan: Plan) -> int:
    """The micro-batch to reckon with before a machine is known: one sequence for auto."""
    size = plan.config.micro_batch
    return 1 if size == "auto" else min(size, plan.batch.batch_size)


def in_bytes(count: int) -> str:
    """Write a size with three digits: 950 bytes, 24.1 MB, 3 GB (10^9 bytes)."""
    for suffix, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            return f"{float(f'{count / size:.3g}'):g} {suffix}"
    return f"{count} bytes"
