"""A constant learning rate against warmup, cosine decay and clipping, at equal tokens: docs/simple-vs-improved.md.

python benchmarks/simple_vs_improved.py            a taste of it in seconds: one text, one rate, two seeds, few steps
python benchmarks/simple_vs_improved.py --full     the study: half an hour on one thread; continues where it stopped

Both need TRAINWELL_DATA_DIR. Every finished run is a line of the results file, and a run that has one is not repeated:
with the results of the repository in place, --full only draws the pictures and prints the tables again.
Two runs with one seed start from the same weights and read the same windows, so loops are compared seed by seed.
"""

import argparse
import contextlib
import io
import json
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, combinations_with_replacement, pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainwell as tw
from trainwell.data.corpora import read_corpus
from trainwell.errors import DataError, DivergedError
from trainwell.runs.metrics import MetricsFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = (1, 2, 3, 4, 5)
STEPS, EVALUATIONS = {"tiny-shakespeare": 500, "verdict": 800}, {"tiny-shakespeare": 5, "verdict": 20}
MODELS: dict[str, dict[str, Any]] = {
    "book": {"init": "torch", "tie_head": False, "qkv_bias": False},
    "gpt2": {"init": "gpt2", "tie_head": True, "qkv_bias": True},
}
# Chapter 5 of the book and its appendix D: all that differs between the two loops.
_CONSTANT = {"dialect": None, "warmup": 0, "initial_lr": None, "decay": "constant"}
_WARMUP_COSINE = {"dialect": "book", "warmup": "20%", "initial_lr": "1%", "min_lr": "1%"}
_UNCLIPPED = {"max_grad_norm": None, "clip_from": 0}
LOOPS: dict[str, dict[str, dict[str, Any]]] = {
    "simple": {"optim": _UNCLIPPED, "schedule": _CONSTANT},
    "improved": {"optim": {"max_grad_norm": 1.0, "clip_from": "warmup"}, "schedule": _WARMUP_COSINE},
}
# Its parts alone, on one text and at the rates where the loops differ most.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "schedule": {"optim": _UNCLIPPED, "schedule": _WARMUP_COSINE},
    "clipping": {"optim": {"max_grad_norm": 1.0, "clip_from": 0}, "schedule": _CONSTANT},
}
PARTS_CORPUS, PARTS_RATES = "tiny-shakespeare", (1e-2, 1e-1)
CURVES_RATE = 1e-2
TITLES = {"tiny-shakespeare": "Tiny Shakespeare", "verdict": "The Verdict"}
TITLES |= {"book": "the book's model", "gpt2": "GPT-2's model"}
TITLES |= {"simple": "simple: constant rate", "improved": "improved: warmup, cosine, clipping"}
# Okabe and Ito's palette, as in the pictures of a run.
COLOURS, INK, PALE = {"simple": "#D55E00", "improved": "#0072B2"}, "#333333", "#B8B8B8"
MARKERS = {"simple": "o", "improved": "s"}


@dataclass(frozen=True)
class Setting:
    """What one run is; a step is 8 x 64 characters."""

    corpus: str
    model: str
    arm: str
    rate: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Result:
    """What one run gave; losses in nats per character."""

    setting: Setting
    val: tuple[tuple[int, float], ...]
    """State and validation loss over the whole held-out text, state 0 included."""
    tenths: tuple[float, ...]
    """Mean training loss of each tenth of the run."""
    clipped: float
    """Share of the steps that were clipped."""
    letter_entropy: float
    """Of the text, when nothing but the frequency of its characters is known."""


Measure = Callable[[Result], float]


def final(run: Result) -> float:
    """Validation loss after the last step; infinite when it is not finite, or the run was ended before."""
    state, loss = run.val[-1]
    return loss if state == run.setting.steps and math.isfinite(loss) else math.inf


def best(run: Result) -> float:
    """Lowest validation loss."""
    return min(loss for _, loss in run.val)


def diverged(run: Result, rose: float = 0.2, learned: float = 0.1) -> bool:
    """Whether a run ended early, its training loss rose and stayed up, or it learned no more than letter frequencies.

    By the training loss, so that overfitting does not count: the mean of the last tenth of the steps is more than
    `rose` nats above the lowest tenth, or less than `learned` nats below the entropy of single characters.
    """
    if not math.isfinite(final(run) + sum(run.tenths)):
        return True
    end = run.tenths[-1]
    return end > min(run.tenths) + rose or end > run.letter_entropy - learned


