"""All proofs of a run's promises, in order; what each is called, and where to look when it does not hold."""

import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from trainwell.errors import TrainwellError
from trainwell.given import Given
from trainwell.planning.target import Start
from trainwell.prove import loop, order, ranks, rounding
from trainwell.prove.twins import Make, Twins, settle
from trainwell.prove.verdict import Outcome, Verdict


@dataclass(frozen=True)
class Proof:
    """A promise, and how it is put to the test."""

    name: str
    title: str
    test: Callable[[Twins], Outcome]
    look: str


PROOFS = (
    Proof(
        "resume",
        "resume equals uninterrupted",
        loop.resume,
        "something is carried from step to step that no state_dict() returns: a random generator, an iterator, a "
        "buffer, an average. Make it a function of the step, or save it: run.keep(name, part)",
    ),
    Proof(
        "observing",
        "evaluating, sampling, logging and saving change nothing",
        loop.observing,
        "something that observes draws from the global random generator, changes a buffer or the model's mode, or "
        "touches gradients that the next step still uses",
    ),
    Proof(
        "micro-batches",
        "k micro-batches equal one batch",
        rounding.micro_batches,
        "the loss must be a SUM over targets, divided once by all targets of the batch; layers that mix sequences "
        "(batch norm) cannot be cut",
    ),
    Proof(
        "kernels",
        "fast kernels equal plain ones",
        rounding.kernels,
        "train with --kernels reference, and report it with the tensor named here",
    ),
    Proof(
        "evaluation",
        "evaluation does not depend on its batch size",
        rounding.evaluating,
        "the loss must be a SUM over targets, in evaluation too; layers that mix sequences must not, outside training",
    ),
    Proof(
        "order",
        "each window once per epoch",
        order.order,
        "the batches must be a function of the step, over the order of data.order.windows_at: no state, no sampling "
        "with replacement, no dropped rest",
    ),
    Proof(
        "rate",
        "the logged rate is the rate used",
        loop.rates,
        "set the rate before the update, from the schedule at this step; a scheduler that steps beside the loop is one "
        "step off",
    ),
    Proof(
        "nan",
        "a NaN step changes nothing",
        loop.poisoned,
        "the update must be left out, not multiplied by zero; an optimizer of your own must not count or decay in a "
        "step that is skipped",
    ),
    Proof(
        "device",
        "this device trains as the CPU does",
        rounding.devices,
        "try --precision fp32, --compile false and --kernels reference, one at a time: which of them is it?",
    ),
    Proof(
        "ranks",
        "two ranks equal one",
        ranks.two_ranks,
        "the loss must be a SUM over targets, and what a micro-batch gives must not depend on the others: random draws "
        "by (seed, step, index), no statistics over the batch",
    ),
)


def prove(
    start: Start,
    given: Given | None = None,
    *,
    small: bool = False,
    say: Callable[[str], None] = lambda line: None,
    command: str = "",
    make: Make | None = None,
    only: Collection[str] = (),
) -> list[Verdict]:
    """Put every promise to the test on this configuration and machine; nothing outside a temporary folder is written.

    Args:
        start: the configuration, as `trainwell.planning.target.find_start` finds it.
        given: parts given in Python; every twin gets copies.
        small: scale model, batch and context down; `say` hears of what.
        say: hears each note, and each verdict as it is reached.
        command: what reproduces it, for the verdicts.
        make: puts a twin together in place of `trainwell.build.assemble`, so that another loop can be put to the test.
        only: names of proofs; none means all.

    Raises:
        ConfigError, DataError: for what keeps the run itself from starting.
    """
    wanted = [proof for proof in PROOFS if not only or proof.name in only]
    with tempfile.TemporaryDirectory(prefix="trainwell-prove-") as folder:
        twins = settle(start, given or Given(), small=small, make=make, folder=Path(folder))
        for line in (twins.settings.line(), *twins.notes):
            say(line)
        found = []
        for number, proof in enumerate(wanted, start=1):
            found.append(_one(proof, twins, command))
            last = found[-1]
            where = f" (first at {last.where})" if last.where else ""
            say(f"{number:2}/{len(wanted)} {last.word}  {proof.title}{where}, {last.seconds:.1f} s")
        return found


def _one(proof: Proof, twins: Twins, command: str) -> Verdict:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=twins.folder) as folder:
        try:
            outcome = proof.test(twins.within(Path(folder)))
        except (TrainwellError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            outcome = Outcome(False, "", f"a twin ended with {type(error).__name__}: {error}")
    return Verdict(
        name=proof.name,
        passed=outcome.passed,
        level=outcome.level,
        detail=outcome.detail,
        first_step=outcome.first_step,
        first_tensor=outcome.first_tensor,
        seconds=time.perf_counter() - begin,
        command=command,
        title=proof.title,
        look="" if outcome.passed else proof.look,
        skipped=outcome.skipped,
    )
