"""Settings of the hybrid: the encoder's, and those of stem, bridge and CNN stage."""

from __future__ import annotations

from math import prod
from typing import Literal

from pydantic import Field, model_validator

from ..merging.methods import MERGERS
from ..stem import STEMS, ConvStem
from . import Settings
from .vit import EncoderSettings


class BridgeSettings(Settings):
    """How merged tokens are turned into a feature map."""

    stride: int = Field(1, gt=0, le=16384, description="patches per side of a cell of the map; 1: one cell per patch")
    skip: bool = Field(True, description="add the stem's features from before merging")


class CNNSettings(Settings):
    """The CNN stage after the bridge."""

    block: Literal["convnext", "residual"] = Field("convnext", description="kind of block")
    depth: int = Field(2, gt=0, le=1000, description="number of blocks")
    dim: int | None = Field(None, gt=0, le=65536, description="channels; null: embed_dim")
    layer_scale: float = Field(0.1, gt=0, le=1000, description="initial scale of each block's residual")


class HybridSettings(EncoderSettings):
    """A ViT with token merging, followed by a CNN stage."""

    name: Literal["hybrid"] = "hybrid"
    stem: Literal[tuple(STEMS)] = Field(
        "conv", description="image to patches: convolutions, or one projection as in ViT"
    )
    bridge: BridgeSettings | None = Field(
        BridgeSettings(), description="merged tokens to a feature map; null: no bridge, for merging that keeps a grid"
    )
    cnn: CNNSettings | None = Field(CNNSettings(), description="CNN stage; null: no CNN stage and no bridge")

    @model_validator(mode="after")
    def _parts_fit(self) -> HybridSettings:
        if self.stem == "conv":
            ConvStem.widths(self.embed_dim, self.patch_size)
        grid = self.grid[0]
        if self.bridge is not None and grid % self.bridge.stride:
            raise ValueError(f"bridge.stride = {self.bridge.stride}: does not divide the grid of {grid} patches a side")
        if self.bridge is None and self.cnn is not None:
            self._check_grid_is_kept()
        return self

    def _check_grid_is_kept(self) -> None:
        """Refuses methods that leave no grid; r does not matter, since another schedule may be set at any time."""
        fits = [name for name, m in MERGERS.items() if m.shrink is not None or m.at_most(prod(self.grid)) == 0]
        if self.merge.method not in fits:
            raise ValueError(
                f"bridge = null: merge.method = {self.merge.method} leaves no grid of patches; "
                f"use {' or '.join(fits)}, or give a bridge"
            )
