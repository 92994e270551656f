"""Solves budgets: how many patches each block removes so that one image costs a given number of multiply-adds (MACs).

The search knows nothing of models. It asks a function what a schedule costs, by formula or by tracing, and what the
merging method makes of a schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod

from ..settings import UserError
from .contract import Grid, Merger
from .schedule import effective_schedule, fixed_removals, spread_evenly
from .settings import MergeSettings

log = logging.getLogger("hybridmerge")

TOLERANCE = 0.005  # share of the target by which the cost may miss it
NEAR, NEAR_ON_GRIDS = 1e-4, 1e-3  # share of the target at which the search stops improving
FEW = 2000  # up to this number, all possible schedules are tried if the search finds none

Schedule = tuple[int, ...]  # patches that each block removes
Cost = Callable[[Schedule], int]  # MACs of one image with a schedule


class TooCoarse(UserError):
    """No schedule of a small model meets a target within 0.5 %.

    Attributes:
        schedule: the one that comes nearest to it.
    """

    def __init__(self, message: str, schedule: Schedule) -> None:
        super().__init__(message)
        self.schedule = schedule


class CountError(RuntimeError):
    """A count that cannot be trusted: an operator that multiplies was not counted, or two counts disagree."""


def solve_budget(merge: MergeSettings, cost: Cost, depth: int, grid: Grid, section: str = "merge") -> list[int]:
    """Returns the schedule that meets `target_gmacs` or `target_ratio`.

    Removals are spread evenly over the blocks, then moved one at a time. Where a method keeps a grid and the grid
    allows nothing within 0.5 %, the nearest schedule is returned, with a warning in the log.

    Args:
        merge: merge settings with a target.
        cost: returns the MACs of one image with a schedule, matching included.
        depth: number of blocks.
        grid: rows and columns of the patches that enter the first block.
        section: dotted name of the settings, for errors and the log.

    Returns:
        Patches that each block removes, one number per block.

    Raises:
        UserError: the target cannot be reached with this method.
        TooCoarse: the model is too small for any schedule within 0.5 % of it.
    """
    search = BudgetSearch(cost, depth, grid, merge.merger(), tuple(merge.merging_blocks(depth)))
    target = macs_of_target(merge, search.macs([0] * depth))
    asked = f"{section}.{merge.target} = {merge.target_gmacs or merge.target_ratio}"
    if merge.target_gmacs is None:
        asked += f" ({target / 1e9:.4g} GMACs)"
    search.check_reachable(target, asked, merge.method, f"{section}.method")
    schedule = search.nearest(target)
    macs = search.costs[schedule]
    line = f"{asked}: {merge.method} removes {list(schedule)}, {macs / 1e9:.4g} GMACs"
    if abs(macs - target) <= TOLERANCE * target:
        log.info(line)
    elif search.merger.shrink is not None:
        log.warning("%s (%+.1f %%), the nearest found that the grid allows", line, 100 * (macs / target - 1))
    else:
        below = max(macs for macs in search.costs.values() if macs <= target)
        above = min(macs for macs in search.costs.values() if macs >= target)
        raise TooCoarse(
            f"{asked}: this model is too small to meet it within 0.5 %; the nearest budgets are "
            f"{below / 1e9:.4g} and {above / 1e9:.4g} GMACs",
            schedule,
        )
    return list(schedule)


def macs_of_target(merge: MergeSettings, unmerged: int) -> float:
    """Returns the MACs of one image that the settings ask for.

    Args:
        merge: merge settings with `target_gmacs` or `target_ratio`.
        unmerged: MACs of one image without merging.
    """
    if merge.target_gmacs is not None:
        return merge.target_gmacs * 1e9
    assert merge.target_ratio is not None
    return unmerged / merge.target_ratio


@dataclass
class BudgetSearch:
    """The schedules of one model, and the costs of those tried so far."""

    cost: Cost
    depth: int  # number of blocks
    grid: Grid
    merger: Merger
    blocks: Schedule  # the blocks that may merge, counted from 0, ascending
    costs: dict[Schedule, int] = field(default_factory=dict)  # MACs of one image

    @property
    def patches(self) -> int:
        return prod(self.grid)

    def schedule(self, asked: Sequence[int]) -> Schedule:
        """Returns what the blocks really remove when they are asked to remove `asked`."""
        return tuple(fixed_removals(effective_schedule(asked, self.patches, self.merger, self.grid)))

    def macs(self, asked: Sequence[int]) -> int:
        schedule = self.schedule(asked)
        if schedule not in self.costs:
            self.costs[schedule] = self.cost(schedule)
        return self.costs[schedule]

    def check_reachable(self, target: float, asked: str, method: str, key: str) -> None:
        """Raises UserError if the target is less than the cheapest schedule costs, or more than no merging does."""
        cheapest = self._in_all([self.patches] * len(self.blocks))
        unmerged = self.macs([0] * self.depth)
        if not any(self.schedule(cheapest)) and abs(unmerged - target) > TOLERANCE * target:
            raise UserError(f"{asked}: {method} removes nothing here; choose another {key}")
        least = min(self.macs(cheapest), unmerged)
        if not least / (1 + TOLERANCE) <= target <= unmerged / (1 - TOLERANCE):
            reach = f"{least / 1e9:.4g} to {unmerged / 1e9:.4g} GMACs (ratio {unmerged / least:.4g} to 1)"
            raise UserError(f"{asked}: out of reach; with {method} an image costs {reach}")

    def nearest(self, target: float) -> Schedule:
        """Returns the schedule whose cost is nearest to the target, of all that were tried."""
        for start in self._starts(target):
            self.climb(start, target)
            if self._is_met(target):
                break
        else:
            every = list(islice(self._every(len(self.blocks), self.patches, self.grid), FEW + 1))
            for removed in every if len(every) <= FEW else []:
                self.macs(self._in_all(removed))
        return min(self.costs, key=lambda schedule: abs(self.costs[schedule] - target))

    def _is_met(self, target: float) -> bool:
        return any(abs(macs - target) <= TOLERANCE * target for macs in self.costs.values())

    def _starts(self, target: float) -> Iterator[Schedule]:
        """Spreads removals over all blocks that merge, then over the first few of them, for methods whose matching
        costs more than a few removals save."""
        yield self._spread(len(self.blocks), target)
        fronts = [self._spread(blocks, target) for blocks in range(1, len(self.blocks))]
        yield from sorted(fronts, key=lambda schedule: abs(self.macs(schedule) - target))[:2]

    def _spread(self, blocks: int, target: float) -> Schedule:
        """Bisects the number of removals, spread evenly over the first `blocks` that merge; more of them cost less."""

        def evenly(total: int) -> list[int]:
            return spread_evenly(total, self.blocks[:blocks], self.depth)

        low, high = 0, blocks * self.patches
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.macs(evenly(middle)) > target else (low, middle)
        return self.schedule(min(evenly(low), evenly(high), key=lambda asked: abs(self.macs(asked) - target)))

    def _in_all(self, removed: Sequence[int]) -> list[int]:
        """Returns what every block is asked to remove, from what the first of those that may merge are asked to."""
        asked = [0] * self.depth
        for block, number in zip(self.blocks, removed):
            asked[block] = number
        return asked

    def climb(self, schedule: Schedule, target: float) -> Schedule:
        """Makes the best single move for as long as it brings the cost nearer to the target; returns where it ends."""

        def off(asked: Sequence[int]) -> float:
            return abs(self.macs(asked) - target)

        near = NEAR if self.merger.shrink is None else NEAR_ON_GRIDS
        while off(schedule) > near * target:
            moved = min(self._moves(schedule), key=off)
            if off(moved) >= off(schedule):
                break
            schedule = self.schedule(moved)
        return schedule

    def _moves(self, schedule: Schedule) -> Iterator[list[int]]:
        """Removes one patch more, one less, or one in the merging block before or after; on a grid, a row or column at
        a time."""
        sizes = {1}
        if self.merger.shrink is not None:
            sizes |= {2**i for i in range(self.patches.bit_length())} | set(schedule) - {0}
        for size in sizes:
            for place, i in enumerate(self.blocks):
                more = [n + size * (j == i) for j, n in enumerate(schedule)]
                yield more
                for j in (*self.blocks[max(place - 1, 0) : place], *self.blocks[place + 1 : place + 2]):
                    if schedule[j] >= size:
                        yield [n - size * (k == j) for k, n in enumerate(more)]
                if schedule[i] >= size:
                    yield [n - size * (j == i) for j, n in enumerate(schedule)]

    def _every(self, blocks: int, patches: int, grid: Grid) -> Iterator[Schedule]:
        """Yields every schedule of `blocks` blocks on `patches` patches, the greatest removals first."""
        if blocks == 0:
            yield ()
            return
        r = patches
        while r >= 0:
            smaller = grid if self.merger.shrink is None else self.merger.shrink(grid, r)
            limit = self.merger.at_most(patches) if self.merger.shrink is None else patches - prod(smaller)
            n = min(r, limit)
            for rest in self._every(blocks - 1, patches - n, smaller):
                yield (n, *rest)
            r = n - 1
