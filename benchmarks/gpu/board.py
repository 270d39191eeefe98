"""The command: which sections there are, how long each may take, and what happens when a part of one fails."""

import argparse
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from benchmarks.gpu import ceilings, checks, engines, estimates, kernels
from benchmarks.gpu.ours import AS_IS, OURS, Case, How, ours
from benchmarks.gpu.peers import lightning_trainer, transformers_trainer
from benchmarks.gpu.plain import RAW, plain_gpt, raw_loop
from benchmarks.gpu.report import Report, facts
from benchmarks.gpu.shapes import GPT2_124M, GPT2_350M, PEAK_TFLOPS, TINY, TINY_TOO, Shape, mfu
from benchmarks.gpu.timing import Contender, MissingError, finish, race, warm_up

RESULTS = Path(__file__).resolve().parents[1] / "results"
BUDGETS_S = {
    "ceilings": 15,
    "124m": 215,
    "350m": 80,
    "variants": 85,
    "profile": 35,
    "parity": 20,
    "engines": 90,
    "estimates": 150,
}
"""What each section may use; what one leaves over is the next one's."""

PEERS: tuple[Callable[[Case], Contender], ...] = (plain_gpt, lightning_trainer, transformers_trainer)
VARIANTS: tuple[tuple[str, How], ...] = (
    ("attention by flash", How(attention="flash")),
    ("cross-entropy compiled", How(loss="whole")),
    ("residual path in fp32", How(narrow=False)),
    ("chunked head_loss", How(loss="chunked")),
    ("torch's linear_cross_entropy", How(loss="linear")),
    ("bf16 weights, fp32 masters", How(weights="master")),
    ("blocks recomputed", How(recompute=True)),
    ("max-autotune-no-cudagraphs", How(mode="max-autotune-no-cudagraphs")),
)
GOAL_RATIO, GOAL_MFU = 1.15, 0.47


@dataclass
class Bench:
    """One run of the command: where, how long, and what it has found."""

    device: torch.device
    compiled: bool
    small: bool
    steps: int
    report: Report
    budget_s: float
    started: float
    dearest_s: float = 0.0
    """Largest time of a first step so far, a layer."""
    _until: float = 0.0

    def begin(self, name: str, title: str, sections: Sequence[str]) -> None:
        """Begin a section; its end is where those before it and itself end when each uses all its time."""
        whole = sum(BUDGETS_S[each] for each in sections)
        share = sum(BUDGETS_S[each] for each in sections[: sections.index(name) + 1]) / whole
        self._until = self.started + self.budget_s * share
        self.report.section(title)

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether that much is left of the section's time; says what is left out where it is not."""
        left = self._until - time.perf_counter()
        if left < seconds:
            self.report.say(
                f"{what}: left out, {max(left, 0):.0f} s of its time are left and about {seconds:.0f} needed"
            )
        return left >= seconds

    def needed_s(self, shape: Shape, name: str) -> float:
        """What compiling and timing one contender may take, by what the dearest took so far."""
        if self.small:
            return 0.0
        return max(20.0, self.dearest_s * shape.layers) * (3 if "autotune" in name else 1)

    def attempt(self, what: str, work: Callable[[], None]) -> bool:
        """Do it; a failure is a line of the report and ends nothing else."""
        try:
            work()
        except MissingError as error:
            self.report.say(f"{what}: left out, {error}")
            return False
        except Exception as error:  # noqa: BLE001 (a peer may fail in any way, and the others go on)
            first = next(iter(str(error).strip().splitlines()), "")
            self.report.say(f"{what}: failed, {type(error).__name__}: {first[:300]}")
            return False
        return True

    def tidy(self) -> None:
        """Give memory and compiled code back, so that the next race begins as the first did."""
        gc.collect()
        if self.compiled:
            torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def run_ceilings(bench: Bench) -> None:
    """What the bare device does."""
    shape = TINY if bench.small else GPT2_124M
    found = ceilings.ceilings(shape, bench.device, small=bench.small)
    bench.report.rows(ceilings.HEADER, found)
    bench.report.say(
        f"bf16, medians of 15; products of the {shape.name} model, {shape.micro_batches[0]} rows of tokens"
    )


def run_shape(bench: Bench, shape: Shape, peers: Sequence[Callable[[Case], Contender]]) -> None:
    """Ours against the peers, at each micro-batch; the trainer's own cost at the first."""
    for number, micro_batch in enumerate(shape.micro_batches):
        case = Case(shape, micro_batch, bench.device, bench.compiled)
        makers = [ours, *peers, *([raw_loop] if number == 0 else [])]
        title = f"{shape.name}, {micro_batch} x {shape.seq_len}"
        finished = compete(bench, case, title, [(maker.__name__, maker) for maker in makers])
        verdict(bench, case, title, finished)


