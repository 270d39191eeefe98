"""Checkpoints: their layout on disk, and the store that writes and reads them."""
