"""The operator that selects which patches to keep: greedy maximisation of facility location, for a batch of images.

The CPU kernel of `select` (sparse.py) updates, in each step, only the rows of the similarity matrix that the last step
changed, which are few after the first steps. The kernel for all other devices is dense and never synchronises with the
device. Both select the same patches, because ties do not depend on rounding. Exact ties are common: two patches that
are nearest to each other and to no other patch gain or lose exactly the same, whichever of them is taken. So any value
within TIE of the best counts as tied with it, and the lower position wins, for every kernel and every batch.
"""

from __future__ import annotations

from math import ceil, log

import torch
from torch import Tensor

from ..tokens import take
from .eager import eager_on_cpu
from .sparse import SPARSE, TIE

__all__ = ["DENSE", "SPARSE", "TIE", "select", "select_directly"]

EPSILON = 0.05  # expected loss of the stochastic form relative to the bound


@torch.library.custom_op("hybridmerge::select", mutates_args=())
def select(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    """Selects the patches to keep.

    Args:
        similarity: (B, N, N) float32, symmetric, at least 0.
        size: (B, N) float32.
        count: number of patches to keep, 1 to N.
        form: "greedy", "elimination" or "stochastic".

    Returns:
        Positions (B, count) int64, ascending.
    """
    return DENSE[form](similarity, size, count)


@select.register_kernel("cpu")
def _(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    return _on_cpu(similarity, size, count, form)


def _on_cpu(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    if form == "stochastic":
        return DENSE[form](similarity, size, count)
    return torch.from_numpy(SPARSE[form](similarity.detach().numpy(), size.detach().numpy(), count))


@select.register_fake
def _(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    return similarity.new_empty(similarity.shape[0], count, dtype=torch.int64)


def select_directly(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    """The same as `select`; where possible without the operator, whose call takes longer than a few steps."""
    return (_on_cpu if eager_on_cpu(similarity) else select)(similarity, size, count, form)


def greedy_dense(similarity: Tensor, size: Tensor, count: int) -> Tensor:
    """Forward greedy: takes, `count` times, the patch j with the greatest sum_i size_i max(sim_ij - best_i, 0)."""
    weighted = similarity * size.unsqueeze(-1)  # (B, N, N): value of patch i if represented by patch j
    best = torch.zeros_like(size)
    taken = torch.zeros_like(size)
    tie = TIE * size.sum(dim=1, keepdim=True)
    kept = []
    for _ in range(count):
        value = torch.maximum(weighted, best.unsqueeze(-1)).sum(dim=1)
        chosen = _first_largest(value - taken, tie)
        kept.append(chosen)
        taken.scatter_(1, chosen, torch.inf)
        best = torch.maximum(best, _column(weighted, chosen))
    return torch.cat(kept, dim=1).sort(dim=1).values


def elimination_dense(similarity: Tensor, size: Tensor, count: int) -> Tensor:
    """Backward: repeatedly drops the patch with the smallest loss, sum_i size_i (best_i - second_i) over the patches i
    that it represents."""
    alive = similarity.clone()
    dropped = torch.zeros_like(size)
    tie = TIE * size.sum(dim=1, keepdim=True)
    for _ in range(similarity.shape[1] - count):
        (best, second), (server, _) = (part.unbind(-1) for part in alive.topk(2, dim=-1))
        loss = dropped.scatter_add(1, server, size * (best - second))
        chosen = _first_largest(-loss, tie)
        dropped.scatter_(1, chosen, torch.inf)
        alive.scatter_(2, chosen.unsqueeze(1).expand(-1, alive.shape[1], -1), -1.0)
    return dropped.argsort(dim=1, stable=True)[:, :count]


def stochastic_dense(similarity: Tensor, size: Tensor, count: int) -> Tensor:
    """Forward greedy where each step considers a sample of the remaining patches, drawn by position and step alone."""
    patches = size.shape[1]
    sample = min(ceil(patches / count * log(1 / EPSILON)), patches)
    weighted = similarity * size.unsqueeze(1)  # row j: value of each patch i if represented by j
    best = torch.zeros_like(size)
    taken = torch.zeros_like(size)
    tie = TIE * size.sum(dim=1, keepdim=True)
    draws = torch.rand(count, patches, generator=torch.Generator().manual_seed(0)).to(size.device)
    kept = []
    for step in range(count):
        rows = (draws[step] - taken).topk(min(sample, patches - step), dim=1).indices  # (B, sample)
        rows = rows.sort(dim=1).values
        candidates = take(weighted, rows)
        value = torch.maximum(candidates, best.unsqueeze(1)).sum(dim=-1)
        chosen = _first_largest(value, tie)
        best = torch.maximum(best, _column(candidates.transpose(1, 2), chosen))
        chosen = rows.gather(1, chosen)
        kept.append(chosen)
        taken.scatter_(1, chosen, torch.inf)
    return torch.cat(kept, dim=1).sort(dim=1).values


def _first_largest(value: Tensor, tie: Tensor) -> Tensor:
    """The first position (B, 1) whose value (B, N) is the greatest, or within tie (B, 1) of it."""
    return (value >= value.amax(dim=1, keepdim=True) - tie).to(torch.uint8).argmax(dim=1, keepdim=True)


def _column(matrix: Tensor, column: Tensor) -> Tensor:
    """One column of each image's matrix: (B, N, M), (B, 1) -> (B, N)."""
    return matrix.gather(2, column.unsqueeze(1).expand(-1, matrix.shape[1], -1)).squeeze(-1)


DENSE = {"greedy": greedy_dense, "elimination": elimination_dense, "stochastic": stochastic_dense}
