"""Fits a threshold to a budget: the value at which images cost so much on average."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...settings import UserError
from ..budget import TOLERANCE, macs_of_target
from ..layer import tokens_of_images
from ..methods import MERGERS
from .subject import fitted_on, settings_for

DIGITS = 4  # of a threshold
NEAR = 1e-3  # share of the target at which the search stops
LEAST, MOST = -1.0, 1.0  # of a threshold


class FittedThreshold(NamedTuple):
    """A threshold, and what the images that it was fitted to cost with it."""

    threshold: float
    gmacs: list[float]  # of each image

    @property
    def mean(self) -> float:
        """Mean GMACs of the images."""
        return fmean(self.gmacs)


def fit_threshold(
    model: nn.Module, images: Tensor, method: str = "tome", *, batch_size: int = 32, **others: Any
) -> FittedThreshold:
    """Finds the `threshold` with which images cost a budget on average.

        found = fit_threshold(model, images, "tome", target_gmacs=0.9, first_block=4)
        wrap(model, "tome", threshold=found.threshold, first_block=4)

    Only costs are looked at, never labels or predictions. Costs differ from image to image: the mean of n images
    differs from that of all by about their standard deviation divided by the square root of n, so give a few hundred.

    Args:
        model: a model that `wrap` takes, wrapped or not. It is as it was afterwards.
        images: (n, C, H, W), normalised as the model expects, of the size that it was built for.
        method: a method that takes a threshold.
        batch_size: images in a forward pass.
        others: other keys of the `merge:` section, with `target_gmacs` or `target_ratio`.

    Returns:
        The threshold, rounded to 4 digits, with which the mean cost is within 0.5 % of the budget.

    Raises:
        UserError: invalid settings, a method without a threshold, a learned metric, a model that is not supported or
            cannot be counted, images of another size, a budget that no threshold meets, or too few images to meet it
            within 0.5 %.
    """
    settings = settings_for("a threshold", method, others)
    if not MERGERS[method].threshold:
        takes = ", ".join(name for name, merger in MERGERS.items() if merger.threshold)
        raise UserError(f"merge.method = {method!r}: takes no threshold; use one of {takes}, or fit a schedule")
    with fitted_on(model, images, settings.with_threshold(MOST), batch_size) as subject:
        depth, unmerged, cost = len(subject.blocks), 0, subject.cost()
        if settings.target_ratio is not None:  # of MACs without any matching
            subject.blocks.plan = [0] * depth
            unmerged = subject.cost()((0,) * depth)
        target = macs_of_target(settings, unmerged) / 1e9

        def costs(threshold: float) -> FittedThreshold:
            with tokens_of_images(model) as tokens:
                subject.outputs(settings.with_threshold(threshold).plan(depth))
            removed = [tuple(before - after for before, after in pairwise(image)) for image in tokens]
            return FittedThreshold(threshold, [cost(schedule) / 1e9 for schedule in removed])

        asked = f"merge.{settings.target} = {getattr(settings, str(settings.target))}"
        return solved(costs, target, asked, method)


def solved(costs: Callable[[float], FittedThreshold], target: float, asked: str, method: str) -> FittedThreshold:
    """Returns the threshold whose mean cost is nearest to the target, in GMACs; see `fit_threshold`."""

    def off(found: FittedThreshold) -> float:
        return abs(found.mean - target)

    low, high, halve = costs(LEAST), costs(MOST), True
    if not low.mean / (1 + TOLERANCE) <= target <= high.mean / (1 - TOLERANCE):
        reach = f"{low.mean:.4g} to {high.mean:.4g} GMACs"
        raise UserError(f"{asked}: out of reach; with thresholds of {method} these images cost {reach} on average")
    best, unit = min(low, high, key=off), 10.0**-DIGITS
    while off(best) > NEAR * target and high.threshold - low.threshold > 1.5 * unit:
        # Where the cost is flat, interpolation alone would creep.
        share = 0.5 if halve or high.mean == low.mean else (target - low.mean) / (high.mean - low.mean)
        middle = low.threshold + share * (high.threshold - low.threshold)
        found = costs(round(min(max(middle, low.threshold + unit), high.threshold - unit), DIGITS))
        best, halve = min(best, found, key=off), not halve
        low, high = (found, high) if found.mean <= target else (low, found)
    if off(best) > TOLERANCE * target:
        nearest = f"{low.mean:.4g} and {high.mean:.4g} GMACs"
        raise UserError(f"{asked}: no threshold meets it within 0.5 %; the nearest cost {nearest}; give more images")
    return best
