"""Deletion and insertion: what happens to the probability as the cells that an explanation names go, or come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

CELLS = 14  # cells a side: the patches of a ViT/16 at 224 px
STEPS = 28  # so many times, an equal number of cells is deleted or inserted
BLUR = 5.0  # standard deviation of the blur from which insertion starts, pixels of a 224 px image


class Curves(NamedTuple):
    """Probability of the explained class by image and step, (B, STEPS + 1); the first is before any change."""

    deletion: Tensor
    insertion: Tensor

    @property
    def areas(self) -> Tensor:
        """(B, 2): areas under both curves by the trapezoidal rule, the axis of cells being from 0 to 1."""
        return torch.stack([torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1) for curve in self], dim=1)


@torch.inference_mode()
def deletion_and_insertion(
    model: nn.Module, images: Tensor, relevance: Tensor, target: Tensor, *, cells: int = CELLS, steps: int = STEPS
) -> Curves:
    """Deletes and inserts cells of images in the order of their relevance (Petsiuk, Das and Saenko, RISE, 2018).

    Maps of every resolution are brought to the same cells first, so that methods differ by their order alone. Deletion
    replaces cells by the image's mean colour, and a good explanation makes the probability fall early: a small area.
    Insertion puts them into the blurred image, and a good explanation makes it rise early: a large area.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        relevance: (B, rows, columns), in any resolution.
        target: (B,) classes.
        cells: cells a side.
        steps: number of equal steps.

    Returns:
        The curves.
    """
    rank = ranks(relevance, (images.shape[2], images.shape[3]), cells)
    plain = images.mean((2, 3), keepdim=True).expand_as(images)
    sigma = BLUR * images.shape[3] / 224
    blurred = gaussian_blur(images, kernel_size=2 * int(3 * sigma) + 1, sigma=sigma)
    deleted, inserted = [], []
    for step in range(steps + 1):
        named = rank < cells * cells * step / steps
        deleted.append(probability(model, torch.where(named, plain, images), target))
        inserted.append(probability(model, torch.where(named, images, blurred), target))
    return Curves(torch.stack(deleted, dim=1), torch.stack(inserted, dim=1))


def ranks(relevance: Tensor, sides: tuple[int, int], cells: int = CELLS) -> Tensor:
    """Maps (B, rows, columns) -> the rank of each pixel's cell (B, 1, *sides), from 0, the most relevant one."""
    order = on_cells(relevance, cells).flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).view(-1, 1, cells, cells).float()
    return F.interpolate(rank, size=sides, mode="nearest-exact")


def on_cells(relevance: Tensor, cells: int = CELLS) -> Tensor:
    """A map (B, rows, columns) as (B, cells, cells): means of what is finer, interpolation of what is coarser."""
    finer = min(relevance.shape[1:]) >= cells
    maps = relevance.unsqueeze(1).float()
    if finer:
        return F.adaptive_avg_pool2d(maps, cells).squeeze(1)
    return F.interpolate(maps, size=(cells, cells), mode="bilinear", align_corners=False).squeeze(1)


def probability(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Images (B, C, H, W) and their classes (B,) -> the probability of each image's class, (B,)."""
    logits: Tensor = model(images)
    return logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def random_map(count: int, cells: int = CELLS, seed: int = 0) -> Tensor:
    """(count, cells, cells): a map that knows nothing, which every explanation has to beat."""
    return torch.rand(count, cells, cells, generator=torch.Generator().manual_seed(seed))


def centre_map(count: int, cells: int = CELLS) -> Tensor:
    """(count, cells, cells): a blob in the middle, where photographers put things: the other map to beat."""
    axis = torch.linspace(-1, 1, cells)
    return torch.exp(-2 * (axis[:, None] ** 2 + axis[None, :] ** 2)).expand(count, -1, -1)