def run_variants(bench: Bench) -> None:
    """Variants of ours, beside ours."""
    shape = TINY if bench.small else GPT2_124M
    case = Case(shape, shape.micro_batches[0], bench.device, bench.compiled)
    others = [(name, _variant(name, how)) for name, how in VARIANTS]
    base = "as trainwell has it"
    compete(
        bench, case, f"{shape.name}, {case.micro_batch} x {shape.seq_len}", [(base, _variant(base, AS_IS)), *others]
    )


def run_engines(bench: Bench) -> None:
    """Ddp and fsdp around our own step, beside that step."""
    shape = TINY if bench.small else GPT2_124M
    case = Case(shape, shape.micro_batches[0], bench.device, bench.compiled)
    usual, bench.steps = bench.steps, max(bench.steps, 4 if bench.small else engines.STEPS)
    races = [(compiled, each) for compiled in {bench.compiled, False} for each in engines.RACES[compiled]]
    with engines.group_of_one(bench.device):
        for compiled, makers in sorted(races, key=lambda race: not race[0]):
            finished = compete(bench, replace(case, compiled=compiled), f"{shape.name}, a group of one", makers)
            for line in engines.verdicts(finished):
                bench.report.say(line)
    bench.steps = usual


def run_estimates(bench: Bench) -> None:
    """What `show --gpus` says of memory, beside what real steps take; and their speed."""
    plans = estimates.SMALL if bench.small else estimates.PLANS
    rows = list[tuple[str | float | None, ...]]()
    for plan in plans:
        if bench.time_for(plan.name, plan.seconds):
            bench.attempt(plan.name, lambda plan=plan: rows.append(estimates.measured(plan, bench.device)))  # type: ignore[misc]
        bench.tidy()
    if rows:
        bench.report.rows(estimates.HEADER, rows)


def _variant(name: str, how: How) -> Callable[[Case], Contender]:
    return lambda case: ours(case, how, name)


def compete(
    bench: Bench, case: Case, title: str, makers: Sequence[tuple[str, Callable[[Case], Contender]]]
) -> list[Contender]:
    """Make each that there is time for, warm it up, time all in turn, and give the table."""
    ready: list[Contender] = []

    def make(maker: Callable[[Case], Contender]) -> None:
        gc.collect()
        held = torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0
        contender = maker(case)
        try:
            warm_up(contender, bench.device, held)
        except BaseException:
            contender.close()
            raise
        bench.dearest_s = max(bench.dearest_s, contender.first_step_s / case.shape.layers)
        ready.append(contender)

    for name, maker in makers:
        if bench.time_for(f"{title}: {name}", bench.needed_s(case.shape, name)):
            bench.attempt(f"{title}: {name}", lambda maker=maker: make(maker))  # type: ignore[misc]
    try:
        if ready and not bench.attempt(f"{title}: timing", lambda: race(ready, bench.steps, bench.device)):
            ready = [contender for contender in ready if contender.times_ms]
        if ready:
            bench.report.rows(HEADER, [_row(case, contender) for contender in ready], title)
        return ready
    finally:
        for contender in ready:
            contender.close()
            contender.step = lambda: None  # what it holds on the device goes with it
        bench.tidy()


HEADER = ("contender", "ms/step", "spread", "tokens/s", "MFU", "peak GB", "first step s", "first loss")


def _row(case: Case, found: Contender) -> tuple[str | float | None, ...]:
    share = mfu(case.shape, found.tokens_per_second) if case.device.type == "cuda" else None
    speed, spread = round(found.tokens_per_second), f"{found.spread:.1%}"
    return found.name, found.median_ms, spread, speed, share, found.peak_gb, found.first_step_s, found.first_loss


def verdict(bench: Bench, case: Case, title: str, finished: Sequence[Contender]) -> None:
    """Ours by the fastest peer, with the goals beside it; what is ours on both sides is no peer."""
    by_name = {each.name: each for each in finished}
    mine, raw = by_name.pop(OURS, None), by_name.pop(RAW, None)
    if mine is None:
        return
    if raw is not None:
        bench.report.say(f"{title}: the trainer costs {mine.median_ms / raw.median_ms - 1:+.2%} over the raw loop")
    if by_name:
        best = max(by_name.values(), key=lambda each: each.tokens_per_second)
        ratio = mine.tokens_per_second / best.tokens_per_second
        bench.report.say(f"{title}: {ratio:.3f} times the fastest peer, {best.name} (goal at 124M: {GOAL_RATIO})")
    if bench.device.type == "cuda":
        share = mfu(case.shape, mine.tokens_per_second)
        bench.report.say(f"{title}: {share:.1%} MFU (goal at 124M: {GOAL_MFU:.0%})")


