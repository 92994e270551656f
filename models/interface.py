"""What the engine asks of any model, ours or another library's."""

from __future__ import annotations

from math import prod

from torch import nn

from models.merging.families import family_of
from models.merging.wrapping import MergingBlocks, blocks_of
from models.settings import UserError


def removed_per_block(model: nn.Module) -> list[int]:
    """Patches that each transformer block merges away; empty for models that cannot merge, or were not asked to."""
    if hasattr(model, "schedule"):
        return model.schedule
    blocks = _merging_blocks(model)
    return blocks.schedule() if blocks is not None else []


def tokens_per_block(model: nn.Module) -> list[int]:
    """Tokens that leave each transformer block, prefix included; empty where `removed_per_block` is."""
    if hasattr(model, "tokens_per_block"):
        return model.tokens_per_block()
    blocks = _merging_blocks(model)
    if blocks is None:
        return []
    grid, _ = blocks.layout()
    if grid is None:
        return []  # images of any size
    counts, left = [], blocks.prefix + prod(grid)
    for removed in blocks.schedule():
        left -= removed
        counts.append(left)
    return counts


def _merging_blocks(model: nn.Module) -> MergingBlocks | None:
    try:
        family_of(model)
        return blocks_of(model)
    except UserError:
        return None
