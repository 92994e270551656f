"""Budgets: how many tokens each block removes so that an image costs so many MACs, and r drawn for a training step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from math import prod
from typing import Any

from engine.cost.formulas import FORMULAS, formula_macs
from engine.data.keyed import BUDGET, hash64
from models.merging import effective_schedule
from models.merging.contract import Grid
from models.merging.settings import AnySettings
from models.settings import Settings, UserError

log = logging.getLogger("hybridmerge")

TOLERANCE = 0.005  # of the target
NEAR, NEAR_ON_GRIDS = 1e-4, 1e-3  # of the target: the search looks no further
FEW = 2000  # so many schedules are looked at one by one, where nothing else helps

Schedule = tuple[int, ...]  # patches that each block removes


def solve(settings: Any) -> Any:
    """Turns `merge.target_gmacs` or `merge.target_ratio` into the `merge.r` that meets it.

    The removals are spread evenly over the blocks, then moved one by one. MACs are those of `formula_macs`, matching
    included; a ratio is MACs without merging over MACs with it. Where a method keeps a grid and the grid allows
    nothing within 0.5 %, the nearest schedule that was found is taken, and the log says so.

    Args:
        settings: a model's checked options (ViTSettings, HybridSettings). No model is built.

    Returns:
        The same with `merge.r` a list, one number per block, and no target; as it came, if it has no target.

    Raises:
        UserError: the target is out of reach (a method that removes nothing, such as none, meets the cost without
            merging alone), or this model is too small for a schedule within 0.5 % of it; or it has
            no formula for its MACs.
    """
    merge = getattr(settings, "merge", None)
    if merge is None or merge.solved:
        return settings
    key = "target_ratio" if merge.target_gmacs is None else "target_gmacs"
    said = f"model.merge.{key} = {getattr(merge, key)}"
    if settings.name not in FORMULAS:
        raise UserError(f"{said}: {settings.name} has no formula for its MACs; give model.merge.r")
    search, target = _Search(settings), target_macs(settings)
    said += f" ({target / 1e9:.4g} GMACs)" if merge.target_gmacs is None else ""
    search.demand_reachable(said, target)
    found = search.nearest(target)
    off = search.costs[found] / target - 1
    line = f"{said}: {merge.method} removes {list(found)}, {search.costs[found] / 1e9:.4g} GMACs"
    if abs(off) <= TOLERANCE:
        log.info(line)
    elif search.merger.shrink is not None:
        log.warning("%s (%+.1f %%), the nearest found that the grid allows", line, 100 * off)
    else:
        below = max(macs for macs in search.costs.values() if macs <= target)
        above = min(macs for macs in search.costs.values() if macs >= target)
        raise UserError(
            f"{said}: this model is too small to meet it within 0.5 %; the nearest budgets are "
            f"{below / 1e9:.4g} and {above / 1e9:.4g} GMACs"
        )
    return with_r(settings, list(found))


def target_macs(settings: Any) -> float | None:
    """MACs of one image that `merge.target_gmacs` or `merge.target_ratio` asks for; None where there is neither.

    Args:
        settings: a model's options, not yet solved.
    """
    merge = getattr(settings, "merge", None)
    if merge is None or merge.solved:
        return None
    if merge.target_gmacs is not None:
        return merge.target_gmacs * 1e9
    return sum(formula_macs(with_r(settings, 0)).values()) / merge.target_ratio


def with_r(settings: Any, r: int | list[int]) -> Any:
    """A model's options with this r in place of whatever says how many tokens go."""
    budget = {"r": r, "keep": None, "target_gmacs": None, "target_ratio": None}
    return settings.model_copy(update={"merge": settings.merge.model_copy(update=budget)})


def range_of(settings: Settings) -> list[int] | None:
    """The least and the most r of `merge.r: {train: [least, most]}`; None for all other models."""
    r = getattr(getattr(settings, "merge", None), "r", None)
    return r.train if isinstance(r, AnySettings) else None


def drawn_schedule(settings: Any, seed: int, step: int) -> list[int]:
    """Patches that each block removes in this training step: r is uniform over its range, a function of (seed, step).

    Args:
        settings: a model's options, with `merge.r: {train: [least, most]}`.
    """
    least, most = range_of(settings)
    r = least + int(hash64(BUDGET, seed, step)[0]) % (most - least + 1)
    return with_r(settings, r).schedule()


