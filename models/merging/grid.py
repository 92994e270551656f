"""Merging that leaves a grid: first within rows, then within columns, always neighbours.

After Gong, Lis: CubistMerge: Spatial-Preserving Token Merging For Diverse ViT Backbones. arXiv:2509.21764, 2025. Theirs
are the two steps and the matching: along a line, patches at odd places are sources, their neighbours at even places
the destinations, and every line merges the same number. Here a token is the size-weighted mean of its patches
(theirs: in each channel the value of greatest magnitude), what is compared is the metric (theirs: the tokens), and how
many columns and rows go follows from a budget of patches (theirs: a fixed number of each per block).
"""

from __future__ import annotations

from math import prod

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .contract import Assignment, Grid, MergeContext


def narrowed(grid: Grid, r: int) -> Grid:
    """The grid after taking away whole columns and rows, at most r patches.

    Again and again the longer side gets shorter by one, a column where both are equal, until the next one would exceed
    r. A side that is down to half, rounded up, stays there and the other one goes on. The longer side is also the
    cheaper one, so where it exceeds what is left of r, so does the other; and asked for exactly what it took away, it
    takes the same steps.
    """
    rows, columns = grid
    fewest_rows, fewest_columns = -(-rows // 2), -(-columns // 2)
    while True:
        if columns > fewest_columns and (columns >= rows or rows == fewest_rows):
            cost, smaller = rows, (rows, columns - 1)
        elif rows > fewest_rows:
            cost, smaller = columns, (rows - 1, columns)
        else:
            return rows, columns
        if cost > r:
            return rows, columns
        r -= cost
        rows, columns = smaller


def grid(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Each row merges its most similar neighbours, then each column of what is left does, to what `narrowed` says.

    Between the steps the metric of merged patches is their size-weighted mean. Order is kept: of two patches in one
    row, the left one never ends up to the right of the other, nor, in one column of the second step, the upper below.
    Places are not: rows merge at places of their own, so that what stands in one column need not stand straight below
    each other in the image.

    Args:
        metric: (B, N, D) float32 on the context's grid, in row order.
        r: what `narrowed` removes from this grid.
        context: its grid and sizes.

    Returns:
        An assignment to the smaller grid, in row order.
    """
    rows, columns = context.grid
    smaller = narrowed(context.grid, r)
    column = joined(rearrange(metric, "b (h w) d -> b h w d", h=rows), columns - smaller[1])  # (B, rows, columns)

    cell = (torch.arange(rows, device=metric.device)[:, None] * smaller[1] + column).flatten(1)
    # A sum will do for the mean: the cosine does not see its length.
    total = metric.new_zeros(metric.shape[0], rows * smaller[1], metric.shape[2])
    total = total.scatter_add(1, cell.unsqueeze(-1).expand_as(metric), metric * context.size.unsqueeze(-1))
    row = joined(rearrange(total, "b (h w) d -> b w h d", h=rows), rows - smaller[0])  # (B, fewer columns, rows)

    index = row.transpose(1, 2).gather(2, column) * smaller[1] + column
    return Assignment(index.flatten(1), prod(smaller), grid=smaller)


def joined(lines: Tensor, r: int) -> Tensor:
    """Bipartite soft matching between neighbours: in each line, r places at odd positions join one beside them.

    With unit vectors m, the source at place i = 1, 3, ... is as good as max(m_i . m_(i-1), m_i . m_(i+1)); the r best
    ones merge. Ties go to the lower place. Up to three places can become one.

    Args:
        lines: (B, L, n, D) float32.
        r: at most n // 2.

    Returns:
        For each place the number of the one that it becomes, (B, L, n) int64, rising along the line to n - r - 1.
    """
    count = lines.shape[2]
    if r == 0:
        return torch.arange(count, device=lines.device).expand(lines.shape[:3])
    unit = F.normalize(lines, dim=-1)
    alike = (unit[:, :, :-1] * unit[:, :, 1:]).sum(-1)  # (B, L, n - 1): each place and the next
    before = alike[:, :, 0::2]
    after = F.pad(alike[:, :, 1::2], (0, 1 - count % 2), value=-torch.inf)  # a last place has none after it
    ranked = torch.maximum(before, after).argsort(dim=-1, descending=True, stable=True)
    gone = torch.zeros_like(before).scatter(2, ranked[:, :, :r], 1.0).bool()

    joins_previous = torch.zeros_like(lines[..., 0], dtype=torch.int64)  # 1: one with the place before it
    joins_previous[:, :, 1::2] = gone & (before >= after)
    joins_previous[:, :, 2::2] = (gone & (before < after))[:, :, : (count - 1) // 2]
    return (1 - joins_previous).cumsum(dim=-1) - 1
