"""What images cost where the number of tokens depends on the image: a cost for each of them, and their mean and spread.

An image's multiply-adds follow from what each block removes of it: for our own models by formula, for those of other
libraries by the counts of `models.merging.wrapping.cost`. One of the images is traced as well, and it is an error if
the two counts differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.cost.macs import TOLERANCE, CountError, check_agreement, traced_macs
from engine.wording import fixed
from models.formulas import FORMULAS, macs_of_image
from models.interface import depends_on_image
from models.merging.layer import tokens_of_images
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

    def in_short(self) -> str:
        """As in "0.7345 ± 0.0612": mean and standard deviation."""
        return fixed(self.mean, 4) + ("" if self.std is None else f" ± {fixed(self.std, 4)}")

    def in_words(self) -> str:
        """As in "0.7345 GMACs, mean of 500 images (standard deviation 0.0612, 0.5513 to 0.9021)"."""
        if self.std is None:
            return f"{fixed(self.mean, 4)} GMACs, of 1 image"
        spread = f"standard deviation {fixed(self.std, 4)}, {fixed(self.least, 4)} to {fixed(self.most, 4)}"
        return f"{fixed(self.mean, 4)} GMACs, mean of {self.images} images ({spread})"


class ImageCounter:
    """Counts what images cost while they run through a model, as a context.

    Args:
        model: any model. Images are counted only if its number of tokens depends on them.
        settings: the settings of a model of our own; None for those of other libraries.
        part: the wrapped ViT inside the model, where the model is more than that, and how many of its blocks run.
    """

    def __init__(
        self, model: nn.Module, settings: Settings | None = None, part: tuple[nn.Module, int] | None = None
    ) -> None:
        self._model, self._settings, self._stack = model, settings, ExitStack()
        self._vit, self._blocks = (model, None) if part is None else part
        self._tokens: list[tuple[int, ...]] = []
        self._first: Tensor | None = None

    def __enter__(self) -> ImageCounter:
        if depends_on_image(self._vit):
            self._tokens = self._stack.enter_context(tokens_of_images(self._vit, self._blocks))
            self._stack.callback(self._model.register_forward_pre_hook(self._entered).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _entered(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._first is None:
            self._first = inputs[0][:1].detach().float()

    def costs(self) -> ImageCosts | None:
        """Returns the costs of the images so far; None where the number of tokens does not depend on them.

        Raises:
            CountError: the model cannot be counted, or two counts of the first image differ by more than 0.5 %.
        """
        if self._first is None:
            return None
        ours = self._settings is not None and self._settings.name in FORMULAS
        count = _by_formula(self._settings) if ours else self._by_trace()
        self._check(count)
        gmacs = [sum(count(_removed(tokens)).values()) / 1e9 for tokens in self._tokens]
        return ImageCosts(
            images=len(gmacs),
            mean=statistics.fmean(gmacs),
            std=statistics.stdev(gmacs) if len(gmacs) > 1 else None,
            least=min(gmacs),
            most=max(gmacs),
            tokens=[statistics.fmean(block) for block in zip(*(tokens[1:] for tokens in self._tokens), strict=True)],
        )

    def _by_trace(self) -> Counted:
        cost = cost_per_image(self._vit, self._model, self._blocks)
        return cache(lambda removed: {"all": cost(removed)})

    def _check(self, count: Counted) -> None:
        """Compares two counts of the first image."""
        assert self._first is not None
        with tokens_of_images(self._vit, self._blocks) as tokens:  # anew: in another precision other tokens may merge
            traced = traced_macs(self._model, self._first)
        expected = count(_removed(tokens[0]))
        if len(expected) > 1:
            check_agreement(traced, expected)
        elif abs(sum(traced.values()) - sum(expected.values())) > TOLERANCE * sum(expected.values()):
            counts = f"{sum(traced.values()) / 1e9:.6g} GMACs traced, {sum(expected.values()) / 1e9:.6g} expected"
            raise CountError(f"the counts of the first image differ: {counts}")


Counted = Callable[[tuple[int, ...]], dict[str, int]]  # what each block removes of an image -> its MACs by kind


def _removed(tokens: Sequence[int]) -> tuple[int, ...]:
    """What each block removes of an image with so many tokens before and after the blocks."""
    return tuple(before - after for before, after in pairwise(tokens))


def _by_formula(settings: Any) -> Counted:
    return cache(lambda removed: macs_of_image(settings, removed))
