"""Merging by bottom-up clustering.

Haurum, Escalera, Taylor, Moeslund: Agglomerative Token Clustering (ATC). ECCV 2024 (arXiv:2409.11923). Distances to a
new cluster follow from those to its two parts (Lance, Williams: A General Theory of Classificatory Sorting Strategies,
The Computer Journal 9, 1967).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, MergeContext, Merger, Option, all_pairs_macs
from ..tokens import take
from .eager import eager_on_cpu

Linkage = Literal["average", "complete", "single"]
TIE = 1e-6  # cosine distances that are closer than this tie
BEYOND = 3.0  # more than any cosine distance

# The distance of a cluster from the union of two others: from its distances a and b to these, and the numbers of their
# members m and n. The first argument is the library, numpy or torch.
UNION: dict[str, Callable[..., Any]] = {
    "average": lambda library, a, b, m, n: (m * a + n * b) / (m + n),
    "complete": lambda library, a, b, m, n: library.maximum(a, b),
    "single": lambda library, a, b, m, n: library.minimum(a, b),
}


def atc(
    metric: Tensor,
    r: int,
    context: MergeContext,
    linkage: Annotated[Linkage, Option("distance of clusters: mean, most or least of pairs of members")] = "average",
) -> Assignment:
    """Joins, r times, the two clusters that are closest to each other; at first every patch is a cluster.

    Patches are compared by d(i, j) = 1 - cos(m_i, m_j), clusters A and B by the linkage:

        average    1 / (|A| |B|) sum_{i in A, j in B} d(i, j)
        complete   max_{i in A, j in B} d(i, j)
        single     min_{i in A, j in B} d(i, j)

    The output holds the clusters in the order of their first patches. Ties go to the pair whose first cluster is lower,
    then to the lower second one. Distances within 1e-6 of the least count as tied with it, so that the result does not
    depend on rounding, which depends on the batch.

    The paper reports all three linkages. A patch counts once in the average, whatever its size: here as there, clusters
    begin anew in every block. As for all methods here, means are weighted by size.

    On a CPU a step looks at the rows whose nearest cluster was one of the two that join; the minima of all other rows
    stay as they are, because no linkage puts a union nearer than its nearer part. Elsewhere a step is a few operations
    on all of the matrix, which never wait for the device.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: unused.
        linkage: see above.

    Returns:
        An assignment to N - r output patches.
    """
    distance = cosine_distance(metric)
    if eager_on_cpu(metric):
        first = torch.from_numpy(agglomerated(distance.detach().numpy(), r, linkage))
    else:
        first = agglomerated_dense(distance, r, linkage)
    return _clusters(first, metric.shape[1] - r)


def similar(metric: Tensor, threshold: float, context: MergeContext, linkage: str = "average") -> Assignment:
    """As `atc`, of one image, metric (1, N, D), for as long as two clusters are more similar than the threshold.

    The similarity of two clusters is 1 minus their distance by the linkage.
    """
    patches, distance = int(metric.shape[1]), cosine_distance(metric)
    found = agglomerated(distance.detach().cpu().numpy().copy(), patches - 1, linkage, 1 - threshold)
    count = len(np.unique(found))
    if eager_on_cpu(metric):
        return _clusters(torch.from_numpy(found), count)
    return _clusters(agglomerated_dense(distance, patches - count, linkage), count)


def cosine_distance(metric: Tensor) -> Tensor:
    """1 - cos of all pairs, metric (B, N, D) -> (B, N, N), symmetric to the last bit."""
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: distance 1 to everything
    half = unit @ (unit / -2).transpose(1, 2)
    distance = (half + half.transpose(1, 2)).add_(1)
    return distance.nan_to_num(2.0)  # of patches that are not finite: far from all others, so that pairs are found


def _clusters(first: Tensor, count: int) -> Assignment:
    """The first patch of each patch's cluster (B, N) as an assignment to so many clusters."""
    place = (first == torch.arange(first.shape[1], device=first.device)).cumsum(dim=1) - 1
    return Assignment(place.gather(1, first), count)


