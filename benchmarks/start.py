"""How long the command line takes to answer, torch not imported: `--help`, `show`, `check`, `compare`, and a mistake.

Also the time to count the tokens before a step that is half a million steps into a run with a ramp.
"""

import subprocess
import sys
import time
from statistics import median

from trainwell.optim.batch_plan import BatchPlan, Ramp

COMMANDS = (
    ["--help"],
    ["--version"],
    ["show", "demo"],
    ["show", "demo", "--yaml"],
    ["show", "gpt3-125m"],
    ["show", "gpt3-125m@100000"],
    ["check", "gpt3-125m"],
    ["compare", "gpt3-125m", "gpt3-350m"],
    ["train", "demo", "--optim.lrr", "1"],
)
REPEATS = 5


def seconds(command: list[str]) -> float:
    """Time one call in a fresh process, output thrown away."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trainwell", *command], capture_output=True, check=False)
    return time.perf_counter() - begin


def microseconds_to_count() -> float:
    """The median of many calls of tokens_before on GPT-3's ramp, alternating inside the ramp and far past it."""
    plan = BatchPlan(256, 2048, Ramp(32_768, 524_288, 4_000_000_000), 16)
    calls = []
    for step in (500_000, 20_000) * 100:
        begin = time.perf_counter()
        plan.tokens_before(step)
        calls.append(time.perf_counter() - begin)
    return median(calls) * 1e6


def main() -> None:
    """Print the median of each command, and of counting."""
    for command in COMMANDS:
        print(f"{median(seconds(command) for _ in range(REPEATS)):6.2f} s  trainwell {' '.join(command)}")
    print(f"{microseconds_to_count():6.1f} us tokens_before, 500,000 and 20,000 steps into GPT-3's ramp")


if __name__ == "__main__":
    main()
