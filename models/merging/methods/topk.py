"""Keeping the patches that the class token attends to.

Liang, Ge, Tong, Song, Wang, Xie: Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations (EViT). ICLR 2022, section 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, Counts, MergeContext, Merger, Option, importance_macs
from ..tokens import take

# Replaces smaller attention values, such as a softmax that underflowed: negligible next to any that did not, and large
# enough for its products with tokens and sizes to be normal floating-point numbers.
LEAST_ATTENTION = 1e-20
Importance = Literal["attention", "keys"]


def topk(
    metric: Tensor,
    r: int,
    context: MergeContext,
    prune: Annotated[bool, Option("drop patches instead of fusing them; their mass is lost")] = False,
    importance: Annotated[
        Importance, Option("what patches count by: the class token's attention, or keys, which need no attention")
    ] = "attention",
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

    `importance: keys` is not in the paper: a_i is how far the patch's keys are from the mean key (`distinctness` in
    layer.py), which needs neither attention nor a class token.

    Args:
        metric: (B, N, D) float32, used only with `prune`.
        r: patches to remove, 0 <= r < N.
        context: provides the class token's attention, or what stands for it, and the sizes.
        prune: drop instead of fusing.
        importance: of no effect here; it decides what the context provides.

    Returns:
        An assignment to N - r output patches.
    """
    assert context.attention is not None
    return keep_best(metric, context.attention, r, context.size, prune)


def keep_best(metric: Tensor, score: Tensor, r: int, size: Tensor, prune: bool) -> Assignment:
    """Keeps the patches with the highest scores, and fuses the r + 1 others by their scores, or drops r of them.

    Args:
        metric: (B, N, D) float32, used only with `prune`.
        score: (B, N) float32, not negative.
        r: patches to remove, 0 <= r < N.
        size: (B, N) float32.
        prune: drop instead of fusing.
    """
    patches = metric.shape[1]
    order = score.argsort(dim=-1, descending=True, stable=True)
    if prune:
        return onto_survivors(metric, order, r, drop=r)
    kept = torch.zeros_like(score).scatter(1, order[:, : patches - r - 1], 1.0).bool()
    index = torch.where(kept, kept.cumsum(dim=1) - 1, patches - r - 1)
    weight = score.clamp(min=LEAST_ATTENTION) / size
    return Assignment(index, patches - r, torch.where(kept, 1.0, weight))


def beyond(
    metric: Tensor, threshold: float, context: MergeContext, prune: bool = False, importance: str = "attention"
) -> Assignment:
    """As `topk`, of one image, with the largest r whose patches receive less than 1 - threshold of the attention.

    The class token's attention to all patches, or the sum of what stands for it, counts as 1. What is kept holds the
    threshold or more of it.

    Args:
        metric: (1, N, D) float32.
        threshold: share of the attention; at 0 or less one patch is left.
        context: provides the class token's attention, and the sizes.
        prune, importance: as in `topk`.
    """
    assert context.attention is not None
    ranked = context.attention[0].sort(descending=True).values
    held = ranked.cumsum(0) / ranked.sum().clamp(min=LEAST_ATTENTION)
    kept = min(1 + int((held < threshold).sum()), len(ranked))
    return topk(metric, len(ranked) - kept, context, prune)


def onto_survivors(metric: Tensor, order: Tensor, r: int, *, drop: int) -> Assignment:
    """Assigns the last r patches of `order` (B, N) to the most similar of the others, which keep their original order.

    Args:
        metric: (B, N, D) float32.
        order: the patches, those to be kept first.
        r: patches to remove, 0 <= r < N.
        drop: how many of them, the last, enter no mean and no size.
    """
    batch, patches, _ = metric.shape
    survivors, gone = order[:, : patches - r].sort().values, order[:, patches - r :]
    unit = F.normalize(metric, dim=-1)
    a, b = (take(unit, part) for part in (gone, survivors))
    most_similar = (a @ b.transpose(1, 2)).argmax(dim=-1)  # (B, r)

    place = torch.arange(patches - r, device=metric.device).expand(batch, -1)
    index = torch.empty_like(order).scatter(1, survivors, place).scatter(1, gone, most_similar)
    weight = torch.ones_like(metric[..., 0]).scatter(1, order[:, patches - drop :], 0.0) if drop else None
    return Assignment(index, patches - r, weight)


def macs(counts: Counts, prune: bool, importance: str = "attention") -> int:
    """MACs of what patches count by; with `prune`, also of each dropped with each kept patch."""
    shown = counts.removed * (counts.patches - counts.removed) * counts.metric_dim if prune else 0
    return importance_macs(counts, importance) + shown


def attention(prune: bool, importance: str) -> Literal["class", "keys"]:
    """What the method uses with these options."""
    return "keys" if importance == "keys" else "class"


HELD = "share of the class token's attention that the kept patches hold"
TOPK = Merger(topk, macs=macs, attention=attention, adaptive=beyond, threshold=HELD)
