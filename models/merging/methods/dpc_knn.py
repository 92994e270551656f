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
    patches, dim = metric.shape[1:]
    # Not as a^2 + b^2 - 2ab: cancellation makes that inexact between neighbours, where it matters most.
    distance = torch.cdist(metric, metric, compute_mode="donot_use_mm_for_euclid_dist") / dim**0.5
    peaked = peakedness(distance, min(neighbours, patches - 1)).argsort(dim=-1, descending=True, stable=True)

    centres = peaked[:, : patches - r].sort().values
    nearest = distance.gather(2, centres.unsqueeze(1).expand(-1, patches, -1)).argmin(dim=-1)
    # Centres may coincide; each of them still stays separate.
    own = torch.arange(patches - r, device=metric.device).expand_as(centres)
    return Assignment(nearest.scatter(1, centres, own), patches - r)


def peakedness(distance: Tensor, k: int) -> Tensor:
    """log(rho delta) of each patch, (B, N), from all distances (B, N, N); rho itself underflows for distant patches."""
    # The k + 1 smallest, since each patch is at distance 0 from itself.
    log_density = -distance.topk(k + 1, largest=False).values.square().sum(dim=-1) / max(k, 1)
    position = torch.arange(distance.shape[1], device=distance.device)
    mine, other = log_density.unsqueeze(2), log_density.unsqueeze(1)
    denser = (other > mine) | ((other == mine) & (position < position.unsqueeze(1)))
    to_denser = distance.masked_fill(~denser, torch.inf).amin(dim=-1)
    return log_density + torch.where(to_denser.isinf(), distance.amax(dim=-1), to_denser).log()


DPC_KNN = Merger(dpc_knn, macs=all_pairs_macs)
