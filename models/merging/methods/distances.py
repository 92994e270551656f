"""Squared Euclidean distances between all patches of each image, as exact as float32 is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .eager import eager_on_cpu

CANCELLED = 1e-6  # as a fraction of the square of a patch: squared distances below it are not differences of squares


def squared_distances(metric: Tensor) -> Tensor:
    """The squared distances between all patches of each image.

    On a CPU they are a^2 + b^2 - 2ab in float64, which takes a fraction of the time of subtracting vectors. Its error
    is less than the rounding of float32, except between patches that almost coincide, where a^2 + b^2 and 2ab cancel:
    images with such patches are computed from differences. So is everything where values cannot be looked at.

    Args:
        metric: (B, N, D) float32.

    Returns:
        (B, N, N) float32, 0 on the diagonal.
    """
    if not eager_on_cpu(metric):
        return from_differences(metric)
    squared, norm = from_products(metric)
    diagonal = squared.diagonal(dim1=1, dim2=2)
    diagonal.fill_(torch.inf)
    cancelled = (squared.amin(dim=-1) < CANCELLED * norm).any(dim=-1)
    diagonal.zero_()
    if cancelled.any():
        squared[cancelled] = from_differences(metric[cancelled])
    return squared


def from_products(metric: Tensor) -> tuple[Tensor, Tensor]:
    """a^2 + b^2 - 2ab, (B, N, N) float32, exactly 0 on the diagonal; and a^2, (B, N) float64."""
    wide = metric.double()
    norm = wide.square().sum(dim=-1)
    # In place: at this size, allocating memory takes longer than the arithmetic.
    squared = (wide @ (-2 * wide).mT).add_(norm.unsqueeze(2)).add_(norm.unsqueeze(1)).float()
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared, norm


def from_differences(metric: Tensor) -> Tensor:
    """(a - b)^2, (B, N, N) float32, exactly 0 between patches that coincide."""
    return torch.cdist(metric, metric, compute_mode="donot_use_mm_for_euclid_dist").square()


def smallest(values: Tensor, count: int) -> Tensor:
    """The smallest values of each row, ascending, (B, N, N) -> (B, N, count)."""
    if not eager_on_cpu(values):
        return values.topk(count, largest=False).values
    # NumPy sorts whole rows by vector instructions in a fraction of the time of topk.
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1)[..., :count])
