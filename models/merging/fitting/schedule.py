"""Fits a schedule to a budget: how many patches each block removes so that the model's answers move least.

Chen, Shao, Xu, Lin, Zhang, Chao, Ji, Qiao, Luo: DiffRate: Differentiable Compression Rate for Efficient Vision
Transformers. ICCV 2023 (arXiv:2305.17997) learn these numbers with the model frozen, by gradients through masks and a
penalty on the cost. Here they are searched at equal cost, which serves every method, needs no gradients, and ends lower
(docs/results/off_the_shelf#numbers-fitted-to-a-few-images).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...settings import UserError
from ..budget import TOLERANCE, BudgetSearch, Schedule, macs_of_target, solve_budget
from ..contract import Merger
from .subject import Distance, Subject, divergence, fitted_on, settings_for

log = logging.getLogger("hybridmerge")

# Multiples of what a block removes that it is asked for instead: from far to near, a sweep over all blocks each.
SWEEPS = ((0.0, 0.5, 2.0, inf), (0.7, 1.4))
CERTAIN = 2.0  # standard errors of the mean difference over the images by which a schedule has to be better
FEW = 4  # a block that removes less is asked for multiples of this
HALVINGS = 16  # of the factor by which the other blocks change


class FittedSchedule(NamedTuple):
    """A schedule that was fitted, and what it was fitted by."""

    r: list[int]  # patches that each block removes
    gmacs: float  # of one image
    distance: float  # from the unmerged model's answers, mean over the images
    spread_evenly: float  # the same of the schedule that spreads the removals evenly over the blocks
    tries: int  # schedules that were tried


def fit_schedule(
    model: nn.Module,
    images: Tensor,
    method: str = "tome",
    *,
    batch_size: int = 32,
    distance: Distance = divergence,
    **others: Any,
) -> FittedSchedule:
    """Finds how many patches each block removes so that a budget is met and the model's answers move least.

        found = fit_schedule(model, images, "tome", target_gmacs=0.9)
        wrap(model, "tome", r=found.r)

    It starts with the removals spread evenly over all blocks, or over all but the first few, whichever moves less. Then
    each block in turn is asked to remove nothing, half as many, twice as many, and as many as it can, while the others
    share what is left of the budget in the proportions that they have. A second sweep over the blocks tries smaller
    changes. A schedule replaces the one before if its mean distance is less by two standard errors of the difference
    over the images, since the best of many schedules on a few images is otherwise the luckiest.

    Every schedule that is tried meets the budget within 0.5 %. Nothing is random, and no labels are needed: the
    distance is that to the unmerged model, in evaluation mode and in the precision of the weights.

    In a block after which only the class token is read, such as the last of DeiT, merging costs this distance nothing.
    For dense features give a distance that reads them.

    Args:
        model: a model that `wrap` takes, wrapped or not. It is as it was afterwards.
        images: (n, C, H, W), normalised as the model expects, of the size that it was built for: 64 or more.
            Images by which the result is judged should not be among them.
        method: any method that can remove as many patches as it is asked to, and needs no training.
        batch_size: images in a forward pass.
        distance: (merged, unmerged) outputs of the model for B images -> (B,), at least 0; the default compares class
            probabilities.
        others: other keys of the `merge:` section, with `target_gmacs` or `target_ratio`; with `first_block` or
            `blocks`, other blocks remove nothing.

    Returns:
        The schedule, whose `r` is written into settings as it is, and what it costs.

    Raises:
        UserError: invalid settings, a method with a grid or one that learns, a model that is not supported, cannot be
            counted or gives no logits, images or distances of another shape, or a budget that cannot be met.
    """
    settings = settings_for("a schedule", method, others)
    merger = settings.merger()
    if merger.shrink is not None or merger.pooling is not None:
        why = "keeps a grid" if merger.shrink is not None else f"learns {_learned(merger)}"
        raise UserError(f"merge.method = {method!r}: {why}, and its schedule cannot be fitted; use another method")
    with fitted_on(model, images, settings.with_r(0), batch_size) as subject:
        depth, cost = len(subject.blocks), subject.cost()
        grid, _ = subject.blocks.layout()
        assert grid is not None, "a model that is counted has a grid"
        even: Schedule = tuple(solve_budget(settings, cost, depth, grid))
        space = BudgetSearch(cost, depth, grid, merger, tuple(settings.merging_blocks(depth)))
        moved = _Moved(subject, distance)
        best = _searched(space, moved.less, even, macs_of_target(settings, cost((0,) * depth)))
        least, spread = (float(moved(schedule).mean()) for schedule in (best, even))
    return FittedSchedule(list(best), space.macs(best) / 1e9, least, spread, len(moved.known))


def _learned(merger: Merger) -> str:
    """What a method with a part that learns learns."""
    return "how many tokens it leaves" if merger.sized else "which patches it removes"


class _Moved:
    """How far the answers move with a schedule."""

    def __init__(self, subject: Subject, distance: Distance) -> None:
        self.known: dict[Schedule, Tensor] = {}
        self._subject, self._distance = subject, distance
        self._unmerged = subject.outputs([0] * len(subject.blocks))

    def __call__(self, schedule: Schedule) -> Tensor:
        """The distance of each image, (n,) float64."""
        if schedule not in self.known:
            merged = self._subject.outputs(schedule)
            parts = [self._distance(*pair) for pair in zip(merged, self._unmerged, strict=True)]
            self._check_shapes(parts)
            found = torch.cat(parts).double()
            if not found.isfinite().all():
                raise UserError(f"images: the distance with r = {list(schedule)} is not finite for all; check them")
            self.known[schedule] = found
        return self.known[schedule]

    def _check_shapes(self, parts: Sequence[Any]) -> None:
        """Whether the distance returned one number for each image of every batch."""
        for part, batch in zip(parts, self._subject.batches(), strict=True):
            if not isinstance(part, Tensor) or part.shape != (len(batch),):
                has = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise UserError(f"distance: returned {has} for {len(batch)} images; return a tensor ({len(batch)},)")

    def less(self, schedule: Schedule, other: Schedule) -> bool:
        """Whether the answers move less with a schedule than with another, by more than chance: of a hundred that are
        tried on a few images, some look better than they are."""
        difference = self(schedule) - self(other)
        error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else 0.0
        return bool(difference.mean() + CERTAIN * error < 0)


def _searched(
    space: BudgetSearch, less: Callable[[Schedule, Schedule], bool], even: Schedule, target: float
) -> Schedule:
    """Returns the schedule that the sweeps end with; see `fit_schedule`.

    Args:
        space: the schedules of the model, and their costs.
        less: whether a schedule is better than another.
        even: the schedule that spreads the removals evenly over the blocks.
        target: MACs of one image.
    """
    late = ([int(i in space.blocks[skipped:]) for i in range(space.depth)] for skipped in range(1, len(space.blocks)))
    schedule = _best(less, even, _meeting(space, ((shape, {}) for shape in late), target))
    for number, factors in enumerate(SWEEPS, 1):
        for block in space.blocks:
            now = max(schedule[block], FEW)
            fixed = ({block: space.patches if factor == inf else round(now * factor)} for factor in factors)
            others = [*_meeting(space, ((schedule, asked) for asked in fixed), target)]
            schedule = _best(less, schedule, others)
        log.info(f"sweep {number} of {len(SWEEPS)}: r = {list(schedule)}")
    return schedule


def _best(less: Callable[[Schedule, Schedule], bool], schedule: Schedule, others: Iterable[Schedule]) -> Schedule:
    """Returns a schedule, or one of the others, if it is better."""
    for other in others:
        schedule = other if less(other, schedule) else schedule
    return schedule


def _meeting(
    space: BudgetSearch, asked: Iterable[tuple[Sequence[int], dict[int, int]]], target: float
) -> Iterator[Schedule]:
    """Yields schedules within 0.5 % of the target, for each of `asked` one if there is one.

    Args:
        space: the schedules of the model, and their costs.
        asked: what all blocks remove in proportion to each other, and exact numbers of some blocks.
        target: MACs of one image.
    """
    for shape, fixed in asked:
        found = space.climb(_scaled(space, shape, fixed, target), target)
        if abs(space.macs(found) - target) <= TOLERANCE * target:
            yield found


def _scaled(space: BudgetSearch, shape: Sequence[int], fixed: dict[int, int], target: float) -> Schedule:
    """The schedule whose cost is nearest to the target of the multiples of `shape`, `fixed` blocks apart."""

    def at(factor: float) -> Schedule:
        return space.schedule([fixed.get(i, round(n * factor)) for i, n in enumerate(shape)])

    low, high = 0.0, float(space.patches)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if space.macs(at(middle)) > target else (low, middle)
    return min(at(low), at(high), key=lambda found: abs(space.macs(found) - target))
