"""What is fitted: a model that merges while it is fitted, and images that it is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...modes import in_evaluation_mode
from ...settings import UserError, check
from ..budget import CountError
from ..schedule import Plan
from ..settings import MergeSettings
from ..wrapping import MergingBlocks, cost_per_image, image_shape, merging_in

Distance = Callable[[Any, Any], Tensor]  # (merged, unmerged) outputs for B images -> (B,)


def divergence(merged: Any, unmerged: Any) -> Tensor:
    """The Kullback-Leibler divergence of the merged model's class probabilities from the unmerged model's.

    Args:
        merged, unmerged: logits (B, classes), or outputs that have them as `logits`.

    Returns:
        (B,) float32, natural logarithm.

    Raises:
        UserError: the model gives no logits.
    """
    p, q = (_logits(output).float().log_softmax(-1) for output in (unmerged, merged))
    return (p.exp() * (p - q)).sum(-1)


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(
            f"the model returns {type(output).__name__}, no logits (B, classes); give a distance of your own"
        )
    return logits


def settings_for(target: str, method: str, others: dict[str, Any]) -> MergeSettings:
    """The checked `merge:` section of a budget that something is fitted to.

    Args:
        target: what is fitted, for errors.
        method: a key of MERGERS.
        others: the other keys.

    Raises:
        UserError: invalid settings, no budget of multiply-adds, or a metric that is learned, which starts anew here.
    """
    settings = check(MergeSettings, {"method": method, **others}, where="merge")
    if settings.target not in ("target_gmacs", "target_ratio"):
        raise UserError(
            f"merge.target_gmacs: missing; {target} is fitted to a budget, so give target_gmacs or target_ratio"
        )
    if settings.compared_by() == "learned":
        key = "metric = 'learned'" if settings.metric else f"method = {method!r}"
        raise UserError(f"merge.{key}: compares patches by what it learns, and {target} is fitted before; use another")
    return settings


@dataclass
class Subject:
    """A model, and images to fit to.

    Attributes:
        model: the model.
        blocks: its blocks, which merge.
        images: (n, C, H, W), normalised, on the model's device.
        batch_size: images in a forward pass.
    """

    model: nn.Module
    blocks: MergingBlocks
    images: Tensor
    batch_size: int

    def outputs(self, plan: Plan) -> list[Any]:
        """What the model returns for each batch of the images with a plan."""
        self.blocks.plan = plan
        with torch.inference_mode():
            return [self.model(batch) for batch in self.batches()]

    def batches(self) -> tuple[Tensor, ...]:
        """The images, in batches."""
        return torch.split(self.images, self.batch_size)

    def cost(self) -> Callable[[tuple[int, ...]], int]:
        """The MACs of one image as a function of what each block removes of it.

        Raises:
            UserError: the model cannot be counted.
        """
        try:
            return cost_per_image(self.model)
        except CountError as error:
            name = type(self.model).__name__
            raise UserError(f"merge.{self.blocks.settings.target}: this {name} cannot be counted ({error})") from error


@contextmanager
def fitted_on(model: nn.Module, images: Tensor, settings: MergeSettings, batch_size: int) -> Iterator[Subject]:
    """A model in evaluation mode that merges by some settings in this context, and is then as it was.

    Raises:
        UserError: the images are no batch of normalised images of the model's size, or the model is not supported.
    """
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        shape = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise UserError(f"images: {shape}; give normalised images (n, C, H, W), n at least 1")
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: must be at least 1")
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    with merging_in(model, settings) as blocks, in_evaluation_mode(model):
        built = image_shape(model)
        if built is not None and images.shape[1:] != built:  # costs would be those of other images
            has, expected = (" x ".join(map(str, shape)) for shape in (images.shape[1:], built))
            raise UserError(f"images: {has}; this {type(model).__name__} was built for {expected}, so resize them")
        yield Subject(model, blocks, images.to(weight), batch_size)
