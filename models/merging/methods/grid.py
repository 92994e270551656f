"""Merging neighbours so that a grid remains: first within rows, then within columns.

After Gong, Lis: CubistMerge: Spatial-Preserving Token Merging For Diverse ViT Backbones. arXiv:2509.21764, 2025. The
two steps and the matching are from the paper: along a line, patches at odd places are sources, their neighbours at even
places are destinations, and every line merges the same number. Here a token is the size-weighted mean of its patches
(paper: the value of greatest magnitude in each channel), the metric is compared (paper: the tokens), and the numbers of
columns and rows to remove follow from a budget of patches (paper: fixed numbers per block).
"""

from __future__ import annotations

from math import prod

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, Grid, MergeContext, Merger, no_macs


def narrowed(grid: Grid, r: int) -> Grid:
    """The grid after removing whole columns and rows, at most r patches in total.

    The longer side is shortened by one repeatedly (a column where both sides are equal) until the next step would
    exceed r. A side that has reached half its length, rounded up, stays as it is, and the other side continues.
    Shortening the longer side is also the cheaper step: where it exceeds the remaining r, so does the other one. Called
    with exactly the number of patches that it removed, this function takes the same steps again.
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
    """Merges the most similar neighbours within each row, then within each remaining column, to the size of `narrowed`.

    Between the steps the metric of merged patches is their size-weighted mean. Order is preserved: of two patches in
    one row, the left one never ends up to the right of the other; likewise in one column of the second step. Alignment
    is not: each row merges at its own places, so patches in one column of the result need not be vertically aligned in
    the image.

    Args:
        metric: (B, N, D) float32 on the context's grid, in row order.
        r: the number of patches that `narrowed` removes from this grid.
        context: provides the grid and the sizes.

    Returns:
        An assignment to the smaller grid, in row order.
    """
    assert context.grid is not None
    rows, columns = context.grid
    smaller = narrowed(context.grid, r)
    column = joined(rearrange(metric, "b (h w) d -> b h w d", h=rows), columns - smaller[1])  # (B, rows, columns)

    cell = (torch.arange(rows, device=metric.device)[:, None] * smaller[1] + column).flatten(1)
    # A sum can replace the mean: the cosine does not depend on the length.
    total = metric.new_zeros(metric.shape[0], rows * smaller[1], metric.shape[2])
    total = total.scatter_add(1, cell.unsqueeze(-1).expand_as(metric), metric * context.size.unsqueeze(-1))
    row = joined(rearrange(total, "b (h w) d -> b w h d", h=rows), rows - smaller[0])  # (B, fewer columns, rows)

    index = row.transpose(1, 2).gather(2, column) * smaller[1] + column
    return Assignment(index.flatten(1), prod(smaller), grid=smaller)


def joined(lines: Tensor, r: int) -> Tensor:
    """Bipartite soft matching between neighbours: in each line, r places at odd positions join an adjacent place.

    With unit vectors m, the score of the source at place i = 1, 3, ... is max(m_i . m_(i-1), m_i . m_(i+1)); the r
    sources with the highest scores merge. Ties go to the lower place. Up to three places can become one.

    Args:
        lines: (B, L, n, D) float32.
        r: at most n // 2.

    Returns:
        For each place the index of its output place, (B, L, n) int64, increasing along the line to n - r - 1.
    """
    count = lines.shape[2]
    if r == 0:
        return torch.arange(count, device=lines.device).expand(lines.shape[:3])
    unit = F.normalize(lines, dim=-1)
    alike = (unit[:, :, :-1] * unit[:, :, 1:]).sum(-1)  # (B, L, n - 1): similarity of each place and the next
    before = alike[:, :, 0::2]
    after = F.pad(alike[:, :, 1::2], (0, 1 - count % 2), value=-torch.inf)  # the last place has no successor
    ranked = torch.maximum(before, after).argsort(dim=-1, descending=True, stable=True)
    gone = torch.zeros_like(before).scatter(2, ranked[:, :, :r], 1.0).bool()

    joins_previous = torch.zeros_like(lines[..., 0], dtype=torch.int64)  # 1: joins the previous place
    joins_previous[:, :, 1::2] = gone & (before >= after)
    joins_previous[:, :, 2::2] = (gone & (before < after))[:, :, : (count - 1) // 2]
    return (1 - joins_previous).cumsum(dim=-1) - 1


# Neighbours are compared by element-wise products, which no count of MACs includes.
GRID = Merger(grid, macs=no_macs, shrink=narrowed)
