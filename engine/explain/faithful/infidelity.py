"""Infidelity: how badly the relevance of squares says by how much the logit falls without them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.explain.faithful.areas import CELLS, on_cells
from models.explain.evaluating import mean_colour, needs

SAMPLES = 50  # squares
BATCH = 25  # images that are evaluated at once


def infidelity(
    model: nn.Module, images: Tensor, relevance: Tensor, target: Tensor, *, cells: int = CELLS, samples: int = SAMPLES
) -> Tensor:
    """Infidelity (Yeh et al., 2019) for the removal of squares, through captum: the smaller, the better.

    The mean over random squares of (R - D)^2: R is the sum of the relevance within the square, D the fall of the
    target's logit as the square takes the image's mean colour. Maps of different methods have different units; each is
    therefore multiplied, for each image, by the factor for which its infidelity is smallest, as the authors do.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        relevance: (B, rows, columns), in any resolution; it is brought to the same cells as for deletion.
        target: (B,) classes.
        cells: cells a side; a square is as large as one of them, up to half of the image's side.
        samples: squares; the same ones for every image.

    Returns:
        (B,), in squared units of the logit.

    Raises:
        UserError: captum is missing.
    """
    with needs("infidelity", "captum"):
        from captum.metrics import infidelity as of_captum

    maps = on_cells(relevance, cells).to(images)
    every = squares(samples, cells).to(images)
    found = []
    for image, values, label in zip(images.unsqueeze(1), maps.unsqueeze(1), target.tolist(), strict=True):
        rest = iter(every)

        def perturbed(shown: Tensor, rest: Iterator[Tensor] = rest) -> tuple[Tensor, Tensor]:
            hidden = torch.stack([next(rest) for _ in shown])
            return hidden, shown - hidden

        found.append(
            of_captum(
                _OfCells(model, image),
                perturbed,
                torch.ones_like(values),
                values,
                target=label,
                n_perturb_samples=samples,
                max_examples_per_batch=BATCH,
                normalize=True,
            )
        )
    return torch.cat(found)


def squares(count: int, cells: int = CELLS, seed: int = 0) -> Tensor:
    """(count, cells, cells): 1 within a random square, of 1 to cells / 2 cells a side, and 0 around it."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, cells, cells)
    for mask in masks:
        side = int(torch.randint(1, max(1, cells // 2) + 1, (), generator=generator))
        top, left = torch.randint(cells - side + 1, (2,), generator=generator).tolist()
        mask[top : top + side, left : left + side] = 1
    return masks


class _OfCells:
    """A model as a function of which cells of an image (1, C, H, W) are shown: (N, cells, cells) -> logits."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self._model, self._image, self._plain = model, image, mean_colour(image)

    def __call__(self, shown: Tensor) -> Tensor:
        weight = nn.functional.interpolate(shown.unsqueeze(1), self._image.shape[2:], mode="nearest-exact")
        logits: Tensor = self._model(torch.where(weight > 0.5, self._image, self._plain))
        return logits