def diverged_strictly(run: Result) -> bool:
    """The same with narrower limits, to see how much hangs on them."""
    return diverged(run, rose=0.1, learned=0.3)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); infinite and NaN when a value is infinite."""
    if not all(map(math.isfinite, values)):
        return math.inf, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences, by its percentiles; NaN when one is not finite.

    Exact: over all n^n resamples, as multisets with their number of ways. Of five pairs it is too narrow.
    """
    if not all(map(math.isfinite, differences)):
        return math.nan, math.nan
    count = len(differences)
    means = []
    for drawn in combinations_with_replacement(range(count), count):
        ways = math.factorial(count) // math.prod(map(math.factorial, Counter(drawn).values()))
        means.append((statistics.fmean(differences[index] for index in drawn), ways))
    means.sort()
    return _percentile(means, 0.025), _percentile(means, 0.975)


def _percentile(weighted: Sequence[tuple[float, int]], share: float) -> float:
    """The first of the sorted values that has `share` of the weight at or below it."""
    wanted = share * sum(weight for _, weight in weighted)
    sums = accumulate(weight for _, weight in weighted)
    return next(value for (value, _), below in zip(weighted, sums, strict=True) if below >= wanted)


def letter_entropy(text: str) -> float:
    """Entropy of single characters, in nats."""
    counts = Counter(text)
    return sum(count / len(text) * math.log(len(text) / count) for count in counts.values())


def study() -> list[Setting]:
    """Every run of the study, one seed after the other, so that a part of it is a smaller study; the parts last."""
    of_loops = product(SEEDS, STEPS, MODELS, RATES, LOOPS)
    of_parts = product(SEEDS, (PARTS_CORPUS,), MODELS, PARTS_RATES, PARTS)
    every = (*of_loops, *of_parts)
    return [Setting(text, model, arm, rate, seed, STEPS[text]) for seed, text, model, rate, arm in every]


