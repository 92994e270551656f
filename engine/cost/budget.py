"""Draws the number of tokens that each block removes in a training step, so that one model works with any budget."""

from __future__ import annotations

from typing import Any

from engine.data.keyed import BUDGET, hash64
from models.budget import with_r
from models.interface import merge_settings
from models.merging.settings import AnySettings
from models.settings import Settings


def range_of(settings: Settings) -> list[int] | None:
    """Returns the smallest and the largest r of `merge.r: {train: [least, most]}`; None for all other settings."""
    merge = merge_settings(settings)
    return merge.r.train if merge is not None and isinstance(merge.r, AnySettings) else None


def drawn_schedule(settings: Any, seed: int, step: int) -> list[int]:
    """Returns the number of patches that each block removes in a training step, with r drawn uniformly from its range.

    The draw depends only on (seed, step).

    Args:
        settings: a model's checked options, with `merge.r: {train: [least, most]}`.
        seed: the run's seed.
        step: the number of the training step.
    """
    least, most = range_of(settings)
    r = least + int(hash64(BUDGET, seed, step)[0]) % (most - least + 1)
    return with_r(settings, r).schedule()
