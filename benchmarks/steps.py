"""How long a training step of the demo takes, with fast and with reference kernels; medians, evaluation left out."""

import tempfile
from pathlib import Path
from statistics import median

import trainwell as tw
from trainwell.runs.metrics import MetricsFile

STEPS = 60
WARM_UP = 10


def step_ms(kernels: str, folder: Path) -> float:
    """Train the beginning of the demo and return the median time of a step in milliseconds."""
    with tw.build(
        "demo",
        run_dir=folder,
        duration=STEPS,
        kernels=kernels,
        eval={"every": None},
        sample={"every": None},
        checkpoint={"every": None},
    ) as run:
        for _ in tw.steps(run):
            pass
    rows = MetricsFile(folder / "metrics.jsonl").read().train
    return median(float(row["train/step_ms"]) for row in rows[WARM_UP:])


def main() -> None:
    """Print a line for each kind of kernels."""
    with tempfile.TemporaryDirectory() as folder:
        times = {kernels: step_ms(kernels, Path(folder) / kernels) for kernels in ("auto", "reference")}
    for kernels, ms in times.items():
        print(f"{ms:7.1f} ms a step, {16 * 128 / ms * 1000:8.0f} tokens per second, kernels: {kernels}")


if __name__ == "__main__":
    main()
