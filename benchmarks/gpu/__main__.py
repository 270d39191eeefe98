"""python -m benchmarks.gpu [--device cpu --small] [--only SECTION ...] [--budget SECONDS] [--out FOLDER]."""

import sys
from pathlib import Path


def run() -> int:
    """The command, on the code of this checkout, installed or not."""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "src")]
    from benchmarks.gpu.board import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
