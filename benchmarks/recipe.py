"""What a recipe reaches: its validation losses over the whole held-out text, for several seeds.

python benchmarks/recipe.py [RECIPE] [SEEDS]; the default is nanoGPT's shakespeare-char with 3 seeds, which needs
TRAINWELL_DATA_DIR. The figures are what the reference bands of the recipes were read from.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import trainwell as tw
from trainwell.runs.metrics import MetricsFile


def losses_of(recipe: str, seed: int, folder: Path) -> tuple[dict[int, float], float]:
    """Validation loss over the whole split, in nats, by training tokens; and the seconds that training took."""
    run = tw.build(recipe, run_dir=folder / str(seed), seed=seed, eval={"batches": 0}, sample={"every": None})
    begin = time.perf_counter()
    tw.fit(run)
    seconds = time.perf_counter() - begin
    rows = MetricsFile(run.run_dir.metrics_jsonl).read().val
    return {row["tokens"]: row["val/loss"] for row in rows if "val/loss" in row}, seconds


def main() -> None:
    """Print each seed's losses, and for every evaluation the mean and the extremes."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "shakespeare-char"
    seeds = [1337 + number for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)]
    with tempfile.TemporaryDirectory() as folder:
        results = [losses_of(recipe, seed, Path(folder)) for seed in seeds]
    for seed, (losses, seconds) in zip(seeds, results, strict=True):
        print(f"{recipe}, seed {seed}: validation loss {losses[max(losses)]:.4f}, {seconds:.0f} s")
    for tokens in sorted(results[0][0]):
        reached = [losses[tokens] for losses, _ in results]
        print(f"{recipe}, {tokens:>9,} tokens: mean {fmean(reached):.4f}, {min(reached):.4f} to {max(reached):.4f}")


if __name__ == "__main__":
    main()
