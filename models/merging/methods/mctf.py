"""Merging by similarity, informativeness and size combined.

Lee, Choi, Kim: Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers (MCTF).
CVPR 2024, section 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, Counts, MergeContext, Merger, Option, halves_macs, importance_macs
from ..tokens import take
from .topk import LEAST_ATTENTION, Importance

SIMILARITY, INFORMATION, SIZE = 1, 1 / 20, 1 / 40  # tau of each criterion, for ImageNet


def mctf(
    metric: Tensor,
    r: int,
    context: MergeContext,
    importance: Annotated[
        Importance, Option("what is informative: attention from all tokens, or keys, which need no attention")
    ] = "attention",
) -> Assignment:
    """Merges patches that are similar, small and receive little attention, in both directions of a bipartite matching.

    With unit vectors v, received attention a (averaged over heads and queries) and sizes s, the score of a pair is

        W_ij = ((v_i . v_j + 1) / 2)^tau_sim  (1 / (a_i a_j))^tau_info  (1 / (s_i s_j))^tau_size

    Of A = patches 0, 2, 4, ... and B = patches 1, 3, 5, ..., the r // 2 of A that score best with their best partner
    in B merge into it; then the r - r // 2 of B that score best with their best partner among the remaining patches of
    A merge into that partner, together with the patches that they absorbed. A fused patch is
    sum a_i s_i x_i / sum a_i s_i over its parts. The output holds the remaining patches of A, then of B, in their
    original order. Ties go to the lower position.

    The second direction uses the scores of the first, as in the public code, not those of the fused patches. That code
    stops at r = N // 2; matching in both directions can go up to N - 1. Not implemented: one-step-ahead attention (a is
    this block's attention, where the paper computes the next block's and reuses it there) and the consistency loss.

    `importance: keys` is not in the paper: a is how far the patch's keys are from the mean key (`distinctness` in
    layer.py), in place of all tokens' attention to all tokens.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: provides the attention from all tokens, or what stands for it, and the sizes.
        importance: of no effect here; it decides what the context provides.

    Returns:
        An assignment to N - r output patches.
    """
    assert context.attention is not None
    patches, first = metric.shape[1], r // 2
    attention = context.attention.clamp(min=LEAST_ATTENTION)
    score = log_score(metric, attention, context.size)  # (B, A, B)

    best, into_b = score.max(dim=2)
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    gone_a = torch.zeros_like(best).scatter(1, ranked[:, :first], 1.0).bool()
    left = ranked[:, first:].sort().values
    best, into_a = take(score, left).max(dim=1)
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    gone_b = torch.zeros_like(best).scatter(1, ranked[:, : r - first], 1.0).bool()

    of_b = torch.where(gone_b, into_a, left.shape[1] + (~gone_b).cumsum(dim=1) - 1)
    of_a = torch.where(gone_a, of_b.gather(1, into_b), (~gone_a).cumsum(dim=1) - 1)
    index = torch.empty(metric.shape[:2], dtype=torch.int64, device=metric.device)
    index[:, 0::2], index[:, 1::2] = of_a, of_b
    return Assignment(index, patches - r, attention)


def log_score(metric: Tensor, attention: Tensor, size: Tensor) -> Tensor:
    """log W of patches 0, 2, 4, ... with patches 1, 3, 5, ..., (B, ceil(N / 2), N // 2); -inf for opposite vectors."""
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: similarity 0 to everything
    cosine = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    own = -INFORMATION * attention.log() - SIZE * size.log()
    # In place: for matrices of this size, allocating memory takes longer than the arithmetic.
    similarity = cosine.add_(1).div_(2).clamp_(min=0).log_().mul_(SIMILARITY)
    return similarity.add_(own[:, 0::2, None]).add_(own[:, None, 1::2])


def macs(counts: Counts, importance: str) -> int:
    """MACs of what patches count by, and of comparing one half of the patches with the other."""
    all_to_all = (counts.patches + counts.prefix) ** 2 * counts.embed_dim
    return halves_macs(counts) + (all_to_all if importance == "attention" else importance_macs(counts, importance))


def attention(importance: str) -> Literal["all", "keys"]:
    """What the method uses with these options."""
    return "keys" if importance == "keys" else "all"


MCTF = Merger(mctf, macs=macs, attention=attention)