def run_profile(bench: Bench) -> None:
    """Whether a step waits for the device, and where its time goes."""
    shape = TINY if bench.small else GPT2_124M
    contender = ours(Case(shape, shape.micro_batches[0], bench.device, bench.compiled))
    try:
        warm_up(contender, bench.device, 0)
        waited = checks.waits_for_device(contender.step, bench.device)
        checked = "passes" if bench.device.type == "cuda" else "needs a GPU, not checked"
        bench.report.say(f"no host sync inside take_step: {checked if waited is None else 'FAILS, ' + waited}")
        finish(bench.device)
        bench.attempt("profile", lambda: _profile(bench, contender))
    finally:
        contender.close()
        bench.tidy()


def _profile(bench: Bench, contender: Contender, steps: int = 3) -> None:
    found = kernels.summed(kernels.recorded(contender.step, steps, bench.device))
    bench.report.rows(("part of a step", "share"), [(kind, f"{share:.1%}") for kind, share in found.shares.items()])
    total = sum(ms for *_, ms in found.table)
    rows = [(name[:90], kind, runs, ms, f"{ms / total:.1%}") for name, kind, runs, ms in found.table[:20]]
    bench.report.rows(("kernel", "kind", "runs", "ms", "share"), rows, f"the 20 dearest kernels of {steps} steps")


def run_parity(bench: Bench) -> None:
    """The device against the CPU."""
    difference, first, last = checks.largest_difference(bench.device)
    judged = "holds" if difference <= checks.TOLERANCE else "DOES NOT HOLD"
    bench.report.say(
        f"{bench.device.type} and CPU, fp32, 20 steps from {first:.4f} to {last:.4f}: losses differ by "
        f"{difference:.2e} at most; tolerance {checks.TOLERANCE:g}: {judged}"
    )


SECTIONS: dict[str, tuple[str, Callable[[Bench], None]]] = {
    "ceilings": ("Bare ceilings", run_ceilings),
    "124m": ("124M", lambda bench: run_shape(bench, TINY if bench.small else GPT2_124M, PEERS)),
    "350m": ("350M", lambda bench: run_shape(bench, TINY_TOO if bench.small else GPT2_350M, PEERS[:1])),
    "variants": ("Variants of ours", run_variants),
    "profile": ("Where a step's time goes", run_profile),
    "parity": ("The same on a CPU", run_parity),
    "engines": ("The engines for several GPUs, on one", run_engines),
    "estimates": ("Memory estimated and measured", run_estimates),
}

ASKED_FOR = ("engines", "estimates")
"""Sections that are run where they are named: with all, one call would take longer than eight minutes."""


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps: does it run")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on a GPU")
    usual = [name for name in SECTIONS if name not in ASKED_FOR]
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=usual, metavar="SECTION")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for all sections; default 450")
    parser.add_argument("--steps", type=int, default=None, help="timed steps of each contender; default 20")
    parser.add_argument("--out", type=Path, default=None, help="folder; default $OUT or benchmarks/results")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the sections asked for, in order; write what there is after each. Returns the exit code."""
    asked = _arguments(given)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu --small shows that the benchmark runs")
        return 2
    device = torch.device(asked.device)
    torch.set_float32_matmul_precision("high")
    if asked.small and device.type == "cpu":
        torch.set_num_threads(1)  # tiny operations are fastest on one
    folder = asked.out or Path(os.environ.get("OUT") or RESULTS)
    bench = Bench(
        device=device,
        compiled=device.type == "cuda" if asked.compile is None else asked.compile,
        small=asked.small,
        steps=asked.steps or (4 if asked.small else 20),
        report=Report(facts(device), folder),
        budget_s=asked.budget,
        started=time.perf_counter(),
    )
    if bench.compiled:
        torch._dynamo.config.recompile_limit = 64  # contenders share code: none may fall back to eager for that
    sections = [name for name in SECTIONS if name in asked.only]
    path = folder
    for name in sections:
        title, work = SECTIONS[name]
        bench.begin(name, title, sections)
        bench.attempt(title, lambda work=work: work(bench))  # type: ignore[misc]
        path = bench.report.write()
    print(f"\nMFU is (6 N + 12 L H Q T) x tokens/s over {PEAK_TFLOPS:g} TFLOP/s; N leaves the position embeddings out")
    print(f"{time.perf_counter() - bench.started:.0f} s; written to {path} and its .json")
    return 0
