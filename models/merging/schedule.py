"""Schedules: the number of tokens that each block removes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, prod

from ..settings import UserError
from .contract import Grid, Merger

Plan = Sequence[int | float]  # for each block: an int is the number of patches to remove, a float the share to keep


def check_plan(plan: Plan) -> None:
    """Raises UserError if a plan is not a list of such numbers."""
    listed = isinstance(plan, Sequence) and not isinstance(plan, str)
    for asked in plan if listed else ():
        share = isinstance(asked, float) and 0 < asked <= 1
        listed &= share or (isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0)
    if not listed:
        raise UserError(
            f"plan = {plan!r}: give a list with, for each block, the number of patches to remove (an int, at "
            "least 0) or the share of them to keep (a float, above 0 and at most 1)"
        )


def spread_evenly(total: int, blocks: Sequence[int], depth: int) -> list[int]:
    """What each block is asked to remove if `total` patches are to be removed, as many in each of some blocks.

    Args:
        total: number of patches to remove in all.
        blocks: the blocks that remove any, counted from 0.
        depth: number of blocks.
    """
    marks = [total * i // len(blocks) for i in range(len(blocks) + 1)]
    asked = [0] * depth
    for block, (before, after) in zip(blocks, pairwise(marks)):
        asked[block] = after - before
    return asked


def effective_schedule(plan: Plan, patches: int, merger: Merger, grid: Grid | None = None) -> list[int]:
    """The number of patches that each block removes.

    A method that cannot remove the requested number removes as many as it can. A method that keeps a grid removes what
    the grid allows; the remainder is added to the request of the next block that removes any.

    Args:
        plan: what is requested from each block.
        patches: number of patches that enter the first block, without prefix tokens.
        merger: the method.
        grid: rows and columns of the patches; required by methods that keep a grid.

    Raises:
        ValueError: a method that keeps a grid, but no grid.
    """
    if merger.shrink is not None and grid is None:
        raise ValueError("merge.method: it merges neighbours on a grid, and these patches form none")
    schedule, owed = [], 0
    for asked in plan:
        due = patches - owed  # the number of patches requested to be left so far
        n = due - ceil(round(asked * due, 6)) if isinstance(asked, float) else asked
        if merger.shrink is None or grid is None:
            n = min(n, merger.at_most(patches))
        else:
            owed += n
            smaller = merger.shrink(grid, owed) if n else grid
            n, grid = prod(grid) - prod(smaller), smaller
            owed -= n
        schedule.append(n)
        patches -= n
    return schedule
