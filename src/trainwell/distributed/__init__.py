"""Several processes that share a step: how they are started, and what they say to each other."""
