"""Loads pretrained weights: converts them to a model's own names and shapes, and reports what was loaded."""

from .load import Report, load_weights

__all__ = ["Report", "load_weights"]
