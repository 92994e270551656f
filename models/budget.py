"""Solves the budget in a model's settings: `merge.target_gmacs`, `target_ratio` or `target_ms` becomes `merge.r`.

Our own models are solved by formula, without being built; those of other libraries by tracing, built without data. For
milliseconds a model is built and timed.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .formulas import FORMULAS, formula_macs
from .interface import merge_settings
from .merging.budget import Cost, macs_of_target, solve_budget
from .merging.latency import solve_time
from .merging.layer import MergeLayer, resize_layers
from .merging.wrapping import blocks_of
from .merging.wrapping.cost import count
from .settings import UserError
from .settings.zoo import ZooSettings
from .zoo import build_zoo, without_data


def solve(settings: Any) -> Any:
    """Returns a model's settings with `merge.r`, one number per block, in place of the target that it meets.

    MACs include matching; a ratio is MACs without merging over MACs with it; a time is measured on the CPU. Where a
    method keeps a grid and the grid allows nothing within 0.5 %, the nearest schedule is taken, with a warning in the
    log.

    Args:
        settings: a model's checked options (ViTSettings, TimmSettings ...).

    Returns:
        The same settings if they have no target.

    Raises:
        UserError: the target cannot be reached (a method that removes nothing, such as none, meets only the cost
            without merging), the model is too small for any schedule within 0.5 % of it, or it is a model of our own
            that has no formula for its MACs.
    """
    merge = merge_settings(settings)
    if merge is None or merge.solved:
        return settings
    if merge.target == "target_ms":
        return with_r(settings, _schedule_in_time(settings))
    if isinstance(settings, ZooSettings):
        return with_r(settings, list(blocks_of(without_data(lambda: build_zoo(settings))).plan))
    if settings.name not in FORMULAS:
        target = f"model.merge.{merge.target} = {getattr(merge, merge.target)}"
        raise UserError(f"{target}: {settings.name} has no formula for its MACs; give model.merge.r")
    schedule = solve_budget(merge, _formula_cost(settings), settings.depth, settings.grid, "model.merge")
    return with_r(settings, schedule)


def target_macs(settings: Any) -> float | None:
    """Returns the MACs of one image that the settings' target asks for; None if they have no target, or a time.

    Args:
        settings: a model's checked options, not yet solved.
    """
    merge = merge_settings(settings)
    if merge is None or merge.solved or merge.target == "target_ms":
        return None
    if isinstance(settings, ZooSettings):
        image = (settings.in_chans, settings.img_size, settings.img_size)
        unmerged = count(without_data(lambda: build_zoo(with_r(settings, 0))), image)
    else:
        unmerged = _formula_cost(settings)((0,) * settings.depth)
    return macs_of_target(merge, unmerged)


def with_r(settings: Any, r: int | list[int]) -> Any:
    """Returns a model's settings with this `merge.r`, in place of whatever says how many tokens are removed."""
    return settings.model_copy(update={"merge": settings.merge.with_r(r)})


def _schedule_in_time(settings: Any) -> list[int]:
    """Returns the schedule that meets `merge.target_ms` on the CPU, with random weights."""
    if isinstance(settings, ZooSettings):
        return list(blocks_of(build_zoo(settings)).plan)
    from .registry import MODELS  # its models import this module

    model = MODELS[settings.name][1](with_r(settings, 0))
    image = (settings.in_chans, settings.img_size, settings.img_size)

    def set_schedule(schedule: list[int]) -> None:
        model.schedule = schedule
        layers = [module for module in model.modules() if isinstance(module, MergeLayer)]
        resize_layers(layers, model.schedule, prod(settings.grid))

    return solve_time(settings.merge, model, set_schedule, image, settings.depth, settings.grid, "model.merge")


def _formula_cost(settings: Any) -> Cost:
    """Returns the cost of one of our own models as a function of its schedule."""
    return lambda schedule: sum(formula_macs(with_r(settings, list(schedule))).values())
