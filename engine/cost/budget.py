"""Draws, for every training step, how many tokens each block removes, so that one model serves any budget."""

from __future__ import annotations

from typing import Any

from engine.data.keyed import BUDGET, hash64
from models.budget import with_r
from models.interface import merge_settings
from models.merging.settings import AnySettings
from models.settings import Settings


def range_of(settings: Settings) -> list[int] | None:
    """Returns the least and the most r of `merge.r: {train: [least, most]}`; None for all other settings."""
    merge = merge_settings(settings)
    return merge.r.train if merge is not None and isinstance(merge.r, AnySettings) else None


def drawn_schedule(settings: Any, seed: int, step: int) -> list[int]:
    """Returns the patches that each block removes in a training step: r is uniform over its range.

    The draw is a function of (seed, step) alone.

    Args:
        settings: a model's checked options, with `merge.r: {train: [least, most]}`.
        seed: the run's seed.
        step: the number of the training step.
    """
    least, most = range_of(settings)
    r = least + int(hash64(BUDGET, seed, step)[0]) % (most - least + 1)
    return with_r(settings, r).schedule()