class _Search:
    """The schedules of one model, and what those that were looked at cost.

    Args:
        settings: a model's checked options.
    """

    def __init__(self, settings: Any) -> None:
        self.settings, self.depth, self.grid = settings, settings.depth, settings.grid
        self.patches, self.merger = prod(settings.grid), settings.merge.merger()
        self.costs: dict[Schedule, int] = {}  # MACs of one image

    def schedule(self, asked: Sequence[int]) -> Schedule:
        """What the method makes of it."""
        return tuple(effective_schedule(asked, self.patches, self.merger, self.grid))

    def macs(self, asked: Sequence[int]) -> int:
        schedule = self.schedule(asked)
        if schedule not in self.costs:
            self.costs[schedule] = sum(formula_macs(with_r(self.settings, list(schedule))).values())
        return self.costs[schedule]

    def demand_reachable(self, said: str, target: float) -> None:
        """Raises UserError where the target is below what the greatest removal costs, or above what none costs."""
        greatest, most = [self.patches] * self.depth, self.macs([0] * self.depth)
        method = self.settings.merge.method
        if not any(self.schedule(greatest)) and abs(most - target) > TOLERANCE * target:
            raise UserError(f"{said}: {method} removes nothing here; choose another model.merge.method")
        least = min(self.macs(greatest), most)
        if not least / (1 + TOLERANCE) <= target <= most / (1 - TOLERANCE):
            reach = f"{least / 1e9:.4g} to {most / 1e9:.4g} GMACs (ratio {most / least:.4g} to 1)"
            raise UserError(f"{said}: out of reach; with {method} an image costs {reach}")

    def nearest(self, target: float) -> Schedule:
        """The schedule nearest to the target, of all that were looked at."""
        for start in self._starts(target):
            self._climb(start, target)
            if self._found(target):
                break
        else:
            every = list(islice(self._every(self.depth, self.patches, self.grid), FEW + 1))
            for schedule in every if len(every) <= FEW else []:
                self.macs(schedule)
        return min(self.costs, key=lambda schedule: abs(self.costs[schedule] - target))

    def _found(self, target: float) -> bool:
        return any(abs(macs - target) <= TOLERANCE * target for macs in self.costs.values())

    def _starts(self, target: float) -> Iterator[Schedule]:
        """Spread over all blocks; then over the first few, for methods that cost more than a few removals save."""
        yield self._spread(self.depth, target)
        fronts = [self._spread(blocks, target) for blocks in range(1, self.depth)]
        yield from sorted(fronts, key=lambda schedule: abs(self.macs(schedule) - target))[:2]

    def _spread(self, blocks: int, target: float) -> Schedule:
        """As many removals as it takes, evenly over the first `blocks` blocks: MACs fall as they grow."""

        def evenly(total: int) -> list[int]:
            marks = [total * i // blocks for i in range(blocks + 1)]
            return [after - before for before, after in pairwise(marks)] + [0] * (self.depth - blocks)

        low, high = 0, blocks * self.patches
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.macs(evenly(middle)) > target else (low, middle)
        return self.schedule(min(evenly(low), evenly(high), key=lambda asked: abs(self.macs(asked) - target)))

    def _climb(self, schedule: Schedule, target: float) -> None:
        """Follows the best single move for as long as it brings the MACs nearer to the target."""

        def off(asked: Sequence[int]) -> float:
            return abs(self.macs(asked) - target)

        near = NEAR if self.merger.shrink is None else NEAR_ON_GRIDS
        while off(schedule) > near * target:
            moved = min(self._moves(schedule), key=off)
            if off(moved) >= off(schedule):
                return
            schedule = self.schedule(moved)

    def _moves(self, schedule: Schedule) -> Iterator[list[int]]:
        """One removal more, one less, or one a block earlier or later; on a grid: as many as a row or column has."""
        sizes = {1}
        if self.merger.shrink is not None:
            sizes |= {2**i for i in range(self.patches.bit_length())} | set(schedule) - {0}
        for size in sizes:
            for i in range(self.depth):
                more = [n + size * (j == i) for j, n in enumerate(schedule)]
                yield more
                for j in (i - 1, i + 1):
                    if 0 <= j < self.depth and schedule[j] >= size:
                        yield [n - size * (k == j) for k, n in enumerate(more)]
                if schedule[i] >= size:
                    yield [n - size * (j == i) for j, n in enumerate(schedule)]

    def _every(self, blocks: int, patches: int, grid: Grid) -> Iterator[Schedule]:
        """Every schedule of so many blocks, on so many patches, the greatest removals first."""
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
