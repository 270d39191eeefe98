"""Architectures, their initial weights and the loss."""
