"""python -m benchmarks.soak [--short] [--only NAME ...] [--seed N] [--json FILE]."""

import sys

from benchmarks.soak.board import main

sys.exit(main())
