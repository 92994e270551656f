"""Sampling patches by their significance, so that images differ in how many they keep.

Fayyaz, Abbasi Koohpayegani, Rezaei Jafari, Sengupta, Vaezi Joze, Sommerlade, Pirsiavash, Gall: Adaptive Token Sampling
for Efficient Vision Transformers (ATS). ECCV 2022 (arXiv:2111.15667).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..contract import Assignment, Counts, MergeContext, Merger, Option
from . import topk
from .topk import LEAST_ATTENTION, onto_survivors


def ats(
    metric: Tensor,
    r: int,
    context: MergeContext,
    prune: Annotated[bool, Option("drop patches instead of fusing them; their mass is lost")] = False,
    adaptive: Annotated[
        bool, Option("keep only the sampled patches, whose number depends on the image; r says how many samples")
    ] = False,
) -> Assignment:
    """Samples the patches evenly by cumulative significance; the others merge into the most similar sampled patch.

    With a_i the class token's attention to patch i, averaged over the heads, and v_i its value, of all heads together,
    the significance of a patch and its cumulative sum over the patches in increasing order of significance are

        S_i = a_i |v_i| / sum_j a_j |v_j|        C_i = sum of S_j over the patches j up to and including i

    K samples are drawn at u_k = (2k - 1) / 2K, k = 1 ... K, without randomness: sample k is the patch whose C_i is
    nearest to u_k. Significant patches span several of these points, and their samples coincide; of patches that are
    not significant, one stands for many.

    As in the paper (`adaptive: true`), those samples are kept, K or fewer: `merge.r` says how many samples a block
    draws, as many as would be left if every block removed r, and their number depends on the image. By default exactly
    N - r patches are kept: the K = N - r samples and, in place of those that coincide, the most significant of the
    patches that were not sampled.

    Differences from the paper, which drops what is not sampled: here it merges, unless `prune`, with which **mass is
    lost** and a dropped patch is shown on a map as the kept one that is most similar. The paper's block computes
    attention for the sampled patches alone; here it is computed for all, then patches are removed. The public code
    spreads its points from the least C_i to 1.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: provides the class token's attention times the norms of the values.
        prune: drop instead of merging.
        adaptive: of no effect here; see `sampled`.

    Returns:
        An assignment to N - r output patches, in their original order.
    """
    significance = _significance(context)
    first = torch.where(_drawn(significance, metric.shape[1] - r), 2.0, 0.0) + significance
    return onto_survivors(metric, first.argsort(dim=1, descending=True, stable=True), r, drop=r if prune else 0)


def sampled(
    metric: Tensor, samples: float, context: MergeContext, prune: bool = False, adaptive: bool = True
) -> Assignment:
    """Keeps those patches of one image, metric (1, N, D), that so many samples hit."""
    drawn = _drawn(_significance(context), int(samples))
    order = drawn.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    r = metric.shape[1] - int(drawn.sum())
    return onto_survivors(metric, order, r, drop=r if prune else 0)


def _significance(context: MergeContext) -> Tensor:
    """The significance of each patch, (B, N), which sums to one."""
    assert context.attention is not None
    attention = context.attention.clamp(min=LEAST_ATTENTION)
    return attention / attention.sum(dim=1, keepdim=True)


def _drawn(significance: Tensor, samples: int) -> Tensor:
    """Which patches so many samples hit, (B, N) bool."""
    order = significance.argsort(dim=1, stable=True)
    cumulative = significance.gather(1, order).cumsum(dim=1)
    points = (torch.arange(samples, device=significance.device) + 0.5) / samples
    nearest = (cumulative.unsqueeze(1) - points.view(1, -1, 1)).abs().argmin(dim=2)  # (B, K)
    return torch.zeros_like(significance).scatter(1, order.gather(1, nearest), 1.0).bool()


def macs(counts: Counts, prune: bool, adaptive: bool) -> int:
    """MACs of the class token's attention to all tokens, and of each removed with each kept patch."""
    return topk.macs(counts, prune=True)


ATS = Merger(ats, macs=macs, attention="class", values=True, adaptive=sampled)