def measure(setting: Setting) -> Result:
    """Train one run in a folder that is thrown away, its screen too."""
    loop = (LOOPS | PARTS)[setting.arm]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = tw.build(
            "book",
            run_dir=Path(folder) / "run",
            seed=setting.seed,
            duration=setting.steps,
            batch_size=8,
            micro_batch=8,
            device="cpu",
            data={"corpus": setting.corpus, "tokenizer": "chars", "seq_len": 64, "stride": 64},
            model={"num_layers": 2, "num_heads": 4, "width": 64, "dropout": 0.0, **MODELS[setting.model]},
            optim={"lr": setting.rate, **loop["optim"]},
            schedule=loop["schedule"],
            eval={"every": setting.steps // EVALUATIONS[setting.corpus], "batches": 0},
            sample={"every": None},
        )
        with contextlib.suppress(DivergedError):
            tw.fit(run)
        rows = MetricsFile(run.run_dir.metrics_jsonl).read()
    losses = [float(row["train/loss"]) for row in rows.train]
    cuts = [len(losses) * part // 10 for part in range(11)]
    return Result(
        setting,
        val=tuple((row["step"], round(float(row["val/loss"]), 4)) for row in rows.val),
        tenths=tuple(round(statistics.fmean(losses[a:b]), 4) for a, b in pairwise(cuts) if a < b),
        clipped=round(statistics.fmean(row["train/clipped"] for row in rows.train), 4),
        letter_entropy=round(letter_entropy(read_corpus(corpus=setting.corpus).texts[0]), 4),
    )


def read_results(path: Path) -> dict[Setting, Result]:
    """The finished runs of a results file; a last line that was cut off is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            row = json.loads(line)
            setting = Setting(**row.pop("setting"))
            val, tenths = tuple((state, loss) for state, loss in row.pop("val")), tuple(row.pop("tenths"))
            found[setting] = Result(setting, val=val, tenths=tenths, **row)
    return found


def collect(settings: Sequence[Setting], path: Path | None = None) -> list[Result]:
    """Results in the order of the settings: those on record, and what is missing by training it."""
    import torch

    torch.set_num_threads(1)
    known = {} if path is None else read_results(path)
    if path is not None and known:  # a torn last line must not run into the next one
        path.write_text("".join(_line(result) for result in known.values()), encoding="utf-8")
    for setting in settings:
        if setting in known:
            continue
        known[setting] = result = measure(setting)
        print(f"{setting}: final {final(result):.3f}, best {best(result):.3f}", flush=True)
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(result))
    return [known[setting] for setting in settings]


def _line(result: Result) -> str:
    return json.dumps(asdict(result)) + "\n"


class Pairs:
    """The results of one text and one model, by loop and rate, seeds in order: what is compared seed by seed."""

    def __init__(self, results: Sequence[Result], corpus: str, model: str) -> None:
        here = (result for result in results if (result.setting.corpus, result.setting.model) == (corpus, model))
        self._here = sorted(here, key=lambda run: run.setting.seed)
        self.rates = sorted({run.setting.rate for run in self._here})

    def runs(self, arm: str, rate: float) -> list[Result]:
        """The runs of a loop at a rate."""
        return [run for run in self._here if (run.setting.arm, run.setting.rate) == (arm, rate)]

    def mean(self, arm: str, rate: float, what: Measure) -> float:
        """The mean over the seeds."""
        return mean_and_spread([what(run) for run in self.runs(arm, rate)])[0]

    def own_rates(self, what: Measure) -> dict[str, float]:
        """For each loop the rate with the lowest mean."""
        return {arm: min(self.rates, key=lambda rate: self.mean(arm, rate, what)) for arm in LOOPS}

    def spread(self, arm: str, rate: float, what: Measure) -> str:
        """Mean and standard deviation, as a cell of a table."""
        return "{:.3f} ± {:.3f}".format(*mean_and_spread([what(run) for run in self.runs(arm, rate)]))

    def cells(self, rates: Mapping[str, float], what: Measure) -> list[str]:
        """Each of two loops at its rate, then the second less the first with its interval."""
        old, new = ([what(run) for run in self.runs(arm, rate)] for arm, rate in rates.items())
        differences = [after - before for before, after in zip(old, new, strict=True)]
        low, high = paired_interval(differences)
        each = [self.spread(arm, rate, what) for arm, rate in rates.items()]
        return [*each, f"{statistics.fmean(differences):+.3f} [{low:+.3f}, {high:+.3f}]"]


def tables(results: Sequence[Result]) -> Iterator[str]:
    """Lines of Markdown: for each text and model the losses by rate, and each loop at the rate that suits it best."""
    found = {(result.setting.corpus, result.setting.model) for result in results}
    for corpus, model in (pair for pair in product(STEPS, MODELS) if pair in found):
        pairs = Pairs(results, corpus, model)
        yield from ("", f"**{TITLES[corpus]}, {TITLES[model]}**", "")
        yield "| rate | final: simple | improved | difference | best: simple | improved | difference |"
        yield "|---|---|---|---|---|---|---|"
        for rate in pairs.rates:
            same = dict.fromkeys(LOOPS, rate)
            yield _row(f"{rate:g}", *pairs.cells(same, final), *pairs.cells(same, best))
        own = [pairs.own_rates(what) for what in (final, best)]
        label = "; ".join(" and ".join(f"{rate:g}" for rate in rates.values()) for rates in own)
        yield _row(f"own best: {label}", *pairs.cells(own[0], final), *pairs.cells(own[1], best))


def shares(results: Sequence[Result]) -> Iterator[str]:
    """Lines of Markdown: which share of the runs diverged, simple then improved, and of the steps was clipped."""
    yield ""
    yield _row("text and model", *(f"{rate:g}" for rate in RATES))
    yield "|---" * (len(RATES) + 1) + "|"
    for corpus, model in product(STEPS, MODELS):
        pairs = Pairs(results, corpus, model)
        for what, name in ((diverged, "diverged"), (diverged_strictly, "by narrower limits")):
            lost = [[f"{pairs.mean(arm, rate, what):.0%}" for arm in LOOPS] for rate in RATES]
            yield _row(f"{TITLES[corpus]}, {TITLES[model]}: {name}", *(" and ".join(pair) for pair in lost))
        clipped = [f"{pairs.mean('improved', rate, lambda run: run.clipped):.0%}" for rate in RATES]
        yield _row("steps clipped, improved", *clipped)


def parts(results: Sequence[Result]) -> Iterator[str]:
    """Lines of Markdown: final losses of the improved loop and of its two parts alone."""
    yield from ("", "| model | rate | simple | clipping alone | schedule alone | both |", "|---|---|---|---|---|---|")
    for model, rate in product(MODELS, PARTS_RATES):
        pairs = Pairs(results, PARTS_CORPUS, model)
        arms = ("simple", "clipping", "schedule", "improved")
        yield _row(TITLES[model], f"{rate:g}", *(pairs.spread(arm, rate, final) for arm in arms))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw(results: Sequence[Result], folder: Path) -> None:
    """Write the four pictures of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, label, panel in (
        ("final", "final validation loss, nats per character", lambda axes, pairs: _losses(axes, pairs, final)),
        ("best", "best validation loss, nats per character", lambda axes, pairs: _losses(axes, pairs, best)),
        ("diverged", "share of runs that diverge", _shares),
        ("curves", "validation loss, nats per character", _curves),
    ):
        _panels(results, label, panel).savefig(folder / f"simple-vs-improved-{name}.png", dpi=110)


def _panels(results: Sequence[Result], label: str, panel: Callable[["Axes", Pairs], None]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(MODELS), len(STEPS), sharex="col" if panel is _curves else True, sharey="col")
    for row, model in zip(grid, MODELS, strict=True):
        for axes, corpus in zip(row, STEPS, strict=True):
            axes.set_title(f"{TITLES[corpus]}, {TITLES[model]}", loc="left", fontsize=10.5, color=INK)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(PALE)
            axes.grid(axis="y", color="#E6E6E6", lw=0.8)
            panel(axes, Pairs(results, corpus, model))
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=10, labelcolor=INK)
    figure.supylabel(label)
    figure.supxlabel(f"step; rate {CURVES_RATE:g}" if panel is _curves else "learning rate: constant, or the peak")
    return figure


def _losses(axes: "Axes", pairs: Pairs, what: Measure) -> None:
    """Mean of the seeds over the rate, every run as a point beside it, hollow if it diverged."""
    axes.set_xscale("log")
    for arm, shift in zip(LOOPS, (0.94, 1.06), strict=True):
        colour, marker = COLOURS[arm], MARKERS[arm]
        means = [pairs.mean(arm, rate, what) for rate in pairs.rates]
        axes.plot(pairs.rates, means, color=colour, marker=marker, lw=2, ms=6, label=TITLES[arm])
        for run in (run for rate in pairs.rates for run in pairs.runs(arm, rate)):
            fill = "none" if diverged(run) else colour
            axes.plot(run.setting.rate * shift, what(run), marker, ms=3.5, mec=colour, mfc=fill, mew=0.8, alpha=0.6)


def _shares(axes: "Axes", pairs: Pairs) -> None:
    axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.05)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for arm, style in zip(LOOPS, ("-", (0, (4, 2))), strict=True):
        lost = [pairs.mean(arm, rate, diverged) for rate in pairs.rates]
        axes.plot(pairs.rates, lost, color=COLOURS[arm], marker=MARKERS[arm], ls=style, lw=2, ms=6, label=TITLES[arm])


