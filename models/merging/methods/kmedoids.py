"""Merging by clustering around medoids: Token Pooling.

Marin, Chang, Ranjan, Prabhu, Rastegari, Tuzel: Token Pooling in Vision Transformers for Image Classification. WACV 2023
(arXiv:2110.03860).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ..contract import Assignment, Counts, MergeContext, Merger, Option, all_pairs_macs
from ..tokens import take
from .distances import squared_distances
from .eager import eager_on_cpu

Importance = Literal["attention", "size"]
TIE = 1e-6  # as a fraction of a cluster's least sum of distances: sums that are closer to it tie with it


def kmedoids(
    metric: Tensor,
    r: int,
    context: MergeContext,
    iterations: Annotated[int, Option("how often medoids are moved", least=0)] = 5,
    importance: Annotated[
        Importance, Option("what patches count by: attention from all tokens, or size, which needs no attention")
    ] = "attention",
) -> Assignment:
    """Clusters the patches around N - r medoids, patches that represent the others with the least error.

    With w_i the significance of patch i, the attention that it receives from all tokens, a set S of N - r medoids has
    the reconstruction error

        E(S) = sum_i w_i min_{j in S} |m_i - m_j|^2

    It starts as the N - r patches of greatest significance. An iteration reduces the error as Lloyd's does: each patch
    joins the nearest medoid, and in each cluster C the medoid becomes argmin_{j in C} sum_{i in C} w_i |m_i - m_j|^2.
    After the last one each patch joins the nearest medoid; a medoid always stays its own, also where medoids coincide.
    The output holds the clusters in the order of their medoids. Ties go to the lower position.

    This is the paper's weighted form of K-Medoids. Its output are the medoids themselves; as for all methods here, a
    cluster becomes the size-weighted mean of its patches. The paper compares tokens, here the metric is compared. With
    proportional attention w_i grows with the size of a merged patch.

    `importance: size` is not in the paper: w_i is the patch's size. Sizes alone would start with the first patches of
    the image, so it starts with those that would be missed most, by size_i min_{j < i} |m_i - m_j|^2: of two equal
    patches only the first is. The first patch of all is always among them.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: provides the attention from all tokens, or the sizes.
        iterations: see above. Where no medoid moves any more, further ones change nothing.
        importance: see above.

    Returns:
        An assignment to N - r output patches.
    """
    squared = squared_distances(metric)
    if importance == "attention":
        assert context.attention is not None
        weight = significance = context.attention
    else:
        weight = context.size
        significance = weight * _to_earlier(squared)
    ranked = significance.argsort(dim=1, descending=True, stable=True)
    medoids = ranked[:, : metric.shape[1] - r].sort(dim=1).values
    weighted = squared * weight.unsqueeze(-1)  # row i: what patch i costs, if it is represented by each other
    for _ in range(iterations if r else 0):
        before, medoids = medoids, moved(medoids, joined(squared, medoids), weighted)
        if eager_on_cpu(metric) and torch.equal(before, medoids):
            break
    return Assignment(joined(squared, medoids), metric.shape[1] - r)


def _to_earlier(squared: Tensor) -> Tensor:
    """The squared distance from each patch to the nearest one of lower position, (B, N); infinite for the first."""
    patches = squared.shape[1]
    later = torch.full((patches, patches), torch.inf, device=squared.device).triu()  # of each row: itself and after it
    return torch.maximum(squared, later).amin(dim=-1)


def joined(squared: Tensor, medoids: Tensor) -> Tensor:
    """The medoid, of K, that each patch joins.

    Args:
        squared: squared distances, (B, N, N).
        medoids: positions (B, K), ascending.

    Returns:
        (B, N) int64, from 0 to K - 1; a medoid's own for itself.
    """
    (batch, patches), count = squared.shape[:2], medoids.shape[1]
    stays = squared.new_zeros(batch, patches).scatter(1, medoids, 1.0)
    gone = stays.argsort(dim=1, stable=True)[:, : patches - count]  # all others, in order
    to_medoids = take(squared, gone).gather(2, medoids.unsqueeze(1).expand(-1, patches - count, -1))  # (B, r, K)
    place = stays.cumsum(dim=1).long() - 1
    return place.scatter(1, gone, to_medoids.argmin(dim=-1))


def moved(medoids: Tensor, cluster: Tensor, weighted: Tensor) -> Tensor:
    """The medoids of the clusters that patches have joined.

    At most r clusters have more than one patch, and these have at most 2r patches together: no others are looked at.

    Args:
        medoids: positions (B, K).
        cluster: of each patch, (B, N), from 0 to K - 1.
        weighted: squared distances (B, N, N), each row multiplied by the weight of its patch.

    Returns:
        Positions (B, K), ascending.
    """
    patches, count = cluster.shape[1], medoids.shape[1]
    looked_at = min(2 * (patches - count), patches)
    many = torch.zeros_like(weighted[:, :count, 0]).scatter_add(1, cluster, torch.ones_like(weighted[:, :, 0])) > 1
    members = many.gather(1, cluster).float().argsort(dim=1, descending=True, stable=True)[:, :looked_at]  # (B, M)
    own = cluster.gather(1, members)
    costs = take(weighted, members).gather(2, members.unsqueeze(1).expand(-1, looked_at, -1))  # (B, M, M)
    cost = torch.where(own.unsqueeze(2) == own.unsqueeze(1), costs, 0.0).sum(dim=1)  # (B, M): of each as the medoid
    least = torch.full_like(cost[:, :1], torch.inf).expand(-1, count).scatter_reduce(1, own, cost, "amin")
    best = cost <= least.gather(1, own) * (1 + TIE)
    first = torch.where(best, members, patches)  # those that do not cost the least come after all others
    found = torch.full_like(medoids, patches).scatter_reduce(1, own, first, "amin")
    return torch.where(found < patches, found, medoids).sort(dim=1).values


def macs(counts: Counts, iterations: int, importance: str) -> int:
    """MACs of the distances between all patches, and of all tokens' attention to all tokens where it is used."""
    tokens = counts.patches + counts.prefix
    return all_pairs_macs(counts) + (tokens**2 * counts.embed_dim if importance == "attention" else 0)


def attention(iterations: int, importance: str) -> Literal["all"] | None:
    """The attention that the method uses with these options."""
    return "all" if importance == "attention" else None


KMEDOIDS = Merger(kmedoids, macs=macs, attention=attention)
