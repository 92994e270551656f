"""Token Fusion: pruning where the network is far from linear, merging with the norm kept where it is nearly linear.

Kim, Gao, Hsu, Shen, Jin: Token Fusion: Bridging the Gap between Token Pruning and Token Merging (ToFu). WACV 2024
(arXiv:2312.01026).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..contract import Assignment, MergeContext, Merger, Option, half, halves_macs
from .tome import SIMILARITY, above, tome


def tofu(
    metric: Tensor,
    r: int,
    context: MergeContext,
    prune_until: Annotated[
        float, Option("share of the blocks, from the first, that prune; their patches' mass is lost", least=0, most=1)
    ] = 0.0,
    norm: Annotated[bool, Option("merge by MLERP, which keeps the greatest norm; false: the plain mean")] = True,
) -> Assignment:
    """Matches patches as `tome` does; early blocks drop the r sources that match best, later ones merge them.

    Later blocks merge by MLERP: with mean the size-weighted mean of the members x_i of an output patch, it becomes

        MLERP(x_1, ..., x_n) = mean / |mean| max_i |x_i|

    The mean of different vectors is shorter than they are, and the network has not learned from such tokens. MLERP has
    its direction and the greatest norm of the members. A patch that merges with none stays as it is. Where the mean is
    shorter than a thousandth of that norm it has no direction and stays as it is.

    In early blocks the network's answer is far from linear in its tokens, so that a mean of two does not stand for
    both, and sources are dropped instead: here in blocks whose number, counted from 0, divided by the number of blocks
    is less than `prune_until`. **The mass of these patches is lost**: they enter no mean and no size. On a map they are
    shown as the destination that they matched. Where a network becomes linear depends on the network, so the default is
    never.

    The paper's means are not weighted; here they are weighted by size, as for all methods. The paper matches by the
    tokens' features; here the metric is compared.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r <= N // 2.
        context: provides the depth.
        prune_until: see above.
        norm: see above.

    Returns:
        An assignment to N - r output patches.
    """
    return _fused(tome(metric, r, context), context, prune_until, norm)


def fused_above(
    metric: Tensor, threshold: float, context: MergeContext, prune_until: float = 0.0, norm: bool = True
) -> Assignment:
    """As `tofu`, of the pairs of one image, metric (1, N, D), that are more similar than a threshold."""
    return _fused(above(metric, threshold, context), context, prune_until, norm)


def _fused(matched: Assignment, context: MergeContext, prune_until: float, norm: bool) -> Assignment:
    """Makes of `tome`'s assignment that of `tofu`: sources are dropped, or means keep their norm."""
    index, count, *_ = matched
    if context.depth >= prune_until:
        return Assignment(index, count, keep_norm=norm)
    remaining = count - (index.shape[1] + 1) // 2  # sources, which come first in the output
    weight = torch.ones_like(context.size)
    weight[:, 1::2] = (index[:, 1::2] < remaining).float()
    return Assignment(index, count, weight)


# Norms are element-wise, which no count of MACs includes.
TOFU = Merger(tofu, half, halves_macs, adaptive=fused_above, threshold=SIMILARITY)
