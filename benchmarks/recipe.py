"""What a recipe reaches: its final validation loss over the whole held-out text, for several seeds.

python benchmarks/recipe.py [RECIPE] [SEEDS]; the default is nanoGPT's shakespeare-char with 3 seeds, which needs
TRAINWELL_DATA_DIR. The figures are what the reference bands of the recipes were read from.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import trainwell as tw


def final_loss(recipe: str, seed: int, folder: Path) -> tuple[float, float]:
    """Validation loss over the whole split, in nats per token, and seconds from the first step to the last."""
    whole = {"every": "25%", "batches": 0}
    run = tw.build(recipe, run_dir=folder / str(seed), seed=seed, eval=whole, sample={"every": None})
    begin = time.perf_counter()
    tw.fit(run)
    return run.evaluate().loss, time.perf_counter() - begin


def main() -> None:
    """Print each seed's loss, and the mean."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "shakespeare-char"
    seeds = [1337 + number for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)]
    with tempfile.TemporaryDirectory() as folder:
        results = [final_loss(recipe, seed, Path(folder)) for seed in seeds]
    for seed, (loss, seconds) in zip(seeds, results, strict=True):
        print(f"{recipe}, seed {seed}: validation loss {loss:.4f}, {seconds:.0f} s")
    losses = [loss for loss, _ in results]
    print(f"{recipe}: mean {fmean(losses):.4f}, from {min(losses):.4f} to {max(losses):.4f}")


if __name__ == "__main__":
    main()
