"""The soak: what a run survives, counted. `python -m benchmarks.soak`, and tests/soak in a short form."""
