"""The proof that two ranks equal one: two processes share the micro-batches of a step and add up what they found.

The addition is made here, in the plainest way, so that it holds of any loop, one that knows nothing of ranks included.
What is proved is the division of labour: which micro-batches a rank takes, that indices and dropout do not depend on
their number, and that the sum, divided by the number of targets of all ranks, is the gradient of the batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, distributed

from trainwell.data.batches import MicroBatch, Stream, cut
from trainwell.data.examples import IGNORED
from trainwell.data.order import seed_for
from trainwell.distributed.local import CannotSendError, run_distributed
from trainwell.fit import deterministic
from trainwell.model.loss import with_parts
from trainwell.prove.rounding import TOLERANCE, Gap, gradient_gap, gradients_of, uneven
from trainwell.prove.small import changed
from trainwell.prove.trace import names_of_parameters, relative
from trainwell.prove.twins import Twins
from trainwell.prove.verdict import Outcome, skip
from trainwell.run import Run

RANKS = 2
_STEPS = 3
_ELSEWHERE = 4
_TIMEOUT_S = 300.0


def two_ranks(twins: Twins) -> Outcome:
    """Two processes on gloo, each with its micro-batches, come to the loss, gradients and weights of one."""
    rows = min(twins.settings.micro_batch * 2, twins.plan.batch.batch_size)
    rows = rows if twins.settings.device == "cpu" else min(rows, _ELSEWHERE)
    size = uneven(rows)
    if size is None or isinstance(twins.given.data, Stream):
        return skip("a batch of one sequence, or of a loader, is not shared out")
    precision = "fp32" if twins.settings.precision == "fp16" else twins.settings.precision
    config = changed(
        twins.config,
        {
            "batch_size": rows,
            "batch_tokens": None,
            "batch_ramp.from_tokens": None,
            "micro_batch": size,
            "device": "cpu",
            "precision": precision,
            "compile": False,
        },
    )
    shared = replace(twins, config=config, store=None, settings=replace(twins.settings, precision=precision))
    try:
        gaps: list[Gap] = run_distributed(_prove_on_rank, RANKS, shared, timeout_s=_TIMEOUT_S)
    except CannotSendError as error:
        return skip(str(error))
    worst = max(gaps, key=lambda gap: gap.size)
    detail = f"{_STEPS} steps of {rows} sequences, {size} at a time, in {RANKS} processes on gloo and the CPU"
    return worst.outcome(precision, detail)


def _prove_on_rank(rank: int, world_size: int, twins: Twins) -> Gap:
    """Take a few steps with the others, each compared with the same step alone; give the largest difference."""
    folder = Path(twins.folder) / f"rank-{rank}"
    with replace(twins, folder=folder).run("ranks") as run, deterministic(True):
        run.model.train()
        gap, names = Gap(TOLERANCE[twins.settings.precision]), names_of_parameters(run)
        for step in range(_STEPS):
            alone = run.trainer.backward()
            expected = [gradient.clone() for gradient in gradients_of(run)]
            loss = _backward_together(run, rank, world_size)
            gap = gap.seen(relative(float(alone), float(loss)), step, "loss")
            gap = gradient_gap(gap, step, names, expected, gradients_of(run))
            run.trainer.update(loss)
            gap = gap.seen(_disagreement(run.trainer.parameters), step, "weights, which differ between ranks")
    return gap


def _backward_together(run: Run, rank: int, world_size: int) -> Tensor:
    """This rank's micro-batches, then the sum over ranks: gradients end as the mean per target of the global batch."""
    trainer = run.trainer
    trainer.optimizer.zero_grad()
    mine = _share(run, rank, world_size)
    targets = torch.stack([(micro.targets != IGNORED).sum() for micro in mine]).sum()
    distributed.all_reduce(targets)
    total = torch.zeros(())
    for micro in mine:
        if trainer.seed is not None:
            torch.manual_seed(seed_for(trainer.seed, "dropout", trainer.step, micro.index))
        with torch.autocast("cpu", run.settings.autocast, enabled=run.settings.autocast is not None):
            loss, _ = with_parts(trainer.loss(trainer.model, micro))
        loss = loss / targets.clamp(min=1)
        loss.backward()
        total = total + loss.detach()
    distributed.all_reduce(total)
    for tensor, gradient in zip(trainer.parameters, gradients_of(run), strict=True):
        distributed.all_reduce(gradient)
        tensor.grad = gradient
    return total


def _share(run: Run, rank: int, world_size: int) -> Sequence[MicroBatch]:
    """The micro-batches of this rank, cut from the rows of the global batch."""
    whole = run.batches(run.trainer.step).micro_batches
    size = run.plan.batch.size(run.trainer.step)
    width = max(micro.inputs.shape[1] for micro in whole)
    documents = [_wide(micro.documents, width, -1) for micro in whole if micro.documents is not None]
    return cut(
        torch.cat([_wide(micro.inputs, width, 0) for micro in whole])[:size],
        torch.cat([_wide(micro.targets, width, IGNORED) for micro in whole])[:size],
        run.settings.micro_batch,
        torch.device("cpu"),
        documents=torch.cat(documents)[:size] if documents else None,
        buckets=any(micro.inputs.shape[1] != width for micro in whole),
        rank=rank,
        world_size=world_size,
    )


def _wide(rows: Tensor, width: int, filler: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=filler)


def _disagreement(parameters: Sequence[Tensor]) -> float:
    """0 where all ranks have the same weights to the bit, else infinity."""
    apart = torch.zeros(())
    for tensor in parameters:
        theirs = tensor.detach().clone()
        distributed.broadcast(theirs, 0)
        apart += (theirs != tensor.detach()).any()
    distributed.all_reduce(apart)
    return float("inf") if apart else 0.0
