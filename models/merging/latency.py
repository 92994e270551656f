"""Solves a budget in milliseconds: which blocks merge, and how much, so that a forward pass takes that long here.

Nothing is predicted from multiply-adds, since matching takes time that they do not show: forward passes are timed.
Fewer blocks that merge match less often, so that they may reach the same time with more of the tokens left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from math import prod
from statistics import median

import numpy as np
import torch
from torch import nn

from ..modes import in_evaluation_mode
from ..settings import UserError
from ..timing import timed
from .budget import Schedule
from .contract import Grid, Merger
from .schedule import effective_schedule, fixed_removals, spread_evenly
from .settings import MergeSettings

log = logging.getLogger("hybridmerge")

SETS = (1, 3, 6)  # how many blocks merge, besides all of them
SHARES = (0.25, 0.5, 1.0, 2.0, 12.0)  # of the patches, to remove; more than all: as many as early as can be
ROUNDS = 7  # in which every schedule is timed once, if that takes no longer than
SECONDS = 20  # and fewer rounds otherwise
LEAST_MS = 10.0  # that a timed call takes; shorter passes are repeated
TOLERANCE = 0.02  # share of the target by which the time may exceed it


def solve_time(
    merge: MergeSettings,
    model: nn.Module,
    set_schedule: Callable[[list[int]], None],
    image: tuple[int, ...],
    depth: int,
    grid: Grid,
    section: str = "merge",
) -> list[int]:
    """Returns a schedule whose forward pass takes at most `target_ms`, within 2 %.

    Schedules that spread removals evenly over all blocks that may merge, and over 1, 3 and 6 of them, are timed in
    rounds. Of those that are fast enough, the one whose blocks process the most tokens is returned. With
    `merge.blocks`, these blocks alone merge.

    Args:
        merge: merge settings with `target_ms`.
        model: the model, on the device that it is to be fast on. It is run in evaluation mode, without autocast of
            its own, on random images; each of its modules then has its own mode again.
        set_schedule: sets the model's schedule.
        image: shape of an image, (C, H, W).
        depth: number of blocks.
        grid: rows and columns of the patches that enter the first block.
        section: dotted name of the settings, for errors and the log.

    Raises:
        UserError: no schedule of this method is as fast.
    """
    run, device = _forward(model, set_schedule, (merge.target_batch, *image))
    with in_evaluation_mode(model):
        return _fastest_enough(merge, run, device, depth, grid, section)


def _fastest_enough(
    merge: MergeSettings, run: Callable[[Schedule], None], device: torch.device, depth: int, grid: Grid, section: str
) -> list[int]:
    """Returns the schedule, from the times of `run`; see `solve_time`."""
    assert merge.target_ms is not None
    asked = f"{section}.target_ms = {merge.target_ms:g}"
    nothing = (0,) * depth
    if (unmerged := _times(run, [nothing], device)[nothing]) <= merge.target_ms:
        log.warning("%s: %.4g ms without merging; nothing is merged", asked, unmerged)
        return list(nothing)

    spread = partial(_spread, depth=depth, grid=grid, merger=merge.merger())
    sets = _sets(merge, depth)
    ladders = {blocks: [spread(blocks, share) for share in (0.0, *SHARES)] for blocks in sets}
    times = _times(run, (schedule for ladder in ladders.values() for schedule in ladder), device)
    found = [
        spread(blocks, more * share)
        for blocks, ladder in ladders.items()
        if (share := _share_within(merge.target_ms, [times[schedule] for schedule in ladder])) is not None
        for more in (0.9, 1.0, 1.1)
    ]
    times |= _times(run, found, device)  # once more: what seemed fast enough by chance is not believed
    enough = [schedule for schedule in found if times[schedule] <= (1 + TOLERANCE) * merge.target_ms]
    if not enough:
        least = min(times.values())
        raise UserError(
            f"{asked}: out of reach; with {merge.method} a forward pass of {merge.target_batch} takes "
            f"{least:.4g} to {times[nothing]:.4g} ms here"
        )
    best = max(enough, key=_processed)
    log.info(f"{asked}: {merge.method} removes {list(best)}, {times[best]:.4g} ms of {times[nothing]:.4g}")
    return list(best)


def _processed(schedule: Schedule) -> int:
    """Returns the number of tokens that the blocks process together, apart from a constant."""
    return -sum(accumulate(schedule))


def _forward(
    model: nn.Module, set_schedule: Callable[[list[int]], None], shape: tuple[int, ...]
) -> tuple[Callable[[Schedule], None], torch.device]:
    """Returns a function that runs a forward pass with a schedule, and the device."""
    weight = next(p for p in model.parameters() if p.is_floating_point())
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)

    def run(schedule: Schedule) -> None:
        set_schedule(list(schedule))
        with torch.inference_mode():
            model(images)

    return run, weight.device


def _sets(merge: MergeSettings, depth: int) -> list[Schedule]:
    """Returns sets of blocks, counted from 0: those that may merge, and some of them, evenly spaced."""
    blocks = merge.merging_blocks(depth)
    if merge.blocks is not None:
        return [tuple(blocks)]
    few = [tuple(blocks[len(blocks) * (i + 1) // (count + 1)] for i in range(count)) for count in SETS]
    return list(dict.fromkeys([*(one for one in few if len(one) == len(set(one))), tuple(blocks)]))


def _spread(blocks: Schedule, share: float, *, depth: int, grid: Grid, merger: Merger) -> Schedule:
    """Returns a schedule that is asked to remove this share of the patches, spread evenly over the blocks."""
    asked = spread_evenly(round(share * prod(grid)), blocks, depth)
    return tuple(fixed_removals(effective_schedule(asked, prod(grid), merger, grid)))


def _times(
    run: Callable[[Schedule], object], schedules: Iterable[Schedule], device: torch.device
) -> dict[Schedule, float]:
    """Returns the median time of a forward pass with each schedule, milliseconds, in interleaved rounds."""
    once = list(dict.fromkeys(schedules))
    if not once:
        return {}
    calls = {str(schedule): partial(run, schedule) for schedule in once}
    first = next(iter(calls))
    (pass_ms,) = timed({first: calls[first]}, 1, device)[first]
    rounds = int(min(max(1e3 * SECONDS / (len(calls) * max(pass_ms, LEAST_MS)), 1), ROUNDS))
    taken = timed(calls, rounds, device, least_ms=LEAST_MS)
    return {schedule: median(taken[str(schedule)]) for schedule in once}


def _share_within(target: float, times: Sequence[float]) -> float | None:
    """Returns the share of the patches whose removal takes `target` ms, between the shares that were timed.

    Args:
        target: milliseconds.
        times: of the shares 0 and SHARES.
    """
    falling = np.minimum.accumulate(times)  # noise apart, removing more never takes longer
    if falling[-1] > target:
        return None
    return float(np.interp(-target, -falling, (0.0, *SHARES)))
