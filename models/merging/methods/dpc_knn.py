"""Merging by clustering around density peaks.

Du, Ding, Jia: Study on Density Peaks Clustering Based on k-Nearest Neighbors and Principal Component Analysis.
Knowledge-Based Systems 99, 2016. As a way to merge tokens: Zeng, Jin, Liu, Qian, Luo, Ouyang, Wang: Not All Tokens Are
Equal: Human-centric Visual Analysis via Token Clustering Transformer (TCFormer). CVPR 2022, section 3.2.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..contract import Assignment, MergeContext, Merger, Option, all_pairs_macs
from ..tokens import take
from .eager import eager_on_cpu

CANCELLED = 1e-6  # as a fraction of the square of a patch: squared distances below it are not differences of squares


def dpc_knn(
    metric: Tensor,
    r: int,
    context: MergeContext,
    neighbours: Annotated[int, Option("number of nearest neighbours that define the density", least=1)] = 5,
) -> Assignment:
    """Makes N - r patches centres that are dense and far from any denser patch; all others join the nearest centre.

    With d_ij the distance between patches i and j, and kNN(i) the k patches nearest to i, excluding i:

        rho_i   = exp(-1/k sum_{j in kNN(i)} d_ij^2)
        delta_i = min_{j: rho_j > rho_i} d_ij; for the densest max_j d_ij

    Centres are the patches with the highest rho delta. The output holds them in their original order. Ties go to the
    lower position: of two equally dense patches, it counts as the denser one.

    Distances are divided by sqrt(D), as in TCFormer's public code, so that they do not grow with the metric's width.
    That code counts a patch among its own neighbours, breaks ties by noise, and uses the largest of all distances for
    the densest patch; this code does none of it. TCFormer weights its means by a learned importance; here means are
    weighted by size alone.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: unused.
        neighbours: k; all other patches, where there are no more than k.

    Returns:
        An assignment to N - r output patches.
    """
    patches, width = metric.shape[1], metric.shape[2] ** 0.5
    squared, nearest = squared_distances(metric, min(neighbours, patches - 1))
    peaked = peakedness(squared, nearest, width).argsort(dim=-1, descending=True, stable=True)

    centres, gone = peaked[:, : patches - r].sort().values, peaked[:, patches - r :]
    # Centres may coincide; each of them still stays separate, so only the others look for the nearest one.
    to_centres = take(squared, gone).gather(2, centres.unsqueeze(1).expand(-1, r, -1))  # (B, r, N - r)
    joined = to_centres.sqrt_().argmin(dim=-1)
    own = torch.arange(patches - r, device=metric.device).expand_as(centres)
    return Assignment(torch.empty_like(peaked).scatter(1, centres, own).scatter(1, gone, joined), patches - r)


def squared_distances(metric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The squared distances between all patches of each image, and those from each patch to its nearest ones.

    On a CPU they are a^2 + b^2 - 2ab in float64, which takes a fraction of the time of subtracting vectors. Its error
    is less than the rounding of float32, except between patches that almost coincide, where a^2 + b^2 and 2ab cancel:
    images with such patches are computed from differences. So is everything where values cannot be looked at.

    Args:
        metric: (B, N, D) float32.
        k: number of nearest patches, less than N.

    Returns:
        (B, N, N) float32; and the k + 1 smallest of each row, ascending, since each patch is at distance 0 from itself.
    """
    if not eager_on_cpu(metric):
        squared = from_differences(metric)
        return squared, squared.topk(k + 1, largest=False).values
    squared, norm = from_products(metric)
    nearest = smallest(squared, k + 1)
    cancelled = (nearest[:, :, 1:2] < CANCELLED * norm.unsqueeze(-1)).flatten(1).any(dim=-1)
    if cancelled.any():
        squared[cancelled] = from_differences(metric[cancelled])
        nearest[cancelled] = smallest(squared[cancelled], k + 1)
    return squared, nearest


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
    """The smallest values of each row, ascending, (B, N, N) -> (B, N, count), on a CPU."""
    # NumPy sorts whole rows by vector instructions in a fraction of the time of topk.
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1)[..., :count])


def peakedness(squared: Tensor, nearest: Tensor, width: float) -> Tensor:
    """log(rho delta) of each patch, (B, N), with distances divided by `width`; rho underflows for distant patches.

    Args:
        squared, nearest: what `squared_distances` returns.
        width: sqrt(D).
    """
    log_density = -(nearest.sqrt() / width).square().sum(dim=-1) / max(nearest.shape[-1] - 1, 1)
    order = log_density.argsort(dim=-1, descending=True, stable=True)
    position = torch.arange(squared.shape[1], device=squared.device, dtype=torch.float32).expand_as(log_density)
    rank = torch.empty_like(log_density).scatter(1, order, position)
    # Infinite where the other patch is not denser. This arithmetic takes a third of the time of a comparison and where.
    not_denser = ((rank + 0.5).unsqueeze(1) - rank.unsqueeze(2)).mul_(torch.inf)
    to_denser = torch.maximum(squared, not_denser).amin(dim=-1)
    densest = order[:, :1]
    to_denser = to_denser.scatter(1, densest, take(squared, densest).amax(dim=-1))
    return log_density + (to_denser.sqrt() / width).log()


DPC_KNN = Merger(dpc_knn, macs=all_pairs_macs)