def _curves(axes: "Axes", pairs: Pairs) -> None:
    """Mean validation loss over the steps, lowest to highest seed as a band; the untrained state is left out."""
    for arm in LOOPS:
        runs, colour = pairs.runs(arm, CURVES_RATE), COLOURS[arm]
        states = [state for state, _ in runs[0].val[1:]]
        by_state = list(zip(*([loss for _, loss in run.val[1:]] for run in runs), strict=True))
        means = list(map(statistics.fmean, by_state))
        axes.fill_between(states, list(map(min, by_state)), list(map(max, by_state)), color=colour, alpha=0.18, lw=0)
        axes.plot(states, means, color=colour, lw=2, label=TITLES[arm])


def main() -> None:
    """Run what was asked for, and print its tables."""
    parser = argparse.ArgumentParser(description="a constant rate against warmup, cosine decay and clipping")
    parser.add_argument("--full", action="store_true", help="the whole study, and its pictures")
    parser.add_argument("--results", type=Path, default=DOCS / "data" / "simple-vs-improved.jsonl", help="its runs")
    parser.add_argument("--images", type=Path, default=DOCS / "images", help="folder of its pictures")
    asked = parser.parse_args()
    try:
        for corpus in STEPS:
            read_corpus(corpus=corpus)
    except DataError as error:
        print(f"simple against improved is skipped: {error}")
        return
    if asked.full:
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        results = collect(study(), asked.results)
        draw(results, asked.images)
        print("\n".join([*tables(results), *shares(results), *parts(results)]))
    else:
        taste = [Setting("verdict", "book", arm, 1e-2, seed, 120) for seed, arm in product(SEEDS[:2], LOOPS)]
        print("\n".join(tables(collect(taste))))


if __name__ == "__main__":
    main()
