"""The baselines that a merging method has to beat: no merging, random merging, and average pooling."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..contract import Assignment, Grid, MergeContext, Merger, no_macs


def none_at_all(patches: int) -> int:
    """The most that `none` can remove."""
    return 0


def none(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Merges nothing, whatever r is: by its entry in MERGERS it can remove no patch."""
    index = torch.arange(metric.shape[1], device=metric.device).expand(metric.shape[:2])
    return Assignment(index, metric.shape[1], grid=context.grid)


def random(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Merges r patches drawn at random into patches drawn at random from the remaining ones.

    The draw depends on position, N and r alone, through a multiplicative hash (Knuth, TAOCP 3, 6.4): all images are
    treated alike, and the result for an image depends neither on the rest of the batch nor on rounding.

    Args:
        metric: (B, N, D); only its shape is used.
        r: patches to remove, 0 <= r < N.
        context: unused.

    Returns:
        An assignment to N - r output patches; the remaining patches keep their order.
    """
    batch, patches, _ = metric.shape
    position = torch.arange(patches, device=metric.device)
    draw = _hash(position + 1_000 * patches + 1_000_003 * r)
    order = draw.argsort(stable=True)
    gone = torch.zeros(patches, device=metric.device).scatter(0, order[:r], 1.0).bool()
    partner = _hash(draw) % (patches - r)
    index = torch.where(gone, partner, (~gone).cumsum(0) - 1)
    return Assignment(index.expand(batch, -1), patches - r)


def _hash(value: Tensor) -> Tensor:
    """32 pseudo-random bits, int64 -> int64 in [0, 2^32)."""
    for _ in range(2):
        value = (value * 2_654_435_761) % 2**32
        value = value ^ (value >> 15)
    return value


def pooled(grid: Grid, r: int) -> Grid:
    """The grid after 2 x 2 pooling if that removes at most r patches, otherwise the same grid."""
    rows, columns = grid
    smaller = (-(-rows // 2), -(-columns // 2))
    return smaller if rows * columns - smaller[0] * smaller[1] <= r else grid


def pool(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Average pooling: each 2 x 2 cell of the grid becomes one patch; cells at an odd edge are smaller.

    Args:
        metric: (B, N, D); only its shape is used.
        r: the number of patches that pooling removes from this grid.
        context: provides the grid.

    Returns:
        An assignment to ceil(rows / 2) x ceil(columns / 2) output patches, in row order.
    """
    assert context.grid is not None
    rows, columns = context.grid
    smaller = pooled(context.grid, r)
    row = torch.arange(rows, device=metric.device) // 2
    column = torch.arange(columns, device=metric.device) // 2
    index = rearrange(row[:, None] * smaller[1] + column, "h w -> (h w)")
    return Assignment(index.expand(metric.shape[0], -1), smaller[0] * smaller[1], grid=smaller)


NONE = Merger(none, none_at_all, no_macs)
RANDOM = Merger(random, macs=no_macs)
POOL = Merger(pool, macs=no_macs, shrink=pooled)
