"""Meets the budget of a wrapped model: multiply-adds, which are counted, or milliseconds, which are measured."""

from __future__ import annotations

from torch import nn

from ...settings import UserError
from ..budget import Cost, CountError, solve_budget
from ..contract import Adaptive, Grid
from ..latency import solve_time
from .blocks import MergingBlocks
from .cost import count, traced_cost
from .kinds import Family

PREDICTION = 1e-3  # share by which a predicted cost may differ from the traced one


def sizes(vit: nn.Module, family: Family, blocks: MergingBlocks) -> tuple[Grid, tuple[int, int, int]]:
    """Rows and columns of the patches, and the shape (C, H, W) of the images that a model was built for.

    Raises:
        CountError: they are not known.
    """
    grid, _ = blocks.layout()
    if grid is None:
        raise CountError(f"this {type(vit).__name__} was built for no image size; build it for one, or give r")
    convolution = next((module for module in vit.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        raise CountError(f"this {type(vit).__name__} has no convolution that tells the channels of its images; give r")
    return grid, (convolution.in_channels, *family.image_size(vit))


def cost_of_images(
    vit: nn.Module, family: Family, blocks: MergingBlocks, whole: nn.Module | None = None, depth: int | None = None
) -> Cost:
    """Returns the MACs of one image as a function of what each block removes of it, where that depends on the image.

    Args:
        vit: the wrapped model, whose plan this does not change.
        family: its family.
        blocks: its blocks.
        whole: what the image goes through, of which the model is a part; None: the model alone.
        depth: how many of the blocks it goes through; None: all.

    Raises:
        CountError: the model cannot be counted.
    """
    grid, image = sizes(vit, family, blocks)
    plan = blocks.plan
    schedule = blocks.schedule()[:depth]
    matching = [block for block, removed in enumerate(schedule) if isinstance(removed, Adaptive)]
    blocks.plan = [0] * len(blocks)
    try:
        unmerged = count(vit if whole is None else whole, image)
    finally:
        blocks.plan = plan
    run = [blocks[i] for i in range(len(schedule))]
    return traced_cost(unmerged, blocks.layers()[: len(run)], run, grid, matching)


def meet_budget(vit: nn.Module, family: Family, blocks: MergingBlocks) -> None:
    """Sets the plan of a wrapped model that meets the budget in its settings.

    Args:
        vit: the wrapped model, whose blocks remove nothing yet.
        family: its family.
        blocks: its blocks.

    Raises:
        UserError: the budget cannot be met, or the model was built for no image size.
    """
    settings = blocks.settings
    budget = f"merge.{settings.target} = {getattr(settings, str(settings.target))}"
    try:
        grid, image = sizes(vit, family, blocks)
    except CountError as error:
        raise UserError(f"{budget}: {error}") from None
    if settings.target == "target_ms":
        blocks.learn(solve_time(settings, vit, blocks.learn, image, len(blocks), grid))
        return
    try:
        cost = traced_cost(count(vit, image), blocks.merging, [blocks[i] for i in range(len(blocks))], grid)
        plan = solve_budget(settings, cost, len(blocks), grid)
        blocks.learn(plan)
        expected, traced = cost(tuple(plan)), count(vit, image)
    except CountError as error:
        raise UserError(f"{budget}: this {type(vit).__name__} cannot be counted ({error}); give r") from error
    if abs(expected - traced) > PREDICTION * traced:
        counts = f"{expected / 1e9:.4g} GMACs expected, {traced / 1e9:.4g} counted"
        raise UserError(f"{budget}: the cost of {settings.method} is no polynomial here ({counts}); give r")
