"""How many tokens each block removes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from ..settings import UserError
from .contract import Grid, Merger

Plan = Sequence[int | float]  # for each block: an int is how many patches to remove, a float the share of them to keep


def check_plan(plan: Plan) -> None:
    """Raises UserError where a plan is none."""
    listed = isinstance(plan, Sequence) and not isinstance(plan, str)
    for asked in plan if listed else ():
        share = isinstance(asked, float) and 0 < asked <= 1
        listed &= share or (isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0)
    if not listed:
        raise UserError(
            f"plan = {plan!r}: give a list with, for each block, how many patches to remove (an int, at "
            "least 0) or the share of them to keep (a float, above 0 and at most 1)"
        )


def effective_schedule(plan: Plan, patches: int, merger: Merger, grid: Grid | None = None) -> list[int]:
    """What each block really removes.

    A method that cannot take as many patches away takes what it can. One that keeps a grid removes what the grid
    allows, and what it could not remove it owes to the next block that removes any.

    Args:
        plan: what each block is asked for.
        patches: how many patches enter the first block, prefix tokens not counted.
        merger: the method.
        grid: their rows and columns; methods that keep a grid need it.

    Raises:
        ValueError: a method that keeps a grid, and no grid.
    """
    if merger.shrink is not None and grid is None:
        raise ValueError("merge.method: it merges neighbours on a grid, and these patches are none")
    schedule, owed = [], 0
    for asked in plan:
        due = patches - owed  # as many as there should be by now
        n = due - ceil(round(asked * due, 6)) if isinstance(asked, float) else asked
        if merger.shrink is None:
            n = min(n, merger.at_most(patches))
        else:
            owed += n
            smaller = merger.shrink(grid, owed) if n else grid
            n, grid = prod(grid) - prod(smaller), smaller
            owed -= n
        schedule.append(n)
        patches -= n
    return schedule
