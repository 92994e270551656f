"""Maps of a model: what its blocks or stages put out, side by side on one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer

from models.settings import UserError


class Maps(nn.Module):
    """The maps of some blocks of a model, side by side.

    - A ViT of timm, wrapped or not: maps are normalised by its last norm; in a merged one, a patch has the features of
      the token that it became part of.
    - Another model of timm that has `forward_intermediates`: the maps of its stages.
    - A model of torchvision whose convolutions are `features`, such as SqueezeNet: the maps of these modules.

    Maps of several sizes are averaged to the grid of the last; with `grid` these are then enlarged or averaged to it.

    Args:
        model: with `img_size` and `in_chans`.
        blocks: numbers of blocks, stages or modules from 1; None: the last. What lies behind the greatest is not run.
        grid: rows and columns of the maps; None: as the last block puts them out.

    Attributes:
        depth: how many blocks are run.

    Raises:
        UserError: a model without such maps, or without such a block.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None, grid: int | None = None) -> None:
        super().__init__()
        self._modules_of_torchvision = not hasattr(model, "forward_intermediates")
        if self._modules_of_torchvision and not _has_features(model):
            raise UserError(
                f"model.name: {type(model).__name__} gives no maps of its blocks; choose timm:NAME, such as a ViT, or "
                "torchvision:squeezenet1_1"
            )
        depth = len(model.features if self._modules_of_torchvision else model.feature_info)
        blocks = [depth] if blocks is None else list(blocks)
        if max(blocks) > depth:
            raise UserError(f"probe.blocks = {blocks}: the model has {depth} blocks; give numbers from 1 to {depth}")
        self.model, self.indices, self.depth = model, [block - 1 for block in blocks], max(blocks)
        self.train(model.training)
        self.grid, self.img_size, self.in_chans = grid, model.img_size, model.in_chans

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, the sum of the blocks' channels, rows, columns)."""
        if self._modules_of_torchvision:
            maps = []
            for index, module in enumerate(self.model.features[: self.depth]):
                images = module(images)
                if index in self.indices:
                    maps.append(images.clone())  # the next module may work in place
        else:
            maps = self._of_timm(images)
        found = torch.cat([_at(each, maps[-1].shape[2:]) for each in maps], 1)
        return found if self.grid is None else _at(found, (self.grid, self.grid))

    def _of_timm(self, images: Tensor) -> list[Tensor]:
        try:
            return self.model.forward_intermediates(
                images, indices=self.indices, norm=True, stop_early=True, intermediates_only=True
            )
        except AssertionError as error:  # Hiera's
            raise UserError(f"model.name: {type(self.model).__name__}: {error}; choose another model") from None


def _at(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Enlarges maps to a grid of (rows, columns), bilinear, or averages them to it."""
    rows, columns = maps.shape[2:]
    if (rows, columns) == tuple(grid):
        return maps
    if rows < grid[0]:
        return F.interpolate(maps, size=tuple(grid), mode="bilinear")
    return F.adaptive_avg_pool2d(maps, tuple(grid))


def _has_features(model: nn.Module) -> bool:
    """Returns whether a model has a sequence `features` of modules that put out maps, channels first."""
    return isinstance(getattr(model, "features", None), nn.Sequential) and not isinstance(model, SwinTransformer)
