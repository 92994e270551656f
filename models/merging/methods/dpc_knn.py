"""Merging by clustering around density peaks.

Du, Ding, Jia: Study on Density Peaks Clustering Based on k-Nearest Neighbors and Principal Component Analysis.
Knowledge-Based Systems 99, 2016. As a way to merge tokens: Zeng, Jin, Liu, Qian, Luo, Ouyang, Wang: Not All Tokens Are
Equal: Human-centric Visual Analysis via Token Clustering Transformer (TCFormer). CVPR 2022, section 3.2.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..contract import Assignment, MergeContext, Merger, Option, all_pairs_macs
from ..tokens import take
from .distances import smallest, squared_distances


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
    squared = squared_distances(metric)
    nearest = smallest(squared, min(neighbours, patches - 1) + 1)  # a patch is at distance 0 from itself
    peaked = peakedness(squared, nearest, width).argsort(dim=-1, descending=True, stable=True)

    centres, gone = peaked[:, : patches - r].sort().values, peaked[:, patches - r :]
    # Centres may coincide; each of them still stays separate, so only the others look for the nearest one.
    to_centres = take(squared, gone).gather(2, centres.unsqueeze(1).expand(-1, r, -1))  # (B, r, N - r)
    joined = to_centres.sqrt_().argmin(dim=-1)
    own = torch.arange(patches - r, device=metric.device).expand_as(centres)
    return Assignment(torch.empty_like(peaked).scatter(1, centres, own).scatter(1, gone, joined), patches - r)


def peakedness(squared: Tensor, nearest: Tensor, width: float) -> Tensor:
    """log(rho delta) of each patch, (B, N), with distances divided by `width`; rho underflows for distant patches.

    Args:
        squared: squared distances, (B, N, N).
        nearest: the k + 1 smallest of each row, (B, N, k + 1).
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
