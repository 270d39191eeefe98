"""How long the command line takes to answer, torch not imported: `--help`, `show`, and a mistake."""

import subprocess
import sys
import time
from statistics import median

COMMANDS = (
    ["--help"],
    ["--version"],
    ["show", "demo"],
    ["show", "demo", "--yaml"],
    ["train", "demo", "--optim.lrr", "1"],
)
REPEATS = 5


def seconds(command: list[str]) -> float:
    """Time one call in a fresh process, output thrown away."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trainwell", *command], capture_output=True, check=False)
    return time.perf_counter() - begin


def main() -> None:
    """Print the median of each command."""
    for command in COMMANDS:
        print(f"{median(seconds(command) for _ in range(REPEATS)):6.2f} s  trainwell {' '.join(command)}")


if __name__ == "__main__":
    main()
