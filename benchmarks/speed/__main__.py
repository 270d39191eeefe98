"""`python -m benchmarks.speed`: trainwell and its peers, one after the other on this machine."""

import sys

from benchmarks.speed.driver import main

sys.exit(main())