def agglomerated(distance: np.ndarray, r: int, linkage: str, within: float = np.inf) -> np.ndarray:
    """The first patch of the cluster that each patch is in, (B, N) int64.

    Args:
        distance: (B, N, N) float32, symmetric; what is on its diagonal does not matter. It is overwritten.
        r: how many pairs join.
        linkage: a key of UNION.
        within: it ends earlier where no two clusters of any image are nearer than this.
    """
    batch, patches, _ = distance.shape
    distance = np.ascontiguousarray(distance)  # so that `rows` is the same memory
    union, rows = UNION[linkage], distance.reshape(batch * patches, patches)
    image, everyone = np.arange(batch), np.arange(patches)
    distance[:, everyone, everyone] = np.inf
    nearest = distance.min(axis=2)  # how near the nearest other cluster is; beyond all others for one that has joined
    first, members = np.tile(everyone, (batch, 1)), np.ones((batch, patches), np.float32)
    for _ in range(r):
        least = nearest.min(axis=1, keepdims=True)
        if least.min() >= within:
            break
        tied = least + TIE
        a = (nearest <= tied).argmax(axis=1)
        to_a = rows[image * patches + a]
        b = (to_a <= tied).argmax(axis=1)  # behind a, which is the lowest of all that are as near
        to_b = rows[image * patches + b]
        changed = np.flatnonzero(np.minimum(to_a, to_b) <= nearest)
        both = union(np, to_a, to_b, members[image, a][:, None], members[image, b][:, None])
        both[image, a] = both[image, b] = np.inf
        rows[image * patches + a] = distance[image, :, a] = both
        rows[image * patches + b] = distance[image, :, b] = np.inf
        nearest.reshape(-1)[changed] = rows[changed].min(axis=1)
        nearest[image, a], nearest[image, b] = both.min(axis=1), BEYOND  # the nearest of a was b, or tied with it
        members[image, a] += members[image, b]
        np.copyto(first, a[:, None], where=first == b[:, None])
    return first


def agglomerated_dense(distance: Tensor, r: int, linkage: str) -> Tensor:
    """The same, (B, N, N) -> (B, N), by operations that do not depend on values."""
    batch, patches, _ = distance.shape
    union, members = UNION[linkage], torch.ones_like(distance[:, 0])
    distance = torch.where(torch.eye(patches, dtype=torch.bool, device=distance.device), torch.inf, distance)
    first = torch.arange(patches, device=distance.device).expand(batch, -1)
    for _ in range(r):
        nearest = distance.amin(dim=2)
        tied = nearest.amin(dim=1, keepdim=True) + TIE
        a = _first(nearest <= tied)
        to_a = take(distance, a).squeeze(1)
        b = _first(to_a <= tied)
        to_b = take(distance, b).squeeze(1)
        of_a, of_b = members.gather(1, a), members.gather(1, b)
        pair = torch.cat([a, b], dim=1)
        both = union(torch, to_a, to_b, of_a, of_b).scatter(1, pair, torch.inf)
        rows = torch.stack([both, torch.full_like(both, torch.inf)], dim=1)  # (B, 2, N): of the union, and of none
        to = pair.unsqueeze(2).expand(-1, -1, patches)
        distance = distance.scatter(1, to, rows).scatter(2, to.transpose(1, 2), rows.transpose(1, 2))
        members = members.scatter(1, a, of_a + of_b)
        first = torch.where(first == b, a, first)
    return first


def _first(mask: Tensor) -> Tensor:
    """The first position that is true, (B, N) -> (B, 1)."""
    return mask.to(torch.uint8).argmax(dim=1, keepdim=True)


CLUSTERS = "similarity by the linkage above which two clusters join"
ATC = Merger(atc, macs=all_pairs_macs, adaptive=similar, threshold=CLUSTERS)
