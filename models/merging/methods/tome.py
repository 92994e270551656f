"""Token merging by bipartite soft matching.

Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman: Token Merging: Your ViT But Faster. ICLR 2023, section 3, appendix D.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, Counts, MergeContext, Merger, Option

# What the threshold of `above` is; for other methods that match as `tome` does, too.
SIMILARITY = "cosine of the metrics above which a pair merges"


def tome(
    metric: Tensor,
    r: int,
    context: MergeContext,
    kth: Annotated[int, Option("every kth patch is a destination", least=2)] = 2,
) -> Assignment:
    """Splits the patches into sources and destinations; the r best-matched sources merge into their destinations.

    Destinations are patches 0, k, 2k, ..., sources all others: with k = 2, every second patch. With unit vectors m,
    source i's best destination is argmax_j m_i . m_j; the r sources most similar to their best destination merge. The
    output holds the remaining sources in their original order, then all destinations. Ties go to the lower position.
    Sources behind the last destination are treated like all others, so no N mod k patches are left over.

    Args:
        metric: (B, N, D) float32, by default the keys averaged over the heads.
        r: patches to remove, 0 <= r <= N - ceil(N / k).
        context: unused.
        kth: the distance k between destinations, at least 2.

    Returns:
        An assignment to N - r output patches.
    """
    return _merged(*_matched(metric, kth), metric.shape[1], r, kth)


def above(metric: Tensor, threshold: float, context: MergeContext, kth: int = 2) -> Assignment:
    """Merges every source that is more similar than the threshold to its best destination: as `tome` with their number.

    Args:
        metric: (1, N, D) float32, of one image.
        threshold: cosine of metrics, -1 to 1.
        context: unused.
        kth: as in `tome`.

    Returns:
        An assignment to as many patches as are left.
    """
    best, partner = _matched(metric, kth)
    return _merged(best, partner, metric.shape[1], int((best > threshold).sum()), kth)


def _places(patches: int, kth: int) -> tuple[slice, slice | list[int]]:
    """The positions of the destinations and of the sources among so many patches."""
    return slice(0, None, kth), slice(1, None, 2) if kth == 2 else [i for i in range(patches) if i % kth]


def _matched(metric: Tensor, kth: int) -> tuple[Tensor, Tensor]:
    """Metric (B, N, D) -> each source's similarity to its best destination, and which that is, both (B, sources)."""
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: similarity 0 to everything
    to, of = _places(metric.shape[1], kth)
    best, partner = (unit[:, of] @ unit[:, to].transpose(1, 2)).max(dim=-1)
    return best, partner


def _merged(best: Tensor, partner: Tensor, patches: int, r: int, kth: int) -> Assignment:
    """Merges the r sources of so many patches that match best; best and partner as `_matched` returns them."""
    to, of = _places(patches, kth)
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    gone = torch.zeros_like(best).scatter(1, ranked[:, :r], 1.0).bool()
    kept = best.shape[1] - r
    place = (~gone).cumsum(dim=1) - 1  # positions of the remaining sources in the output
    index = torch.empty(best.shape[0], patches, dtype=torch.int64, device=best.device)
    index[:, of] = torch.where(gone, kept + partner, place)
    index[:, to] = torch.arange(kept, patches - r, device=best.device)
    return Assignment(index, patches - r)


def every_source(patches: int, kth: int) -> int:
    """The most that `tome` can remove: all patches but every kth."""
    return patches - -(-patches // kth)


def macs(counts: Counts, kth: int) -> int:
    """MACs of comparing every source with every destination."""
    sources = every_source(counts.patches, kth)
    return sources * (counts.patches - sources) * counts.metric_dim


TOME = Merger(tome, every_source, macs, adaptive=above, threshold=SIMILARITY)
