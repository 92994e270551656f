"""Keeping the patches that the class token attends to.

Liang, Ge, Tong, Song, Wang, Xie: Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations (EViT). ICLR 2022, section 3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, Counts, MergeContext, Merger, Option
from ..tokens import take

# Replaces smaller attention values, such as a softmax that underflowed: negligible next to any that did not, and large
# enough for its products with tokens and sizes to be normal floating-point numbers.
LEAST_ATTENTION = 1e-20


def topk(
    metric: Tensor,
    r: int,
    context: MergeContext,
    prune: Annotated[bool, Option("drop patches instead of fusing them; their mass is lost")] = False,
) -> Assignment:
    """Keeps the patches that the class token attends to most and fuses the r + 1 others into one.

    With a_i the class token's attention to patch i, averaged over the heads, and F the r + 1 patches with the least
    attention:

        x_fused = sum_{i in F} a_i x_i / sum_{i in F} a_i

    The output holds the kept patches in their original order, then the fused patch. Ties go to the lower position. In
    the next block the fused patch is a patch like any other.

    EViT's sum is not divided by its weights; here it is, so that the fused patch is a mean. A merged patch's attention
    includes all patches that it stands for (proportional attention), so the weight is a_i / size_i, and size x weight
    is a_i.

    With `prune`, nothing is fused and **mass is lost**: the r patches with the least attention are dropped and enter no
    mean and no size. On a map they are shown as the kept patch that is most similar to them by the metric.

    Args:
        metric: (B, N, D) float32, used only with `prune`.
        r: patches to remove, 0 <= r < N.
        context: provides the class token's attention, and the sizes.
        prune: drop instead of fusing.

    Returns:
        An assignment to N - r output patches.
    """
    assert context.attention is not None
    patches = metric.shape[1]
    order = context.attention.argsort(dim=-1, descending=True, stable=True)
    if prune:
        return _pruned(metric, order, r)
    kept = torch.zeros_like(context.attention).scatter(1, order[:, : patches - r - 1], 1.0).bool()
    index = torch.where(kept, kept.cumsum(dim=1) - 1, patches - r - 1)
    weight = context.attention.clamp(min=LEAST_ATTENTION) / context.size
    return Assignment(index, patches - r, torch.where(kept, 1.0, weight))


def _pruned(metric: Tensor, order: Tensor, r: int) -> Assignment:
    """Drops the last r patches of `order` (B, N), which lists patches by decreasing attention."""
    batch, patches, _ = metric.shape
    survivors, dropped = order[:, : patches - r].sort().values, order[:, patches - r :]
    unit = F.normalize(metric, dim=-1)
    a, b = (take(unit, part) for part in (dropped, survivors))
    most_similar = (a @ b.transpose(1, 2)).argmax(dim=-1)  # (B, r)

    place = torch.arange(patches - r, device=metric.device).expand(batch, -1)
    index = torch.empty_like(order).scatter(1, survivors, place).scatter(1, dropped, most_similar)
    return Assignment(index, patches - r, torch.ones_like(metric[..., 0]).scatter(1, dropped, 0.0))


def macs(counts: Counts, prune: bool) -> int:
    """MACs of the class token's attention to all tokens; with `prune`, also of each dropped with each kept patch."""
    attention = (counts.patches + counts.prefix) * counts.embed_dim
    if not prune:
        return attention
    return attention + counts.removed * (counts.patches - counts.removed) * counts.metric_dim


TOPK = Merger(topk, macs=macs, attention="class")
