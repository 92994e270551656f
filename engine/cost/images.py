"""What images cost where the number of tokens depends on the image: a cost for each of them, and their mean and spread.

An image's multiply-adds follow from what each block removes of it: for our own models by formula, for those of other
libraries by the counts of `models.merging.wrapping.cost`. One of the images is traced as well, and it is an error if
the two counts differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.cost.macs import TOLERANCE, CountError, check_agreement, traced_macs
from engine.wording import fixed
from models.formulas import FORMULAS, macs_of_image
from models.merging.wrapping import cost_per_image
from models.settings import Settings


class ImageCosts(NamedTuple):
    """The GMACs of single images."""

    images: int
    mean: float
    std: float | None  # sample standard deviation; None for a single image
    least: float
    most: float
    tokens: list[float]  # mean number of tokens that leave each block, prefix tokens included

    def in_words(self) -> str:
        """As in "0.7345 GMACs, mean of 500 images (standard deviation 0.0612, 0.5513 to 0.9021)"."""
        if self.std is None:
            return f"{fixed(self.mean, 4)} GMACs, of 1 image"
        spread = f"standard deviation {fixed(self.std, 4)}, {fixed(self.least, 4)} to {fixed(self.most, 4)}"
        return f"{fixed(self.mean, 4)} GMACs, mean of {self.images} images ({spread})"


def image_costs(
    model: nn.Module, tokens: Sequence[tuple[int, ...]], image: Tensor, settings: Settings | None = None
) -> ImageCosts:
    """Counts what images cost.

    Args:
        model: a model whose number of tokens depends on the image.
        tokens: for each image, as `models.interface.tokens_of_images` collects them.
        image: the first of these images, (1, C, H, W), normalised, on the model's device. It is traced.
        settings: the settings of a model of our own; None for those of other libraries.

    Raises:
        CountError: the model cannot be counted, or the two counts of the first image differ by more than 0.5 %.
    """
    removed = [tuple(before - after for before, after in pairwise(of_image)) for of_image in tokens]
    by_kind = _by_formula(settings) if settings is not None and settings.name in FORMULAS else _by_trace(model)
    traced, expected = traced_macs(model, image), by_kind(removed[0])
    if len(expected) > 1:
        check_agreement(traced, expected)
    elif abs(sum(traced.values()) - sum(expected.values())) > TOLERANCE * sum(expected.values()):
        counts = f"{sum(traced.values()) / 1e9:.6g} GMACs traced, {sum(expected.values()) / 1e9:.6g} expected"
        raise CountError(f"the counts of the first image differ: {counts}")
    gmacs = [sum(by_kind(of_image).values()) / 1e9 for of_image in removed]
    return ImageCosts(
        images=len(gmacs),
        mean=statistics.fmean(gmacs),
        std=statistics.stdev(gmacs) if len(gmacs) > 1 else None,
        least=min(gmacs),
        most=max(gmacs),
        tokens=[statistics.fmean(block) for block in zip(*(of_image[1:] for of_image in tokens), strict=True)],
    )


Counted = Callable[[tuple[int, ...]], dict[str, int]]  # what each block removes of an image -> its MACs by kind


def _by_formula(settings: Any) -> Counted:
    return cache(lambda removed: macs_of_image(settings, removed))


def _by_trace(model: nn.Module) -> Counted:
    cost = cost_per_image(model)
    return cache(lambda removed: {"all": cost(removed)})
