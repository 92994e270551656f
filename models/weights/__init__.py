"""Weights to start from: other people's checkpoints in, converted to a model's own names."""

from .load import Report, load_weights

__all__ = ["Report", "load_weights"]
