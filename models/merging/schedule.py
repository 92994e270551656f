"""Schedules: the number of tokens that each block removes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil, prod

from ..settings import UserError
from .contract import Adaptive, Grid, Merger, Removal

# For each block: an int is the number of patches to remove, a float the share to keep, Adaptive what decides per image.
Plan = Sequence[int | float | Adaptive]


def check_plan(plan: Plan) -> None:
    """Raises UserError if a plan is not a list of such numbers."""
    listed = isinstance(plan, Sequence) and not isinstance(plan, str)
    for asked in plan if listed else ():
        share = isinstance(asked, Adaptive) or (isinstance(asked, float) and 0 < asked <= 1)
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


def fixed_removals(schedule: Sequence[Removal]) -> list[int]:
    """The numbers of patches that the blocks remove; empty where one of them depends on the image."""
    fixed = [r for r in schedule if not isinstance(r, Adaptive)]
    return fixed if len(fixed) == len(schedule) else []


def tokens_left(entering: int, schedule: Sequence[Removal]) -> list[int]:
    """The number of tokens that leave each block, of so many that enter the first; empty where they depend on the
    image."""
    return [entering - gone for gone in accumulate(fixed_removals(schedule))]


def effective_schedule(plan: Plan, patches: int, merger: Merger, grid: Grid | None = None) -> list[Removal]:
    """The number of patches that each block removes; Adaptive where it depends on the image.

    A method that cannot remove the requested number removes as many as it can. A method that keeps a grid removes what
    the grid allows; the remainder is added to the request of the next block that removes any. A method that draws
    samples draws as many as would then be left.

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
    schedule: list[Removal] = []
    owed = 0
    for asked in plan:
        if isinstance(asked, Adaptive):
            schedule.append(asked)
            continue
        due = patches - owed  # the number of patches requested to be left so far
        n = due - ceil(round(asked * due, 6)) if isinstance(asked, float) else asked
        if merger.shrink is None or grid is None:
            n = min(n, merger.at_most(patches))
        else:
            owed += n
            smaller = merger.shrink(grid, owed) if n else grid
            n, grid = prod(grid) - prod(smaller), smaller
            owed -= n
        patches -= n
        schedule.append(Adaptive(patches) if n and merger.samples else n)
    return schedule
