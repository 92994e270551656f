"""Removing the patches that the class token attends to least: some are dropped, the others merge.

Chen, Shao, Xu, Lin, Zhang, Chao, Ji, Qiao, Luo: DiffRate: Differentiable Compression Rate for Efficient Vision
Transformers. ICCV 2023, section 3 (arXiv:2305.17997). How many patches each block removes, which the paper learns, is a
schedule here, for every method: see `fit_schedule` in ../fitting.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ..contract import Assignment, Counts, MergeContext, Merger, Option
from . import topk
from .topk import onto_survivors


def diffrate(
    metric: Tensor,
    r: int,
    context: MergeContext,
    pruned: Annotated[
        float, Option("share of the removed patches that is dropped, the least attended; their mass is lost", 0, 1)
    ] = 0.0,
) -> Assignment:
    """Removes the r patches with the least attention: the last of them are dropped, the others merge.

    Patches are sorted by the class token's attention to them, averaged over the heads. The N - r most attended are
    kept. Of the r others, the p = round(pruned r) least attended are dropped, and each of the rest merges into the kept
    patch that is most similar to it (cosine of the metric). The output holds the kept patches in their original order.
    Ties go to the lower position.

    With `pruned`, **mass is lost**: a dropped patch enters no mean and no size. On a map it is shown as the kept patch
    that is most similar to it.

    Differences from the paper: it learns both numbers for each block, how many patches are dropped and how many merge;
    here p is the same share in every block. In a mean, patches count by their sizes.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: provides the class token's attention.
        pruned: see above; halves are rounded up.

    Returns:
        An assignment to N - r output patches.
    """
    assert context.attention is not None
    order = context.attention.argsort(dim=1, descending=True, stable=True)
    return onto_survivors(metric, order, r, drop=int(pruned * r + 0.5))


def macs(counts: Counts, pruned: float) -> int:
    """MACs of the class token's attention to all tokens, and of each removed with each kept patch."""
    return topk.macs(counts, prune=True)


DIFFRATE = Merger(diffrate, macs=macs, attention="class")
