"""Fits how much a model merges to a budget, on a few images: numbers for every block, or a threshold."""

from .schedule import FittedSchedule, fit_schedule
from .subject import divergence
from .threshold import FittedThreshold, fit_threshold

__all__ = ["FittedSchedule", "FittedThreshold", "divergence", "fit_schedule", "fit_threshold"]
