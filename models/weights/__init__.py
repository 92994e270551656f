"""Loads pretrained weights: converts them to a model's own names and shapes, and reports what was loaded."""

from .load import load_weights
from .report import Report

__all__ = ["Report", "load_weights"]
