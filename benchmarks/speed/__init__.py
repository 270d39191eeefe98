"""How fast trainwell trains beside its peers on this machine: `python -m benchmarks.speed`."""
