"""Token merging by bipartite soft matching.

Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman: Token Merging: Your ViT But Faster. ICLR 2023, section 3, appendix D.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.merging.tokens import Assignment, MergeContext


def tome(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Splits the patches in two by position; the r sources most similar to their best destination merge into it.

    Sources are patches 1, 3, 5, ..., destinations 0, 2, 4, .... With unit vectors m, source i's best destination is
    argmax_j m_i . m_j. The output holds the sources that stay, in their old order, then all destinations. Ties go to
    the lower position.

    Args:
        metric: (B, N, C) float32, the keys' mean over the heads.
        r: tokens to remove, 0 <= r <= N // 2.
        context: not looked at.

    Returns:
        An assignment to N - r output patches.
    """
    batch, patches, _ = metric.shape
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: similarity 0 to everything
    destinations, sources = unit[:, 0::2], unit[:, 1::2]
    best, partner = (sources @ destinations.transpose(1, 2)).max(dim=-1)  # (B, N // 2)

    ranked = best.argsort(dim=-1, descending=True, stable=True)
    gone = torch.zeros_like(best).scatter(1, ranked[:, :r], 1.0).bool()
    kept = best.shape[1] - r
    place = (~gone).cumsum(dim=1) - 1  # the kept sources close ranks
    index = metric.new_empty(batch, patches, dtype=torch.int64)
    index[:, 1::2] = torch.where(gone, kept + partner, place)
    index[:, 0::2] = torch.arange(kept, patches - r, device=metric.device)
    return Assignment(index, patches - r)
