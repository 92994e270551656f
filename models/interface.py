"""What the engine asks of any model, ours or another library's."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from .merging.contract import Grid
from .merging.tokens import Tokens
from .merging.wrapping import MergingBlocks, blocks_of, trace
from .merging.wrapping.families import family_of
from .settings import ModelSettings, UserError


def model_name(settings: ModelSettings) -> str:
    """A model's name as a settings file has it: `hybrid`, `timm:resnet18`."""
    return ":".join(filter(None, (settings.name, getattr(settings, "arch", ""))))


def merging_method(settings: ModelSettings) -> str | None:
    """The name of the merging method, "none" among them; None for settings without a `merge:` section."""
    merge = getattr(settings, "merge", None)
    return None if merge is None else merge.method


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


def trace_tokens(model: nn.Module, images: Tensor) -> tuple[Tokens, Grid] | None:
    """Runs a model on images (B, C, H, W): the tokens' state after the last block, and rows and columns of patches.

    None for models that cannot merge, or that merging is not in.
    """
    if hasattr(model, "schedule"):
        _, tokens = model.forward_features(images)
        return tokens, getattr(model, "vit", model).grid  # a hybrid's are its ViT's
    blocks = _merging_blocks(model)
    if blocks is None:
        return None
    _, tokens = trace(model, images)
    grid, _ = blocks.layout()
    return tokens, grid


def _merging_blocks(model: nn.Module) -> MergingBlocks | None:
    try:
        family_of(model)
        return blocks_of(model)
    except UserError:
        return None
