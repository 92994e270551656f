"""ROAD: what happens to the probability as cells are replaced by what their surroundings let one expect."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from engine.explain.faithful.areas import CELLS, probability, ranks

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # of the cells that are removed, as in the authors' experiments
NOISE = 0.01  # standard deviation of what is added to imputed pixels, in normalised units, likewise
DIRECT, DIAGONAL = 1 / 6, 1 / 12  # weights of a pixel's neighbours
NEIGHBOURS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


@torch.inference_mode()
def road(
    model: nn.Module, images: Tensor, relevance: Tensor, target: Tensor, *, cells: int = CELLS, first: int = 0
) -> Tensor:
    """Removes and debiases (Rong et al., 2022): the mean probability while cells are removed, in both orders.

    A removed pixel becomes the weighted mean of its neighbours, removed ones included, and a little noise. A plain
    colour would tell the model the shape of what was removed; this hardly does. Most relevant first (MoRF), a good
    explanation makes the probability fall: a small mean. Least relevant first (LeRF), it stays: a large mean.

    The paper reports accuracy; here it is the probability of the explained class, whose mean needs fewer images.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        relevance: (B, rows, columns), in any resolution; it is brought to the same cells as for deletion.
        target: (B,) classes.
        cells: cells a side.
        first: the number of the first image, which decides its noise: an image's noise is always the same.

    Returns:
        (B, 2): MoRF and LeRF, each the mean over FRACTIONS.
    """
    rank = ranks(relevance, (images.shape[2], images.shape[3]), cells)[:, 0].cpu().numpy()
    pixels = images.double().cpu().numpy()
    noise = np.stack([_noise(image.shape, first + i) for i, image in enumerate(pixels)])
    means = []
    for least_first in (False, True):
        order = cells * cells - 1 - rank if least_first else rank
        found = []
        for fraction in FRACTIONS:
            removed = order < round(fraction * cells * cells)
            filled = np.stack([imputed(image, gone) for image, gone in zip(pixels, removed, strict=True)])
            filled += noise * removed[:, None]
            found.append(probability(model, torch.from_numpy(filled).to(images), target))
        means.append(torch.stack(found).mean(0))
    return torch.stack(means, dim=1)


def imputed(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Noisy linear imputation, without the noise: every removed pixel is the weighted mean of its neighbours.

    The weights are 1/6 for the four direct neighbours and 1/12 for the diagonal ones; at the image's edge, where some
    are missing, the others have all the weight. These are as many linear equations as there are removed pixels.

    Args:
        image: (C, H, W).
        removed: bool (H, W), not all of the pixels.

    Returns:
        (C, H, W): the image with removed pixels replaced.
    """
    count = int(removed.sum())
    if not count:
        return image.copy()
    assert count < removed.size, "something must be left"
    number = np.full(removed.shape, -1)
    number[removed] = np.arange(count)
    total, known = np.zeros(removed.shape), np.zeros(image.shape)
    rows, columns, values = [], [], []
    for offset in NEIGHBOURS:
        weight = DIRECT if 0 in offset else DIAGONAL
        here, there = _shifted(removed.shape, offset)
        total[here] += weight
        known[(..., *here)] += weight * np.where(removed[there], 0, image[(..., *there)])
        both = removed[here] & removed[there]
        rows.append(number[here][both])
        columns.append(number[there][both])
        values.append(np.full(rows[-1].size, -weight))
    rows.append(number[removed])
    columns.append(number[removed])
    values.append(total[removed])
    matrix = csc_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    # The matrix is symmetric and its diagonal dominates: no pivots, and the ordering for symmetric matrices.
    solver = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    filled = image.copy()
    filled[:, removed] = solver.solve(known[:, removed].T).T
    return filled


def _shifted(shape: tuple[int, ...], offset: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where pixels are that have a neighbour at this offset, and where these neighbours are."""
    here = tuple(slice(max(0, -by), side - max(0, by)) for by, side in zip(offset, shape))
    there = tuple(slice(max(0, by), side - max(0, -by)) for by, side in zip(offset, shape))
    return here, there


def _noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return NOISE * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
