"""PURE. What is to be done after a step: a function of the step and of nothing else."""

from dataclasses import dataclass

from trainwell.planning.resolve import Plan


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    save: bool
    evaluate: bool
    sample: bool


def due(plan: Plan, step: int, *, evaluates: bool, samples: bool) -> Due:
    """What a plan has due after `step`, of a run that can be evaluated or gives samples; the last step has all due."""
    state = step + 1
    last = state == plan.num_steps

    def on(every: int | None) -> bool:
        return last or (every is not None and state % every == 0)

    return Due(
        save=on(plan.save_every), evaluate=evaluates and on(plan.eval_every), sample=samples and on(plan.sample_every)
    )
