"""Proofs of a run's promises: short twin runs of one configuration on this machine, and where they first differ."""
